"""Embedding and evaluating in two processes: what one process finds, bit for bit, in one run; who is killed is replaced."""

import dataclasses
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from moe.files import file_digest
from moe.training import processes
from steps import embed, evaluate, main, transcribe
from steps.tracking.artifacts import EMBEDDINGS, HYPOTHESES, SCORES, upstream
from steps.tracking.store import connect, unfinished_root
from tests.toys.chain import read_table
from tests.toys.finished import finished_runs
from tests.toys.killing import kill_second, rank
from tests.toys.models import CONTEXT
from tests.toys.registry import toy_store

TIMES = ("seconds", "real_time_factor", "utterances_per_s", "tokens_per_s", "peak_memory_mb")


@dataclasses.dataclass(frozen=True)
class Done:
    """Runs of the same step by one process and by two, and whom the test killed."""

    alone: dict[str, str]
    shared: dict[str, str]
    killed: tuple[int, ...]


@pytest.fixture(scope="module")
def done(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    with toy_store(empty_store, tmp_path_factory.mktemp("sharded") / "store"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "places", lambda: (2, "cores"))
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # each of two computes with as many threads as the one
        runs = finished_runs(tmp_path_factory.mktemp("runs"))
        embedding = {
            "prepare_run_id": runs["prepare"], "pretrain_run_id": runs["pretrain"], "embedding_batch_size": 1, **dataclasses.asdict(CONTEXT),
        }  # fmt: skip
        scoring = {"prepare_run_id": runs["prepare"], "model_run_id": runs["asr"], "decoding_batch_size": 1, "no_plot": True}
        alone = {
            "embed": embed.run(embed.StepOptions(**embedding)),
            "evaluate": evaluate.run(evaluate.StepOptions(**scoring)),
        }
        shared, killed = {"embed": embed.run(embed.StepOptions(**embedding, num_processes=2))}, list[int]()
        killer = threading.Thread(target=kill_second, args=[killed, "batch_*.json"])
        killer.start()
        shared["evaluate"] = evaluate.run(evaluate.StepOptions(**scoring, num_processes=2))
        killer.join()
        yield Done(alone, shared, tuple(killed))


@pytest.mark.slow
def test_two_processes_write_the_embeddings_of_one(done: Done) -> None:
    one, two = (upstream(runs["embed"], EMBEDDINGS) for runs in (done.alone, done.shared))
    names = sorted(path.name for path in one.iterdir())
    assert sorted(path.name for path in two.iterdir()) == names and len(names) == 2
    assert [file_digest(one / name) for name in names] == [file_digest(two / name) for name in names]


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_find_what_one_finds(done: Done) -> None:
    one, two = (connect().client.get_run(runs["evaluate"]) for runs in (done.alone, done.shared))
    assert done.killed and two.info.status == "FINISHED" and "was killed by SIGKILL" in two.data.tags["moe.replaced_process"]
    tables = [pd.read_parquet(upstream(run.info.run_id, HYPOTHESES)) for run in (one, two)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    for name in ("tables/ablations.json", "tables/wer.json", "eval_results_table.json"):
        pd.testing.assert_frame_equal(*(read_table(run.info.run_id, name) for run in (one, two)), check_exact=True)
    metrics = [{name: value for name, value in run.data.metrics.items() if name not in TIMES} for run in (one, two)]
    assert metrics[0] == metrics[1] and {name for name in two.data.metrics} == {name for name in one.data.metrics}
    assert one.data.tags["moe.artifacts"] == two.data.tags["moe.artifacts"] and upstream(two.info.run_id, SCORES).is_file()
    assert one.data.tags["moe.fingerprint"] == two.data.tags["moe.fingerprint"] and two.data.params["num_processes"] == "2"


@pytest.mark.slow
def test_nothing_is_left_over(done: Done) -> None:
    client = connect().client
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"} and len(runs) == 8
    assert [process.pid for process in psutil.Process().children(recursive=True) if rank(process)] == []
    assert not any(unfinished_root().rglob("batch_*.json")) and "MOE_PROCESS_OF" not in os.environ


def test_more_processes_than_cores_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "places", lambda: (4, "cores"))
    for asked in (
        lambda: embed.StepOptions(prepare_run_id="p", pretrain_run_id="b", num_processes=5),
        lambda: evaluate.StepOptions(prepare_run_id="p", model_run_id="m", num_processes=5),
        lambda: transcribe.StepOptions(audio="a", num_processes=5),
        lambda: main.check_stages(main.StepOptions.asked(num_processes=5, expert_batch_size=15, asr_batch_size=15)),
    ):
        with pytest.raises(ValueError, match=r"^num_processes=5: this machine has 4 cores$"):
            asked()
