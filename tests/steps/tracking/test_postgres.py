"""A PostgreSQL of the project's own: made whole, private, gone on with after whatever ended it, and clear where it cannot be."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.tracking import postgres
from steps.tracking.postgres import LOG, find_programs, running
from steps.tracking.store import project_root
from tests.toys.databases import ask, missing

HOLD = "import sys, time\nfrom pathlib import Path\nfrom steps.tracking.postgres import running\n"
HOLD += "with running(Path(sys.argv[1])) as address:\n    print(address, flush=True)\n    time.sleep(600)\n"


needs_postgres = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where also another user gets to, as whom root's PostgreSQL runs; pytest's own folders are for one user."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made) / "postgres"


def hold(folder: Path) -> tuple[subprocess.Popen, str]:
    """A process that has PostgreSQL at work on a folder, and its address."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=project_root(), stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


@needs_postgres
def test_what_was_written_is_there_after_a_stop_and_after_a_kill(folder: Path) -> None:
    with running(folder) as address:
        ask(address, "create table held (number int)")
        ask(address, "insert into held values (1)")
        assert ask(address, "show listen_addresses") == [("",)]
        pid = int((folder / "data/postmaster.pid").read_text().splitlines()[0])
        assert os.stat(f"/proc/{pid}").st_uid != 0
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (folder, folder / "data"))
    assert not (folder / "data/postmaster.pid").exists()
    process, address = hold(folder)
    ask(address, "insert into held values (2)")
    with pytest.raises(RuntimeError, match=f"a server is at work on {folder} already"), running(folder):
        pass
    process.kill()
    process.wait()
    assert (folder / "data/postmaster.pid").exists()  # PostgreSQL lives on
    with running(folder) as address:
        assert ask(address, "select number from held order by number") == [(1,), (2,)]


@needs_postgres
def test_what_was_killed_while_the_data_was_made_is_made_anew(folder: Path) -> None:
    (folder / postgres.MAKING).mkdir(parents=True)
    (folder / postgres.MAKING / "half").touch()
    with running(folder) as address:
        assert ask(address, "select 1") == [(1,)]
    assert not (folder / postgres.MAKING).exists()


@needs_postgres
def test_data_that_it_does_not_start_on_is_named(folder: Path) -> None:
    with running(folder):
        pass
    (folder / "data/postgresql.conf").write_text("port = many\n")
    with pytest.raises(RuntimeError, match=rf"PostgreSQL in {folder}.* does not start \(see {LOG} there\): "), running(folder):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as another user")
@needs_postgres
def test_root_is_told_whom_it_runs_as_where_that_user_cannot_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(
        RuntimeError, match=r"as (postgres|nobody), since it never runs as root cannot be made: .*ermission denied"
    ):
        with running(tmp_path / "postgres"):
            pass


def test_where_it_is_not_installed_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="^PostgreSQL is not installed; on Debian or Ubuntu: apt install postgresql$"):
        find_programs(tmp_path / "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/PG_VERSION").write_text("9\n")
    with pytest.raises(RuntimeError, match="needs PostgreSQL 9: apt install postgresql-9"):
        find_programs(tmp_path / "data")


def test_of_several_versions_that_of_the_data_is_taken_and_else_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path)
    for version in ("9.6", "15", "17"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin/pg_ctl").touch()
    assert find_programs(tmp_path / "data") == tmp_path / "17/bin"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/PG_VERSION").write_text("15\n")
    assert find_programs(tmp_path / "data") == tmp_path / "15/bin"
