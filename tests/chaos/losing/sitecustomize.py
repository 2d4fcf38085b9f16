"""A failpoint for the product's processes, by PYTHONPATH: every fifth script is carried out and its reply lost."""

from holdfast.engine.connection import NoReply, Server

_real = Server.call
_calls = 0


async def _call(self, *command, **more):
    global _calls
    reply = await _real(self, *command, **more)
    if command[0] == "EVALSHA":
        _calls += 1
        if _calls % 5 == 0:
            raise NoReply("the connection to Redis was lost")
    return reply


Server.call = _call
