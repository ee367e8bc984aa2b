"""A process that shares the work of another ends where that one is gone, whenever it went."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from steps.tracking.node_process import WAITING
from steps.tracking.processes import TOLD

WORK = """
import signal
from moe.options import Options
from steps.tracking import processes
from steps.tracking.runs import raise_terminated
signal.signal(signal.SIGTERM, raise_terminated)
processes.end_with.__defaults__ = (*processes.end_with.__defaults__[:-1], 1.0)  # seconds for it to save its state
processes.work_as_told(lambda options: "", Options())
"""


@pytest.mark.parametrize("is_placed", [False, True])
def test_a_process_whose_starter_was_killed_before_it_could_ask_waits_for_no_other(is_placed: bool, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens: a process that joins waits for the one that would
        group = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(closed.getsockname()[1]),
            "WORLD_SIZE": "2",
            "RANK": "1",
            "LOCAL_RANK": "1",
        }
        told = {
            TOLD: json.dumps({"placed": is_placed}),
            WAITING: str(gone.pid),
            "TORCHELASTIC_ERROR_FILE": str(tmp_path / "fault.json"),
        }
        ended = subprocess.run([sys.executable, "-c", WORK], env={**os.environ, **group, **told}, timeout=240)
    assert ended.returncode in (-signal.SIGKILL, *(() if is_placed else (128 + signal.SIGTERM,)))
