"""Secrets stay where they belong: whatever fails, no output, answer, command line or child's environment has one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from holdfast.http.settings import ServeSettings

#: In every secret of this test, so that one look finds any of them.
MARK = "MARKED"

SECRETS = {
    "HOLDFAST_OPERATOR_TOKEN": f"operator-{MARK}-token",
    "HOLDFAST_BUYER_TOKEN_KEY": f"buyer-{MARK}-key-of-32-bytes-and-more",
    "HOLDFAST_SECRET": f"secret-{MARK}-of-some-length",
}
REDIS_PASSWORD = f"redis/{MARK}"
REDIS_LOGIN = f"ann:redis%2F{MARK}@"

#: `holdfast` that tells as much as it can: every logger at debug level, and asyncio in debug mode.
TALKATIVE = "import logging,sys;logging.basicConfig(level=10);from holdfast.http.cli import main;sys.exit(main())"

PATIENCE = 30


class Said:
    """Everything that was said anywhere, and the processes that say it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answers: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self._log = directory / "output.log"

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        with open(self._log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", TALKATIVE, "serve", "--port", "0", *arguments],
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=inherited | SECRETS | {"PYTHONASYNCIODEBUG": "1", "PYTHONUNBUFFERED": "1"} | environment,
            )
        self.processes.append(process)
        return process

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def address(self) -> str:
        """Where the last one serves, once it does."""
        process = self.processes[-1]
        give_up = time.monotonic() + PATIENCE
        while True:
            found = re.findall(r"serves on (http://\S+)\n", self.output())
            if len(found) == len(self.processes):
                return str(found[-1])
            assert process.poll() is None, self.output()
            assert time.monotonic() < give_up, self.output()
            time.sleep(0.02)

    def call(self, url: str, method: str = "GET", body: Any = None, **headers: str) -> int:
        """The status of an answer, which is kept with all of its headers."""
        data = json.dumps(body).encode() if body is not None else None
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url, data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                self.answers.append(f"{answer.headers}{answer.read()!r}")
                return int(answer.status)
        except urllib.error.HTTPError as answer:
            with answer:
                self.answers.append(f"{answer.headers}{answer.read()!r}")
            return answer.code

    def end(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)

    def check(self, *more: str) -> None:
        everything = "\n".join([self.output(), *self.answers, *more])
        at = everything.find(MARK)
        assert at < 0, f"...{everything[max(0, at - 2000) : at + 200]}"


@pytest.fixture
def said(tmp_path: Path) -> Iterator[Said]:
    all_of_it = Said(tmp_path)
    yield all_of_it
    for process in all_of_it.processes:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE)


def misbehave(said: Said, url: str, redis: Any) -> None:
    """Calls that succeed, calls that are refused, and calls that fail."""
    operator = {"Authorization": f"Bearer {SECRETS['HOLDFAST_OPERATOR_TOKEN']}"}
    claims = {"sub": f"ann-{MARK}", "exp": 4_000_000_000}
    token = jwt.encode(claims, SECRETS["HOLDFAST_BUYER_TOKEN_KEY"], algorithm="HS256")
    ann = {"X_Buyer_Token": token, "Idempotency_Key": f"key-{MARK}"}
    sale = {"id": "gig", "name": "Gig", "capacity": 10}
    assert said.call(f"{url}/sales", "POST", sale, **operator) == 201
    assert said.call(f"{url}/sales/gig/tickets", "POST", {"quantity": 1}, **ann) == 201
    assert said.call(f"{url}/sales/gig/tickets", "GET", None, **operator) == 200
    for wrong in (f"Bearer {MARK}", f"Bearer {SECRETS['HOLDFAST_OPERATOR_TOKEN']}x"):
        assert said.call(f"{url}/sales", "GET", None, Authorization=wrong) == 401
    for wrong in (MARK, token + MARK, token[:-2]):
        assert said.call(f"{url}/sales/gig/tickets", "POST", {"quantity": 1}, X_Buyer_Token=wrong) == 401
    assert said.call(f"{url}/sales/gig/tickets", "POST", {"quantity": MARK}, **ann) == 422
    assert said.call(f"{url}/sales/gig/tickets", "POST", {"quantity": 1, "fingerprint": MARK * 50}, **ann) == 422
    # Something that nobody expects: a mistake of ours, with a traceback in the log.
    redis.execute_command("RENAME", "hf:{gig}:sale", "elsewhere")
    redis.set("hf:{gig}:sale", "no hash")
    assert said.call(f"{url}/sales/gig/tickets", "POST", {"quantity": 1}, X_Buyer_Token=token) >= 500
    assert said.call(f"{url}/sales/gig", "GET") >= 500
    redis.execute_command("RENAME", "elsewhere", "hf:{gig}:sale")


