"""A sweep of six trials over a toy corpus, killed in the midst of one and started again: the missing trials run, and nothing runs twice."""

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
from steps.sweeps.trials import AS_GIVEN, TrainedChain, Trial
from steps.tracking import artifacts
from steps.tracking.pruning import PRUNED_TAG, Watch
from steps.tracking.store import connect, unfinished_root
from tests.toys.ctc import SMALL
from tests.toys.models import write_chords
from tests.toys.registry import toy_store

pytest.importorskip("optuna")
pytestmark = pytest.mark.slow
TRANSCRIPTS = ("oak", "elm ash", "ash", "oak", "elm oak", "ash", "oak", "elm", "ash", "oak")
SPLITS = ("train",) * 6 + ("dev",) * 2 + ("test",) * 2
RATES = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1)
N_EPOCHS, HALVING = 4, 2
KILLED_IN = 4  # of the trainings, that of the options as given among them, after a validation
TRAINED = "trained"  # among the splits that are read


def sweep_until_killed(options: sweep.StepOptions) -> None:
    """In a process of its own, which ends as by `kill -9` where a trial goes on after its first validation."""
    train, goes_on, trained = ctc.run, Watch.goes_on, list[Options]()

    def killed(watch: Watch) -> None:
        goes_on(watch)
        if len(trained) == KILLED_IN and watch.values:
            os.kill(os.getpid(), signal.SIGKILL)

    ctc.run, Watch.goes_on = (lambda asked: (trained.append(asked), train(asked))[1]), killed
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
            halving=HALVING, ctc_epochs=N_EPOCHS, ctc_batch_size=2, finalists=1, n_resamples=100, n_workers=1, no_plot=True, evaluation_view=False, ablations=False, **SMALL,
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


def learning_rate(run: Run) -> str:
    return run.data.params["ctc_learning_rate"]


def stopped(validations: list[list[float]]) -> list[bool]:
    """Which trainings are stopped, by the definition: at validations 1, 2, 4 one in two of those so far goes on, with the new one among them."""
    found, seen = list[bool](), list[list[float]]()
    for values in validations:
        stops = False
        for rung in (1, 2):  # at the fourth it is at its end
            held = [each[rung - 1] for each in seen if len(each) >= rung]
            if len(values) >= rung and len(held) + 1 >= HALVING:
                stops |= sum(each < values[rung - 1] for each in held) >= (len(held) + 1) // HALVING
        found.append(stops)
        seen.append(values)
    return found


def test_only_what_was_missing_ran(done: Done) -> None:
    assert done.events.count(TRAINED) == 1 + len(RATES) - KILLED_IN + 1  # not those that were done, or pruned
    assert {run.info.status for run in done.runs if PRUNED_TAG not in run.data.tags} == {"FINISHED"}
    assert len(done.of("sweep")) == 1 and len(done.of("prepare")) == 1
    assert len(done.of("ctc")) == 1 + len(RATES) == len(done.of("main"))


def test_what_is_not_among_the_best_half_is_pruned_and_says_so(done: Done) -> None:
    client = connect().client
    of_trials = sorted(done.of("ctc"), key=lambda run: run.info.start_time)
    values = [
        [each.value for each in sorted(client.get_metric_history(run.info.run_id, "dev/cer"), key=lambda each: each.step)]
        for run in of_trials
    ]
    pruned = [PRUNED_TAG in run.data.tags for run in of_trials]
    assert pruned == stopped(values) and 0 < sum(pruned) < len(RATES)
    assert [len(each) < N_EPOCHS for each in values] == pruned
    for run in (run for run, is_pruned in zip(of_trials, pruned, strict=True) if is_pruned):
        chain = client.get_run(run.data.tags["mlflow.parentRunId"])
        assert chain.data.tags[PRUNED_TAG] == run.data.tags[PRUNED_TAG] == run.info.run_id
        for each in (run, chain):
            assert each.info.status == "KILLED" and "pruned" in each.info.run_name
            assert each.data.tags["moe.message"].startswith("pruned: dev/cer of ctc ")
    assert not list(unfinished_root().glob("ctc-*"))  # nothing is kept to go on from


def test_every_trial_is_a_chain_nested_in_the_sweep(done: Done) -> None:
    assert {run.data.tags["mlflow.parentRunId"] for run in done.of("main")} == {done.run_id} == {done.of("sweep")[0].info.run_id}
    assert {learning_rate(run) for run in done.of("main")} == {"none", *map(str, RATES)}
    (prepared,) = done.of("prepare")
    assert prepared.data.tags["mlflow.parentRunId"] == done.of("main")[0].info.run_id  # not that of a trial that was pruned


