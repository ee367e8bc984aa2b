"""A step that was interrupted goes on in its own run; metrics have neither gaps nor copies; what cannot be continued starts anew."""

import dataclasses
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from moe.options import option
from steps.options.step_options import RunOptions
from steps.tracking import dead_runs, resuming, runs
from steps.tracking.resuming import CONTINUED_BY_TAG, CONTINUES_TAG, N_STARTS_TAG
from steps.tracking.store import connect, project_root, unfinished_root
from steps.tracking.work_folders import WorkFolder

pytestmark = pytest.mark.usefixtures("store")


@dataclasses.dataclass(frozen=True)
class StepOptions(RunOptions):
    """A step for tests."""

    seed: int = option(0, "seed", low=0)


class Interrupted(Exception):
    """Anything that ends a step."""


def held(run_id: str) -> Run:
    return connect().client.get_run(run_id)


def all_runs() -> list[Run]:
    found = connect()
    return list(found.client.search_runs([found.experiment_id]))


def interrupted(error: type[BaseException] = Interrupted, options: StepOptions = StepOptions(), step: str = "gate") -> str:
    """Id of a run that logged updates 0 to 4 and was interrupted."""
    with pytest.raises(error), runs.step_run(step, options) as run:
        (runs.work_dir(run) / "half").touch()
        for update in range(5):
            run.log_metrics({"train/loss": update / 2}, update)
        raise error
    return run.run_id


def finish(options: StepOptions = StepOptions()) -> tuple[str, bool]:
    """Id of a run that logs updates 3 to 6, as from a checkpoint after update 2, and whether it found the work."""
    with runs.step_run("gate", options) as run:
        found = (runs.work_dir(run) / "half").exists()
        for update in range(3, 7):
            run.log_metrics({"train/loss": update / 2}, update)
    return run.run_id, found


def losses(run_id: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in connect().client.get_metric_history(run_id, "train/loss"))


WHOLE = [(update, update / 2) for update in range(7)]


