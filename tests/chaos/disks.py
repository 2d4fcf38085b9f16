"""Small disks that can be filled up."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from .servers import Skipped


class SmallDisk:
    """A file system in memory with so many MiB, mounted while it lasts.

    Raises
    ------
    Skipped: only root may mount.
    """

    def __init__(self, directory: Path, mib: int) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "holdfast-chaos", str(directory)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Skipped(f"no small disk: {done.stderr.strip()}")
        self._filler = directory / "filler"

    def fill(self, leave: int) -> None:
        """Leaves so many bytes free, or fewer: others write at the same time."""
        with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while (room := self._room() - leave) > 0:
                file.write(bytes(min(room, 2**20)))

    def _room(self) -> int:
        state = os.statvfs(self.directory)
        return state.f_bavail * state.f_frsize

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(self, *exception: object) -> None:
        subprocess.run(["umount", "-l", str(self.directory)], capture_output=True, check=False)
