"""`holdfast serve`: the server."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from ..settings import ServeSettings
from .app import OK

serve = App(
    name="serve",
    help_epilogue="""\
Examples:

    holdfast serve --demo
    holdfast serve --port 9000 --data-dir /srv/holdfast --workers 4
""",
)


@serve.default
def _serve_command(settings: Annotated[ServeSettings | None, Parameter(name="*")] = None) -> int:
    """Serve the HTTP API until Ctrl-C or SIGTERM."""
    from ..serve import run  # the server, which other commands do not need

    run(settings or ServeSettings())
    return OK
