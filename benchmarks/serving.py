"""A really started `mlflow models serve`: throughput and waiting times of many clients, batched against one at a time, and bad requests.

    python -m benchmarks.serving                                        the champion of the store, on a tone
    python -m benchmarks.serving --audio_dir RECORDINGS --seconds 60
    python -m benchmarks.serving --model models:/whisper-moe/3 --bad_requests 100

Two servers of the same model run side by side, one as it is served by default and one with passes of one recording; each is asked by
`clients` clients for `seconds`, never both at once. Writes benchmarks/results/serving.md and .json.
"""

import base64
import contextlib
import dataclasses
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from tqdm import tqdm

from analysis.report import markdown_table
from benchmarks.bad_requests import BOUNDS, JSON_TYPE, bad_requests, wav
from benchmarks.table import write_both
from benchmarks.timing import machine
from moe.audio.sampling import SAMPLE_RATE
from moe.audio.waveforms import load_audio
from moe.options import Options, option
from moe.recognition.transcription import find_recordings
from steps.options.command_line import parse

RESULTS = Path(__file__).parent / "results"
CONTAINERS = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III"}
ONE_AT_A_TIME = {"decoding_batch_size": 1, "batch_window_ms": 0.0}
READY_S = 600


@dataclasses.dataclass(frozen=True)
class ServingOptions(Options):
    """Serve a registered model and ask it."""

    model: str = option("models:/whisper-moe@champion", "model to serve")
    audio_dir: str | None = option(None, "folder of recordings to send as wav, flac and mp3 (none: a tone)")
    n_recordings: int = option(24, "recordings taken from audio_dir", low=1)
    max_s: float = option(10.0, "longer recordings are cut to so many seconds", above=0)
    clients: int = option(8, "clients at once", low=1)
    seconds: float = option(60.0, "how long they ask each server", above=0)
    bad_requests: int = option(1000, "bad requests to survive", low=0)


@dataclasses.dataclass(frozen=True)
class Load:
    """What a load of good requests came to; `failures` are answers other than 200."""

    n_answers: int
    seconds: float
    audio_s: float
    waits_s: tuple[float, ...]
    failures: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """The numbers of the table."""
        p50, p95 = np.quantile(self.waits_s, [0.5, 0.95]) if self.waits_s else (np.nan, np.nan)
        return {
            "requests": self.n_answers, "errors": len(self.failures), "requests/s": self.n_answers / self.seconds,
            "audio s/s": self.audio_s / self.seconds, "p50 s": float(p50), "p95 s": float(p95),
        }  # fmt: skip


class Client:
    """One client with one connection that it keeps."""

    def __init__(self, port: int) -> None:
        self.port, self.connection = port, http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    def post(self, body: bytes, kind: str = JSON_TYPE) -> tuple[int, bytes]:
        """Status and body of the answer; a connection that the server has closed is opened again."""
        for attempt in (1, 2):
            try:
                self.connection.request("POST", "/invocations", body, {"Content-Type": kind})
                answer = self.connection.getresponse()
                return answer.status, answer.read()
            except (http.client.HTTPException, ConnectionError):
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
                if attempt == 2:
                    raise
        raise AssertionError