def test_a_run_made_and_not_noted_before_the_kill_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killed, pytest.raises(Interrupted):
        killed.setattr(WorkFolder, "belongs_to", lambda self, run_id: (_ for _ in ()).throw(Interrupted))
        with runs.step_run("gate", StepOptions()):
            pass
    mlflow.end_run("KILLED")
    (made,) = all_runs()
    assert finish() == (made.info.run_id, False)
    assert len(all_runs()) == 1 and held(made.info.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(("error", "status"), [(Interrupted, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_interrupted_step_goes_on_in_its_run(error: type[BaseException], status: str) -> None:
    run_id = interrupted(error)
    assert held(run_id).info.status == status and "moe.message" in held(run_id).data.tags
    assert finish() == (run_id, True)
    run = held(run_id)
    assert run.info.status == "FINISHED" and losses(run_id) == WHOLE and len(all_runs()) == 1
    assert run.data.tags[N_STARTS_TAG] == "2" and {"moe.message", "moe.stopped"}.isdisjoint(run.data.tags)
    assert list(unfinished_root().iterdir()) == []


KILLED = """
import time
from toy_steps.held import StepOptions
from steps.tracking import runs
with runs.step_run("gate", StepOptions()) as run:
    (runs.work_dir(run) / "half").touch()
    for update in range(5):
        run.log_metrics({"train/loss": update / 2}, update)
    print("id", run.run_id, flush=True)
    time.sleep(60)
"""


def test_a_killed_process_is_continued_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options lie in a project of their own, so that an edit of this one while the test runs is no other fingerprint."""
    (tmp_path / "toy_steps").mkdir()
    source = "import dataclasses\nfrom steps.options.step_options import RunOptions\n@dataclasses.dataclass(frozen=True)\nclass StepOptions(RunOptions): pass\n"
    (tmp_path / "toy_steps" / "held.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    environment = os.environ | {"PYTHONPATH": f"{project_root()}:{tmp_path}"}
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=-1, text=True, env=environment)
    run_id = next(line for line in iter(process.stdout.readline, "") if line.startswith("id "))[3:].strip()
    process.kill()
    process.wait()
    options = importlib.import_module("toy_steps.held").StepOptions()
    assert finish(options) == (run_id, True)
    assert held(run_id).info.status == "FINISHED" and losses(run_id) == WHOLE
    assert all(run.info.status == "FINISHED" for run in all_runs())


def test_resume_false_starts_a_run_of_its_own_without_the_work() -> None:
    run_id = interrupted()
    again, found = finish(StepOptions(resume=False))
    assert again != run_id and not found and held(run_id).info.status == "FAILED"
    assert losses(again) == WHOLE[3:]


def test_other_options_go_on_with_nothing() -> None:
    run_id = interrupted()
    again, found = finish(StepOptions(seed=1))
    assert again != run_id and not found


def test_a_run_that_was_deleted_is_not_continued() -> None:
    run_id = interrupted()
    connect().client.delete_run(run_id)
    again, found = finish()
    assert again != run_id and not found


def test_a_run_that_finished_as_its_process_died_is_left_alone() -> None:
    run_id = interrupted()
    connect().client.set_terminated(run_id, "FINISHED")
    again, found = finish()
    assert again != run_id and not found and losses(run_id) == WHOLE[:5]


def test_a_run_of_another_machine_that_may_be_alive_is_left_alone() -> None:
    run_id = interrupted()
    client = connect().client
    client.set_tag(run_id, dead_runs.HOST_TAG, "elsewhere")
    client.update_run(run_id, status="RUNNING")
    again, found = finish()
    assert again != run_id and not found and held(run_id).info.status == "RUNNING" and losses(run_id) == WHOLE[:5]


def test_a_run_that_mlflow_run_made_takes_over_the_metrics_and_both_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = interrupted()
    store = connect()
    tags = {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": "gate"}
    made = store.client.create_run(store.experiment_id, tags=tags).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    assert finish() == (made, True)
    assert losses(made) == WHOLE and held(made).data.tags[CONTINUES_TAG] == run_id
    assert held(run_id).data.tags[CONTINUED_BY_TAG] == made and held(run_id).info.status == "FAILED"


def test_mlflow_run_with_run_id_goes_on_in_the_run_that_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = interrupted(KeyboardInterrupt)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert finish() == (run_id, True) and losses(run_id) == WHOLE
    assert CONTINUES_TAG not in held(run_id).data.tags


def test_a_chain_and_its_stage_both_go_on() -> None:
    main, gate = (runs.step_run(step, StepOptions()) for step in ("main", "gate"))
    with pytest.raises(KeyboardInterrupt), main as parent, gate as child:
        raise KeyboardInterrupt
    with runs.step_run("main", StepOptions()) as again, runs.step_run("gate", StepOptions()) as stage:
        assert (again.run_id, stage.run_id) == (parent.run_id, child.run_id)
    assert len(all_runs()) == 2 and {run.info.status for run in all_runs()} == {"FINISHED"}


def test_a_stage_that_another_chain_continues_is_nested_in_that_chain() -> None:
    run_id = interrupted()
    with runs.step_run("main", StepOptions()) as parent:
        finish()
    assert held(run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_a_stop_while_the_run_is_made_leaves_none_running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is made, and the signal comes before anybody knows its id."""
    real = mlflow.start_run

    def made_and_stopped(*arguments: object, **options: object) -> None:
        real(*arguments, **options)
        mlflow.tracking.fluent._active_run_stack.get().pop()
        raise KeyboardInterrupt

    def run(options: StepOptions) -> None:
        with runs.step_run("gate", options):
            pytest.fail("must not begin")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(resuming.mlflow, "start_run", made_and_stopped)
    with pytest.raises(SystemExit):
        runs.command(run, StepOptions, [])
    signal.signal(signal.SIGTERM, before)
    assert [run.info.status for run in all_runs()] == ["KILLED"]


def test_of_two_at_once_each_has_a_run_of_its_own() -> None:
    with runs.step_run("gate", StepOptions()) as first, runs.step_run("gate", StepOptions()) as second:
        assert first.run_id != second.run_id and runs.work_dir(first) != runs.work_dir(second)
    assert {run.info.status for run in all_runs()} == {"FINISHED"}


def test_metrics_that_waited_when_the_process_died_are_logged_at_the_next_start() -> None:
    """The store went away, a checkpoint was saved, the process died: the next one begins after those updates."""
    with pytest.raises(Interrupted), runs.step_run("gate", StepOptions()) as run:
        run.log_metrics({"train/loss": 0.0}, 0)
        log = run.opened.metrics
        log.client, client = type("Away", (), {"log_batch": _refuse})(), log.client
        for update in (1, 2):
            run.log_metrics({"train/loss": update / 2}, update)
        run.keep_metrics()
        log.client = client
        raise Interrupted
    assert losses(run.run_id) == WHOLE[:1]
    assert finish()[0] == run.run_id and losses(run.run_id) == WHOLE


def _refuse(self: object, run_id: str, metrics: list) -> None:
    raise mlflow.exceptions.MlflowException("API request to http://127.0.0.1 failed with exception refused")
