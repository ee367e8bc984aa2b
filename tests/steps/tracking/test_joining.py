"""A step joins the run that `mlflow run` made for it, and overwrites no other, whatever `MLFLOW_RUN_ID` says."""

import dataclasses
from collections.abc import Callable

import pytest
from mlflow.entities import Run

from moe.options import Options, option
from steps.tracking import runs
from steps.tracking.store import connect

pytestmark = pytest.mark.usefixtures("store")
PROJECT_RUN = {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": "gate"}


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """A step for tests."""

    seed: int = option(0, "seed", low=0)


def gate(options: StepOptions = StepOptions()) -> str:
    with runs.step_run("gate", options) as run:
        run.log_metrics({"dev/kl": 0.5})
    return run.run_id


def fails(error: type[BaseException]) -> str:
    with pytest.raises(error), runs.step_run("gate", StepOptions()) as run:
        raise error
    return run.run_id


def made(**tags: str) -> str:
    store = connect()
    return store.client.create_run(store.experiment_id, tags=tags).info.run_id


def in_another_experiment() -> str:
    client = connect().client
    return client.create_run(client.create_experiment("theirs"), tags=PROJECT_RUN).info.run_id


def deleted() -> str:
    run_id = made(**PROJECT_RUN)
    connect().client.delete_run(run_id)
    return run_id


REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "finished": (gate, "the run is FINISHED"),
    "failed": (lambda: fails(ValueError), "the run is FAILED"),
    "another program's": (made, "another program's"),
    "another entry point's": (lambda: made(**PROJECT_RUN | {"mlflow.project.entryPoint": "experts"}), "another program's"),
    "at work": (lambda: made(**PROJECT_RUN, **{"moe.step": "gate"}), "at work as gate"),
    "another experiment's": (in_another_experiment, "in another experiment"),
    "deleted": (deleted, "the run was deleted"),
    "not there": (lambda: "0123456789abcdef0123456789abcdef", "no such run in sqlite"),
    "no id": (lambda: "../etc", "no such run in sqlite"),
}


def content(run: Run) -> tuple:
    return run.info.status, run.info.end_time, run.info.run_name, run.info.lifecycle_stage, run.data.to_dictionary()


@pytest.mark.parametrize("kind", REFUSED)
def test_every_other_run_is_refused_as_it_was_and_the_advice_leads_on(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, word = REFUSED[kind]
    run_id, client = make(), connect().client
    before = None if word.startswith("no such") else content(client.get_run(run_id))
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(SystemExit) as end:
        runs.command(gate, StepOptions, [])
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 1 and f"MLFLOW_RUN_ID={run_id}: " in said and word in said and "unset MLFLOW_RUN_ID" in said
    assert before is None or content(client.get_run(run_id)) == before
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    again = gate(StepOptions(seed=1))
    assert again != run_id and client.get_run(again).info.status == "FINISHED"


def test_a_stopped_run_that_the_step_would_continue_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = fails(KeyboardInterrupt)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(RuntimeError, match="the run is KILLED"):  # other options: nothing to go on with
        gate(StepOptions(seed=1))
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert gate() == run_id


@pytest.mark.parametrize("nothing", ["", None])
def test_no_id_is_no_run(nothing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if nothing is not None:
        monkeypatch.setenv("MLFLOW_RUN_ID", nothing)
    assert connect().client.get_run(gate()).info.status == "FINISHED"