@contextlib.contextmanager
def server(model: str, config: dict[str, Any]) -> Iterator[int]:
    """A served model: its port, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        model,
        "--env-manager",
        "local",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `--env-manager local` starts the first python on it
    environment = os.environ | {"PATH": path, "SERVING_MODEL_CONFIG": json.dumps(config)}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            _wait(port, process, log)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def ask(port: int, bodies: list[tuple[bytes, float]], clients: int, seconds: float) -> Load:
    """Ask with so many clients at once for so long; each takes the bodies in turn from a place of its own."""
    started = time.perf_counter()
    end = started + seconds

    def one(number: int) -> list[tuple[float, float, str]]:
        client, found, turn = Client(port), [], number * len(bodies) // clients
        while time.perf_counter() < end:
            body, audio_s = bodies[turn % len(bodies)]
            asked, turn = time.perf_counter(), turn + 1
            status, answer = client.post(body)
            found.append((time.perf_counter() - asked, audio_s, "" if status == 200 else f"{status} {answer[:200]!r}"))
        return found

    with ThreadPoolExecutor(clients) as pool:
        rows = [row for part in pool.map(one, range(clients)) for row in part]
    good = [row for row in rows if not row[2]]
    waits, audio_s = tuple(row[0] for row in good), sum(row[1] for row in good)
    return Load(len(good), time.perf_counter() - started, audio_s, waits, tuple(row[2] for row in rows if row[2]))


def refuse(model: str, n_requests: int, good: bytes) -> dict[str, Any]:
    """Every bad request with its answer, then all of them again until `n_requests` were sent; and whether the server is as it was."""
    with server(model, BOUNDS) as port:
        client, bad = Client(port), bad_requests()
        before, rows = client.post(good), []
        for name, (body, kind, said) in bad.items():
            status, answer = client.post(body, kind)
            message = json.loads(answer).get("message", "") if status != 200 else ""
            rows.append({"request": name, "status": status, "answer": message, "as expected": status == 400 and said in message})
        statuses: dict[int, int] = {}
        for number in tqdm(range(n_requests), desc="bad requests", unit="request"):
            body, kind, _ = list(bad.values())[number % len(bad)]
            status, _ = client.post(body, kind)
            statuses[status] = statuses.get(status, 0) + 1
        after = client.post(good)
        texts = [[row["text"] for row in json.loads(answer)["predictions"]] for _, answer in (before, after)]
        alive = before[0] == after[0] == 200 and texts[0] == texts[1]
    return {"answers": rows, "sent": n_requests, "statuses": {str(status): n for status, n in statuses.items()}, "alive": alive}


def recordings(options: ServingOptions) -> list[tuple[bytes, float]]:
    """Request bodies with their seconds of audio, in the three containers in turn."""
    if options.audio_dir is None:
        return [(request(wav(1.0)), 1.0)]
    found = []
    for path in find_recordings(Path(options.audio_dir))[: options.n_recordings]:
        wave = load_audio(path)[: int(options.max_s * SAMPLE_RATE)]
        for container, subtype in CONTAINERS.items():
            file = io.BytesIO()
            soundfile.write(file, wave, SAMPLE_RATE, format=container.upper(), subtype=subtype)
            found.append((request(file.getvalue()), len(wave) / SAMPLE_RATE))
    return found


def request(audio: bytes, params: Mapping[str, Any] | None = None) -> bytes:
    """A request of one recording, as a client would write it."""
    return json.dumps({"dataframe_records": [{"audio": base64.b64encode(audio).decode()}], "params": dict(params or {})}).encode()


def run(options: ServingOptions, path: Path = RESULTS / "serving") -> dict[str, Any]:
    """Measure everything and write it."""
    bodies, found = recordings(options), {}
    with server(options.model, {}) as batched, server(options.model, ONE_AT_A_TIME) as single:
        for port in (batched, single):  # the first call of a server is not counted
            ask(port, bodies[:1], 1, 0.1)
        for name, port, clients in (
            ("one client", batched, 1),
            ("batched", batched, options.clients),
            ("one at a time", single, options.clients),
        ):
            seconds = options.seconds if clients > 1 else options.seconds / 4
            found[name] = {"clients": clients} | ask(port, bodies, clients, seconds).figures()
            print(name, found[name], flush=True)
    bad = refuse(options.model, options.bad_requests, request(wav(1.0)))
    results = {"options": dataclasses.asdict(options), "machine": machine("cpu"), "load": found, "bad": bad}
    results["ratio"] = found["batched"]["requests/s"] / found["one at a time"]["requests/s"]
    print(write_both(path, markdown(results), results), flush=True)
    return results


def markdown(results: dict[str, Any]) -> str:
    """The tables."""
    load = pd.DataFrame([{"": name, **figures} for name, figures in results["load"].items()])
    bad, options = results["bad"], results["options"]
    answers = pd.DataFrame(bad["answers"])
    source = (
        "a tone" if options["audio_dir"] is None else f"{options['n_recordings']} recordings of {Path(options['audio_dir']).name}"
    )
    return "\n\n".join(
        [
            "# Serving",
            f"`mlflow models serve`, {source} as wav, flac and mp3; {options['clients']} clients for {options['seconds']:g} s. "
            f"Batched against one at a time: {results['ratio']:.2f} × the requests per second.",
            markdown_table(load),
            f"{bad['sent']} bad requests: statuses {bad['statuses']}; afterwards the server answers as before: {'yes' if bad['alive'] else 'NO'}.",
            markdown_table(answers),
            f"Machine: {json.dumps(results['machine'])}",
        ]
    )


def _wait(port: int, process: subprocess.Popen, log: Any) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.suppress(OSError):
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    log.seek(0)
    raise RuntimeError(f"the server did not start: {log.read().decode(errors='replace')[-2000:]}")


if __name__ == "__main__":
    run(parse(ServingOptions))