def test_the_test_split_is_read_when_every_trial_is_trained(done: Done) -> None:
    last = max(number for number, event in enumerate(done.events) if event == TRAINED)
    assert "test" in done.events[last:] and "test" not in done.events[:last]
    assert max(run.info.end_time for run in done.of("ctc")) <= min(run.info.start_time for run in done.of("evaluate"))


def test_the_best_is_the_trial_with_the_lowest_rate_on_dev(done: Done) -> None:
    table = pd.read_csv(artifacts.upstream(done.run_id, "tables/trials.csv"))
    dev = {learning_rate(run): run.data.metrics.get("dev/cer_kept") for run in done.of("ctc")}
    assert table["trial"].tolist() == ["as given", *(f"trial {number}" for number in range(len(RATES)))]
    trials = table.iloc[1:]
    for trial in trials.to_dict("records"):
        kept = dev[str(float(trial["ctc_learning_rate"]))]
        assert trial["dev/cer"] == kept if kept is not None else trial["no result because"].startswith("pruned")
    metrics = connect().client.get_run(done.run_id).data.metrics
    assert metrics["dev/cer_best"] == trials["dev/cer"].min()
    best = trials.loc[trials["dev/cer"].astype(float).idxmin()]
    values = file_values(main.StepOptions, str(artifacts.upstream(done.run_id, "best.yaml")))
    assert values["ctc_learning_rate"] == float(best["ctc_learning_rate"]) and values["ctc_epochs"] == N_EPOCHS


def test_the_finalists_are_tested_on_one_test_set(done: Done) -> None:
    (compared,) = done.of("compare")
    assert len(compared.data.params["evaluate_run_ids"].split(",")) == len(done.of("evaluate")) == 2
    report = artifacts.upstream(done.run_id, "report.html").read_text(encoding="utf-8")
    assert (
        all(f"trial {number}" in report for number in range(len(RATES))) and "Finalists on the test set: Lowest WER: " in report
    )
    note = connect().client.get_run(done.run_id).data.tags["mlflow.note.content"]
    assert note.startswith(f"Of {len(RATES)} trials trial ") and " were pruned" in note and compared.info.run_id in note


def test_each_start_says_what_it_reused(done: Done) -> None:
    lines = [line for line in done.said.splitlines() if line.startswith(("as given", "trial")) and "seed 42" in line]
    assert lines[0].split()[4] == "reused" and lines[-1].split()[4] == "reused"  # the finalist, to be evaluated


def test_where_all_are_pruned_the_options_as_given_are_the_best(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Trial(AS_GIVEN, {}, (TrainedChain(42, "main", "prepare", "model", 0.2),))

    def tried(options: sweep.StepOptions, asked: list, *_: object) -> Iterator[Trial]:
        for name, values in asked:
            yield Trial(name, dict(values), (), "pruned: dev/cer of ctc 40 %, above 20 %", {("ctc", "run"): (0.4,)}, "run")

    for name, other in {"_check": lambda options: None, "_trained": lambda *_: given, "_tried": tried}.items():
        monkeypatch.setattr(sweep, name, other)
    options = sweep.StepOptions.asked(
        corpus="folder", dataset_root=str(tmp_path), sweep_system="wav2vec2_ctc", space="{ctc_learning_rate: [0.1, 0.2]}",
        sampler="grid", halving=2, no_plot=True, **SMALL,
    )  # fmt: skip
    run = connect().client.get_run(sweep.run(options))
    assert run.info.status == "FINISHED" and run.data.metrics["dev/cer_best"] == run.data.metrics["dev/cer_as_given"] == 0.2
    assert (
        "All 2 trials were pruned: the options as given have the lowest dev/cer, 20.0 %." in run.data.tags["mlflow.note.content"]
    )
    assert "ctc_learning_rate" not in file_values(main.StepOptions, str(artifacts.upstream(run.info.run_id, "best.yaml")))
    monkeypatch.setattr(
        sweep, "_tried", lambda options, asked, *_: (Trial(name, dict(each), (), "diverged") for name, each in asked)
    )
    with pytest.raises(RuntimeError, match="no trial has a result; the last: diverged"):
        sweep.run(options)
