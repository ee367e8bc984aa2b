"""A training's run has what it uses of the machine; no other run does."""

import time
from pathlib import Path

import pytest

from steps.options.step_options import ReportOptions, RunOptions
from steps.tracking import runs
from steps.tracking.store import connect

USED = {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"}


@pytest.mark.parametrize(("options", "wanted"), [(ReportOptions(), True), (RunOptions(), False)])
def test_the_machine_is_watched_while_a_training_runs(
    store: Path, monkeypatch: pytest.MonkeyPatch, options, wanted: bool
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with runs.step_run("asr", options) as step:
        found: set[str] = set()
        for _ in range(200 if wanted else 4):
            time.sleep(0.05)
            found = set(connect().client.get_run(step.run_id).data.metrics)
            if found >= USED:
                break
    assert (USED <= found) == wanted
    assert connect().client.get_run(step.run_id).info.status == "FINISHED"
