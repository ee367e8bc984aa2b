"""A tracking server for several machines: PostgreSQL, and in front of it `mlflow server`, through which artifacts pass too.

No entry point of a chain: it makes no run. Ctrl-C stops both; started again, it goes on with the same data. Examples:
    python -m steps.server
    python -m steps.server --host 0.0.0.0 --port 5001 --allowed_hosts "server.lab:5001"
"""

import argparse
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from steps.tracking.postgres import running
from steps.tracking.store import project_root

NEEDS = ("psycopg", "boto3")
INSTALL = "pip install -r requirements-server.txt"
STOP_S = 20.0
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m steps.server", description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for other machines too")
    made.add_argument("--port", type=int, default=5000, help="port to listen on")
    made.add_argument(
        "--folder", type=Path, default=project_root() / "server", help="where PostgreSQL's data and the artifacts lie"
    )
    made.add_argument("--artifacts", default="", help="where the artifacts lie instead, e.g. s3://bucket/folder")
    made.add_argument("--allowed_hosts", default="", help="names that other machines may call this one by, e.g. server.lab:5000")
    made.add_argument("--workers", type=int, default=2, help="processes that answer requests")
    return made


def serve(given: argparse.Namespace) -> int:
    """Run both servers until one of them ends or this process is stopped; the exit status.

    Raises:
        RuntimeError: a package or PostgreSQL is missing, the port is taken, or the folder cannot be used.
    """
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise RuntimeError(f"the server needs {' and '.join(missing)}: {INSTALL}")
    _refuse_taken(given.host, given.port)
    folder = given.folder.resolve()
    with running(folder / "postgres") as database:
        print(
            f"PostgreSQL and artifacts in {folder}; http://{given.host}:{given.port} is ready in some ten seconds; Ctrl-C stops both"
        )
        print(f"To log to it: export MLFLOW_TRACKING_URI=http://{_address(given.host)}:{given.port}", flush=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", given.host, "--port", str(given.port)]
        command += ["--workers", str(given.workers), "--artifacts-destination", given.artifacts or str(folder / "artifacts")]
        command += ["--uvicorn-opts", "--log-level warning"]  # not a line for each request
        command += ["--allowed-hosts", given.allowed_hosts] if given.allowed_hosts else []
        # the address in the environment: a command line is everybody's to read
        environment = os.environ | QUIET | {"MLFLOW_BACKEND_STORE_URI": database}
        return _until_stopped(subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True))


def _until_stopped(server: subprocess.Popen[bytes]) -> int:
    """Wait for a server that leads a session of its own; whatever stops this process stops all of that session."""
    try:
        return server.wait()
    finally:
        _signal(server, signal.SIGTERM)
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            _signal(server, signal.SIGKILL)


def _signal(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, number)


def _refuse_taken(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port just left is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RuntimeError(
                f"port {port} of {host} cannot be listened on ({error.strerror}); make server PORT=… takes another"
            ) from error


def _address(host: str) -> str:
    """How other machines may call this one."""
    return socket.gethostname() if host in ("0.0.0.0", "::") else host


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # also in the background, where a shell lets SIGINT be ignored
        signal.signal(number, _stop)
    try:
        sys.exit(serve(given))
    except KeyboardInterrupt:
        print("server: stopped; the same command goes on with the same data")
    except (RuntimeError, OSError) as error:
        print(f"server: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
