"""Small libraries in C, compiled at run time and preloaded into redis-server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .servers import Skipped


def library(name: str, directory: Path) -> str:
    """Compiles `name.c` of this folder into the directory; the path of the library.

    Raises
    ------
    Skipped: there is no compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Skipped("no C compiler (apt-get install gcc libc6-dev)")
    source, path = Path(__file__).with_name(f"{name}.c"), directory / f"{name}.so"
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(path), str(source), "-ldl"], capture_output=True, text=True
    )
    if done.returncode:
        raise Skipped(f"{source.name} does not compile: {done.stderr.strip()[:200]}")
    return str(path)
