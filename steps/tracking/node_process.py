"""A process on a node of a cluster, held by an actor there. Ray carries this class to the node, so it needs nothing but Python and Ray's own."""

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WAITING = "MOE_WAITING"  # variable that tells a process the id of the one that waits for it
BOOT = Path("/proc/sys/kernel/random/boot_id")
SAID_S = 0.3  # between two looks at what a process has printed
GRACE_S = 5.0  # for the last of what it printed


def machine() -> str:
    """What tells one machine from another."""
    return BOOT.read_text(encoding="ascii").strip() if BOOT.exists() else socket.gethostname()


class NodeProcess:
    """Starts one process, passes on what it prints, and ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def place(self) -> tuple[str, int, str]:
        """Address of the node, a port that is free on it, and the machine it is."""
        import ray

        with socket.socket() as found:
            found.bind(("", 0))
            return ray.util.get_node_ip_address(), found.getsockname()[1], machine()

    def missing(self, paths: Sequence[str]) -> list[str]:
        """Of some paths those that are not here."""
        return [path for path in paths if not os.path.exists(path)]

    def start(self, words: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
        """Start Python with `words`, at the head of a session of its own."""
        self._fault = Path(tempfile.mkdtemp(prefix="moe_"), "fault.json")
        own = {"TORCHELASTIC_ERROR_FILE": str(self._fault), "PYTHONUNBUFFERED": "1", WAITING: str(os.getpid())}
        given = {**os.environ, **_network(), **environment, **own}
        self._process = subprocess.Popen(
            [sys.executable, *words], env=given, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", errors="replace", start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def follow(self) -> tuple[str, tuple[int, Any] | None]:
        """What the process has printed since the last call; with its exit code and what it wrote down of its error, once it has ended."""
        if self._process is None:
            return "", None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(SAID_S)
        code = self._process.poll()
        if code is None:
            return self._said(), None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # loaders of a process that was killed
        self._reader.join(GRACE_S)
        told = json.loads(self._fault.read_text(encoding="utf-8")) if self._fault.exists() else None
        shutil.rmtree(self._fault.parent, ignore_errors=True)
        return self._said(), (code, told)

    def stop(self, shutdown_s: float) -> None:
        """Send SIGTERM, and SIGKILL to a process that has not ended some seconds later."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(shutdown_s)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)

    def _said(self) -> str:
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._lines.get_nowait())
        return "".join(found)


def _network() -> dict[str, str]:
    """Names gloo's network interface: by itself it asks for the host's name, which on Debian is an address of this machine alone."""
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    names = [name for name, found in psutil.net_if_addrs().items() if address in [each.address for each in found]]
    return {"GLOO_SOCKET_IFNAME": names[0]} if names else {}
