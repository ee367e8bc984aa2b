"""Torture of the whole chain in processes that were really started: killed, terminated, and two at once on one fresh store."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.torture.arena import ROOT, TIMES, TOY, Arena
from steps.tracking import artifacts
from steps.tracking.resuming import N_STARTS_TAG
from steps.tracking.store import connect

GRACE_S = 30.0
N_STARTS = 12
TERMINATED = 128 + signal.SIGTERM
TIMED = re.compile("seconds|time|hours|per_s$|_run_id|_mb$|_gb$")  # columns of the table that are no result
LEFT_OUT = (*TIMES, "run_id", "evaluate_run_id", "model_run_id")
_undisturbed: dict[Path, tuple[dict[str, Any], float]] = {}


class Started:
    """`python -m steps.main` on a store, with its output in a file."""

    def __init__(self, arena: Arena, **changes: Any) -> None:
        arena.folder.mkdir(parents=True, exist_ok=True)
        flags = [part for name, value in (TOY | changes).items() for part in (f"--{name}", str(value).lower())]
        self.log = arena.folder / f"main-{time.monotonic_ns()}.log"
        environment = os.environ | {"MLFLOW_TRACKING_URI": arena.uri(), "OMP_NUM_THREADS": "1"} | arena.environment
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "steps.main", *flags],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def after(self, seconds: float, number: int) -> bool:
        """Send a signal after so long; False where the process had ended."""
        try:
            self.process.wait(seconds)
            return False
        except subprocess.TimeoutExpired:
            self.process.send_signal(number)
            return True

    def said(self) -> str:
        """Its output so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def finish(self) -> None:
        """Wait for a good end.

        Raises:
            AssertionError: it failed; with the end of its output.
        """
        assert self.process.wait() == 0, f"main ended with {self.process.returncode}: {self.said()[-1500:]}"


def undisturbed(folder: Path) -> tuple[dict[str, Any], float]:
    """The table of a chain to which nothing happens, and the seconds it takes."""
    if folder not in _undisturbed:
        arena, note = Arena(folder / "undisturbed"), folder / "undisturbed.json"
        if not note.exists():
            shutil.rmtree(arena.folder, ignore_errors=True)
            started = time.monotonic()
            Started(arena).finish()
            seconds = time.monotonic() - started
            note.write_text(json.dumps([arena.fork(table).value(), seconds]))
        _undisturbed[folder] = tuple(json.loads(note.read_text()))
    return _undisturbed[folder]


def killed_at_random(folder: Path, seed: int) -> str:
    """kill -9 the chain at a random moment, start again: the same final table, no run left RUNNING."""
    whole, seconds = undisturbed(folder)
    moment = random.Random(f"chain/{seed}").uniform(0.02, 0.98) * seconds
    arena = _fresh(folder, f"killed-{seed}")
    while not Started(arena).after(moment, signal.SIGKILL):
        shutil.rmtree(arena.folder)
        moment *= 0.8
    Started(arena).finish()
    found = arena.fork(table).value()
    _assert_same_table(found, whole)
    assert found["n_main"] <= 1, f"{found['n_main']} runs of main instead of one"
    shutil.rmtree(arena.folder)
    return f"killed after {moment:.0f} of {seconds:.0f} s"


def terminated_at_random(folder: Path, seed: int) -> str:
    """SIGTERM at a random moment: the process ends and the runs are KILLED within the grace time; the next start goes on.

    All moments fall on one chain, each start of which goes on where the one before was stopped. A start that was stopped before it had
    a run shows nothing: the next moment is a later one.
    """
    seconds, arena, draw, n_redrawn = undisturbed(folder)[1], Arena(folder / "terminated"), random.Random(f"term/{seed}"), 0
    for _ in range(N_STARTS):
        before = _left(arena)
        if before["main"] == "FINISHED":
            shutil.rmtree(arena.folder)
            before = _left(arena)
        chain = Started(arena)
        if not chain.after((draw.uniform(0.1, 0.5) + 0.1 * n_redrawn) * seconds, signal.SIGTERM):
            chain.finish()
            continue
        asked = time.monotonic()
        chain.process.wait(GRACE_S)
        took = time.monotonic() - asked
        found = _left(arena)
        assert not found["RUNNING"], f"left RUNNING: {found['RUNNING']}"
        if found["n_starts"] > before["n_starts"]:
            return f"{_stopped_well(arena, chain, found)} within {took:.1f} s" + f"; moments redrawn: {n_redrawn}" * bool(
                n_redrawn
            )
        n_redrawn += 1
    raise AssertionError(f"none of {N_STARTS} starts was stopped in a run, {n_redrawn} before they had one")


