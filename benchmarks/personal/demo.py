"""The recognisers of the newest chain in the store, each with every number of utterances."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib

from moe.system import read_record
from steps.tracking import artifacts
from steps.tracking.names import STEP_TAG
from steps.tracking.store import connect


def recognisers() -> dict[str, Path]:
    """The newest model of each system in the store that can take people, by the system's name and run: another run's results are no results of it."""
    models: dict[str, tuple[str, Path]] = {}
    store = connect()
    wanted = "attributes.status = 'FINISHED' and tags.`{}` = '{}'"
    for step in ("asr", "baseline"):
        found = store.client.search_runs(
            [store.experiment_id], wanted.format(STEP_TAG, step), order_by=["start_time DESC"], max_results=20
        )
        for each in found:
            folder = artifacts.upstream(each.info.run_id, artifacts.MODEL)
            system = read_record(folder).system
            models.setdefault(system, (f"{system} {each.info.run_id[:8]}", folder))
    if not models:
        raise SystemExit("there is no finished recogniser in the store: `make demo` trains three")
    return dict(models.values())


def demo(sizes: Sequence[int], passed_on: Sequence[str]) -> list[str]:
    """Every recogniser and number of utterances in a process of its own, as many at once as there are cores, the longest first; the names.

    Args:
        passed_on: arguments of every process.
    """
    models = recognisers()
    jobs = [
        ["--model", str(folder), "--name", name, "--sizes", str(size), *passed_on]
        for size in sorted(sizes, reverse=True)
        for name, folder in models.items()
    ]
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        failed = list(pool.map(_fails, jobs))
    if any(failed):
        raise SystemExit("a recogniser failed; its message is above")
    return list(models)


def _fails(arguments: list[str]) -> bool:
    command = [sys.executable, "-m", "benchmarks.personal", *arguments]
    return bool(
        subprocess.run(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode
    )