@pytest.fixture
def redis(start_redis: Any, any_binary: str, tmp_path: Path) -> Any:
    acl = tmp_path / "users.acl"
    acl.write_text(f"user default on nopass ~* &* +@all\nuser ann on >{REDIS_PASSWORD} ~* &* +@all\n")
    return start_redis(any_binary, "--aclfile", str(acl))


def test_a_start_that_fails_tells_no_secret(said: Said, redis: Any) -> None:
    store = "sqlite:///store.db"
    for broken in (
        {"HOLDFAST_REDIS": f"unix://ann:{MARK}@{redis.socket}", "HOLDFAST_STORE": store},
        {"HOLDFAST_REDIS": f"redis://ann:{REDIS_PASSWORD}@127.0.0.1:1", "HOLDFAST_STORE": store},
        {"HOLDFAST_REDIS": f"rediss://{REDIS_LOGIN}127.0.0.1:1?ssl_password={MARK}", "HOLDFAST_STORE": store},
        {"HOLDFAST_STORE": f"nosuch://ann:{MARK}@127.0.0.1:1/holdfast"},
        {"HOLDFAST_STORE": f"postgresql://ann:{MARK}@127.0.0.1:1/holdfast", "HOLDFAST_DATA_DIR": "other"},
        {"HOLDFAST_OPERATOR_TOKEN": f"{MARK} with blanks"},
        {"HOLDFAST_BUYER_TOKEN_KEY": MARK},
    ):
        said.start(**broken)
    for process in said.processes:
        assert process.wait(PATIENCE) == 2, said.output()
    assert said.output().count("holdfast: ") >= len(said.processes)
    said.check()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_fails_in_many_ways_tells_no_secret(said: Said, redis: Any, tmp_path: Path, workers: int) -> None:
    store, address = "sqlite:///store.db", f"unix://{REDIS_LOGIN}{redis.socket}"
    server = said.start("--workers", str(workers), HOLDFAST_REDIS=address, HOLDFAST_STORE=store)
    url = said.address()
    with redis.client() as client:
        misbehave(said, url, client)
        redis.kill()
        claims = {"sub": f"ann-{MARK}", "exp": 4_000_000_000}
        token = jwt.encode(claims, SECRETS["HOLDFAST_BUYER_TOKEN_KEY"], algorithm="HS256")
        assert said.call(f"{url}/sales/gig/tickets", "POST", {"quantity": 1}, X_Buyer_Token=token) == 503
        assert said.call(f"{url}/readyz") == 503
        redis.start()
        # An empty one, which is another mistake.
        assert said.call(f"{url}/readyz") == 503
    said.end(server)
    stored = (tmp_path / "store.db").read_bytes()
    assert MARK.encode() not in stored, "a secret, or a buyer, lies in the store"
    said.check()


def test_the_private_redis_is_told_no_secret(said: Said, tmp_path: Path) -> None:
    said.start("--data-dir", "data")
    url = said.address()
    assert said.call(f"{url}/readyz") == 200
    pid = json.loads((tmp_path / "data" / "redis" / "server.json").read_text())["pid"]
    told = [Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "environ")]
    said.check(*told, (tmp_path / "data" / "redis" / "redis.log").read_text())
    for path in (tmp_path / "data").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"


def test_settings_do_not_show_their_secrets() -> None:

    settings = ServeSettings(redis=MARK, store=MARK, secret=MARK, operator_token=MARK, buyer_token_key=MARK * 9)
    assert MARK not in f"{settings!r}{settings}"