def _left(arena: Arena) -> dict[str, Any]:
    """What `running` finds; nothing where there is no store yet."""
    return arena.fork(running).value() if (arena.folder / "mlflow.db").exists() else {"RUNNING": [], "main": None, "n_starts": 0}


def _stopped_well(arena: Arena, chain: Started, found: dict[str, Any]) -> str:
    assert chain.process.returncode == TERMINATED and found["main"] == "KILLED", (
        f"{chain.process.returncode}, {found}: {chain.said()[-500:]}"
    )
    assert "start the same command again" in chain.said()
    if any(stage in found["killed"] for stage in ("experts", "asr", "baseline")) and "train" in found["told"]:
        assert list(arena.unfinished.glob("*/work/**/update_*")), f"no checkpoint of {found['killed']}"
    return f"stopped in {', '.join(found['killed'])}"


def two_at_once(folder: Path, seed: int) -> str:
    """Two chains with the same options on one fresh store: both finish, with the same table."""
    whole = undisturbed(folder)[0]
    arena = _fresh(folder, f"two-{seed}")
    chains = [Started(arena), Started(arena)]
    for chain in chains:
        chain.finish()
    _assert_same_table(arena.fork(table).value(), whole)
    n_reused = sum(" reused " in line for chain in chains for line in chain.said().splitlines())
    shutil.rmtree(arena.folder)
    return f"both finished, {n_reused} stages taken over"


def table() -> dict[str, Any]:
    """The final table without times and ids, the statuses of all runs, and how many runs `main` has."""
    runs = _runs()
    newest = next(run for run in runs if run.data.tags.get("moe.step") == "compare" and run.info.status == "FINISHED")
    frame = pd.read_parquet(artifacts.upstream(newest.info.run_id, artifacts.COMPARISON))
    kept = [name for name in frame.columns if name not in LEFT_OUT and not TIMED.search(name)]
    return {
        "rows": json.loads(frame[kept].to_json(orient="split", double_precision=15)),
        "statuses": sorted(run.info.status for run in runs),
        "n_main": sum(run.data.tags.get("moe.step") == "main" for run in runs),
    }


def running() -> dict[str, Any]:
    """What a start left in the store.

    Returns:
        runs left RUNNING, before anybody closes them; the status of the newest main; starts that had a run; steps that were KILLED,
        and whether they had trained.
    """
    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])  # `connect` would close them
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    step_of = {run.info.run_id: run.data.tags.get("moe.step", "?") for run in runs}
    killed = [run for run in runs if run.info.status == "KILLED"]
    return {
        "RUNNING": [step_of[run.info.run_id] for run in runs if run.info.status == "RUNNING"],
        "main": next((run.info.status for run in runs if step_of[run.info.run_id] == "main"), None),
        "n_starts": sum(int(run.data.tags.get(N_STARTS_TAG, "1")) for run in runs if step_of[run.info.run_id] == "main"),
        "killed": [step_of[run.info.run_id] for run in killed],
        "told": "train" if any(name.startswith("train/") for run in killed for name in run.data.metrics) else "",
    }


def _runs() -> list[Run]:
    client = connect().client
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def _fresh(folder: Path, name: str) -> Arena:
    shutil.rmtree(folder / name, ignore_errors=True)
    return Arena(folder / name)


def _assert_same_table(found: dict[str, Any], whole: dict[str, Any]) -> None:
    assert found["rows"] == whole["rows"], f"another table: {found['rows']} instead of {whole['rows']}"
    left = [status for status in found["statuses"] if status != "FINISHED"]
    assert "RUNNING" not in left, "a run was left RUNNING"
