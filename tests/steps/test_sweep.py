"""A sweep over a toy corpus, killed in its second training and started again: the missing trials run, and nothing runs twice."""

import contextlib
import dataclasses
import io
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow.entities import Run

from moe.options import Options
from steps import ctc, main, sweep
from steps.inputs.corpus import Prepared
from steps.options.command_line import file_values
from steps.tracking import artifacts
from steps.tracking.store import connect
from tests.toys.ctc import SMALL
from tests.toys.models import write_chords
from tests.toys.registry import toy_store

pytest.importorskip("optuna")
pytestmark = pytest.mark.slow
TRANSCRIPTS = ("oak", "elm ash", "ash", "oak", "elm oak", "ash", "oak", "elm", "ash", "oak")
SPLITS = ("train",) * 6 + ("dev",) * 2 + ("test",) * 2
RATES = (0.01, 0.1)
TRAINED = "trained"  # among the splits that are read


def sweep_until_killed(options: sweep.StepOptions) -> None:
    """In a process of its own, which ends as by `kill -9` where the second model is to be trained."""
    train, trained = ctc.run, list[Options]()

    def killed(asked: ctc.StepOptions) -> str:
        trained.append(asked)
        if len(trained) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(asked)

    ctc.run = killed
    sweep.run(options)


@dataclasses.dataclass(frozen=True)
class Done:
    """The run, its parent-child tree, and in which order the second start trained and read the test split."""

    run_id: str
    runs: list[Run]
    events: list[str]
    said: str

    def of(self, step: str) -> list[Run]:
        """Runs of a step, oldest first."""
        return [run for run in self.runs if run.data.tags["moe.step"] == step]


@pytest.fixture(scope="module")
def done(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    with toy_store(empty_store, tmp_path_factory.mktemp("sweep") / "store"), pytest.MonkeyPatch.context() as patch:
        corpus = str(write_chords(tmp_path_factory.mktemp("corpus"), TRANSCRIPTS, SPLITS))
        options = sweep.StepOptions.asked(
            corpus="folder", dataset_root=corpus, sweep_system="wav2vec2_ctc", space=f"{{ctc_learning_rate: {list(RATES)}}}", sampler="grid",
            ctc_epochs=1, ctc_batch_size=2, finalists=1, n_resamples=100, n_workers=1, no_plot=True, evaluation_view=False, ablations=False, **SMALL,
        )  # fmt: skip
        child = multiprocessing.get_context("spawn").Process(target=sweep_until_killed, args=(options,))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        events, train, rows = list[str](), ctc.run, Prepared.rows
        patch.setattr(ctc, "run", lambda asked: (events.append(TRAINED), train(asked))[1])
        patch.setattr(Prepared, "rows", lambda self, split, *ids: (events.append(split), rows(self, split, *ids))[1])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            run_id, store = sweep.run(options), connect()
        found = store.client.search_runs([store.experiment_id], order_by=["attributes.start_time ASC"])
        yield Done(run_id, found, events, said.getvalue())


def test_only_what_was_missing_ran(done: Done) -> None:
    assert done.events.count(TRAINED) == len(RATES)  # not that of the options as given
    assert {run.info.status for run in done.runs} == {"FINISHED"}
    assert (
        len(done.of("sweep")) == 1
        and len(done.of("prepare")) == 1
        and len(done.of("ctc")) == 1 + len(RATES) == len(done.of("main"))
    )


def test_every_trial_is_a_chain_nested_in_the_sweep(done: Done) -> None:
    assert {run.data.tags["mlflow.parentRunId"] for run in done.of("main")} == {done.run_id} == {done.of("sweep")[0].info.run_id}
    assert {run.data.params["ctc_learning_rate"] for run in done.of("main")} == {"none", *map(str, RATES)}


def test_the_test_split_is_read_when_every_trial_is_trained(done: Done) -> None:
    last = max(number for number, event in enumerate(done.events) if event == TRAINED)
    assert "test" in done.events[last:] and "test" not in done.events[:last]
    assert max(run.info.end_time for run in done.of("ctc")) <= min(run.info.start_time for run in done.of("evaluate"))


def test_the_best_is_the_trial_with_the_lowest_rate_on_dev(done: Done) -> None:
    table = pd.read_csv(artifacts.upstream(done.run_id, "tables/trials.csv"))
    dev = {run.data.params["ctc_learning_rate"]: run.data.metrics["dev/cer_kept"] for run in done.of("ctc")}
    assert table["trial"].tolist() == ["as given", "trial 0", "trial 1"]
    trials = table.iloc[1:]
    assert trials["dev/cer"].tolist() == [dev[str(rate)] for rate in trials["ctc_learning_rate"]]
    metrics = connect().client.get_run(done.run_id).data.metrics
    assert metrics["dev/cer_best"] == trials["dev/cer"].min()
    best = trials.loc[trials["dev/cer"].astype(float).idxmin()]
    values = file_values(main.StepOptions, str(artifacts.upstream(done.run_id, "best.yaml")))
    assert values["ctc_learning_rate"] == float(best["ctc_learning_rate"]) and values["ctc_epochs"] == 1


def test_the_finalists_are_tested_on_one_test_set(done: Done) -> None:
    (compared,) = done.of("compare")
    assert len(compared.data.params["evaluate_run_ids"].split(",")) == len(done.of("evaluate")) == 2
    report = artifacts.upstream(done.run_id, "report.html").read_text(encoding="utf-8")
    assert all(f"trial {number}" in report for number in range(2)) and "Finalists on the test set: Lowest WER: " in report
    note = connect().client.get_run(done.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("Of 2 trials trial ") and compared.info.run_id in note


def test_each_start_says_what_it_reused(done: Done) -> None:
    lines = [line for line in done.said.splitlines() if line.startswith(("as given", "trial"))]
    words = [line.split()[4] for line in lines if "seed 42" in line]
    assert words == ["reused", "ran", "ran", "reused", "reused"]  # and the finalists, to be evaluated
