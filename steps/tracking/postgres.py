"""A PostgreSQL in a folder: no port, no password, and no service of the machine.

It listens on a Unix socket alone, in a folder that only its user may enter. PostgreSQL refuses to run as root: started by root, it runs as
the user that Debian's package makes for it. The folder has to lie where that user may read.
"""

import contextlib
import dataclasses
import fcntl
import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

DEBIAN = Path("/usr/lib/postgresql")  # Debian puts no server on the PATH
NOT_INSTALLED = "PostgreSQL is not installed; on Debian or Ubuntu: apt install postgresql"
OTHER_USERS = ("postgres", "nobody")  # to run as, when root starts it
ROLE = "mlflow"
MAKING, DATA, LOG, LOCK = "data.making", "data", "postgres.log", "lock"


@dataclasses.dataclass(frozen=True)
class Postgres:
    """One database cluster.

    Attributes:
        folder: holds its data and its log.
        programs: holds `initdb` and `pg_ctl`.
        user: it runs as; None is the user of this process.
    """

    folder: Path
    programs: Path
    user: str | None

    @property
    def data(self) -> Path:
        """What PostgreSQL calls its data directory."""
        return self.folder / DATA

    def call(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs to its end; in a session of its own, so that a Ctrl-C does not reach it."""
        command = [str(self.programs / program), *arguments]
        as_user: dict[str, Any] = {}
        if self.user is not None:
            as_user = {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []}
        return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, start_new_session=True, **as_user)

    def own(self, path: Path) -> Path:
        """Give a folder to the user that it runs as, and to nobody else."""
        path.chmod(0o700)
        if self.user is not None:
            shutil.chown(path, self.user, pwd.getpwnam(self.user).pw_gid)
        return path


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """PostgreSQL on the data of a folder, made on demand, while the block runs: the address of its database.

    Raises:
        RuntimeError: it is not installed, is at work on this folder already, cannot read the folder, or does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder), tempfile.TemporaryDirectory(prefix="whisper-moe-postgres-") as sockets:
        postgres = Postgres(folder, find_programs(folder / DATA), None if os.geteuid() else _other_user())
        for each in (folder, Path(sockets)):
            postgres.own(each)
        _make(postgres)
        _start(postgres, sockets)
        try:
            yield f"postgresql+psycopg://{ROLE}@/postgres?host={quote(sockets)}&port=5432"
        finally:
            postgres.call("pg_ctl", "stop", "--pgdata", str(postgres.data), "--mode", "fast")


def find_programs(data: Path) -> Path:
    """The folder of PostgreSQL's programs: of the version that made the data, else of the newest.

    Raises:
        RuntimeError: there are none.
    """
    version = (data / "PG_VERSION").read_text().strip() if (data / "PG_VERSION").exists() else "*"
    found = [path.parent for path in DEBIAN.glob(f"{version}/bin/pg_ctl")]
    on_path = shutil.which("pg_ctl")
    if not found and on_path is None:
        raise RuntimeError(
            NOT_INSTALLED if version == "*" else f"{data} needs PostgreSQL {version}: apt install postgresql-{version}"
        )
    return max(found, key=lambda path: float(path.parent.name)) if found else Path(str(on_path)).resolve().parent


def _other_user() -> str:
    users = {each.pw_name for each in pwd.getpwall()}
    found = next((name for name in OTHER_USERS if name in users), None)
    if found is None:
        raise RuntimeError("PostgreSQL never runs as root: start this as another user")
    return found


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with open(folder / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"a server is at work on {folder} already: stop it first, or take another folder") from error
        yield


def _make(postgres: Postgres) -> None:
    """Make the data where there is none, aside, so that what is stopped meanwhile leaves no half of it."""
    if postgres.data.exists():
        return
    aside = postgres.folder / MAKING
    shutil.rmtree(aside, ignore_errors=True)
    options = ["--username", ROLE, "--auth", "trust", "--encoding", "UTF8", "--locale", "C"]
    _checked(postgres, postgres.call("initdb", "--pgdata", str(aside), *options), "cannot be made")
    aside.rename(postgres.data)


def _start(postgres: Postgres, sockets: str) -> None:
    """Start it, and stop first what a killed process left at work: this one holds the folder's lock."""
    where = ["--pgdata", str(postgres.data)]
    if postgres.call("pg_ctl", "status", *where).returncode == 0:
        postgres.call("pg_ctl", "stop", *where, "--mode", "fast")
    options = f"-c listen_addresses= -c port=5432 -c unix_socket_directories={shlex.quote(sockets)}"
    started = postgres.call("pg_ctl", "start", *where, "--log", str(postgres.folder / LOG), "--options", options)
    _checked(postgres, started, f"does not start (see {LOG} there)")


def _checked(postgres: Postgres, done: subprocess.CompletedProcess[str], fault: str) -> None:
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        as_whom = f" as {postgres.user}, since it never runs as root" if postgres.user else ""
        raise RuntimeError(f"PostgreSQL in {postgres.folder}{as_whom} {fault}: {said[0] if said else done.returncode}")
