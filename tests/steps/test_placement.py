"""Steps on a Ray cluster of two nodes: the result of one process, whoever is killed; what the cluster cannot do is refused before any work."""

import dataclasses
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from moe.files import file_digest
from moe.training.processes import ProcessOptions
from steps import domain, embed, evaluate, main, transcribe
from steps.chain.remote_checks import remote_faults
from steps.options.project_files import PREFIX
from steps.tracking import placement
from steps.tracking.artifacts import EMBEDDINGS, HYPOTHESES, MODEL, upstream
from steps.tracking.store import connect, unfinished_root
from tests.toys.finished import finished_runs
from tests.toys.killing import kill_second, once_there, rank
from tests.toys.models import CONTEXT
from tests.toys.registry import toy_store

TRAINING = {
    "domain_epochs": 6, "domain_batch_size": 4, "no_plot": True, "eval_every_n_epochs": 3, "logging_steps": 1, "save_every_n_updates": 1,
    "unfreeze_encoder_blocks": 1, "token_dropout": 1.0, "dropout": 0.0, **dataclasses.asdict(CONTEXT),
}  # fmt: skip
BY_RAY = {"num_processes": 2, "cluster": "auto"}
TIMES = ("seconds", "real_time_factor", "utterances_per_s", "tokens_per_s", "peak_memory_mb")


@dataclasses.dataclass(frozen=True)
class Done:
    """Runs of the same steps by one process and by two of a cluster, and what was taken from them meanwhile."""

    runs: dict[str, str]
    alone: dict[str, str]
    placed: dict[str, str]
    killed: tuple[int, ...]
    training: dict
    n_before: int


@pytest.fixture(scope="module")
def done(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    pytest.importorskip("ray", reason="needs requirements-cluster.txt")
    from tests.toys.two_nodes import two_nodes

    with (
        toy_store(empty_store, tmp_path_factory.mktemp("placed") / "store"),
        pytest.MonkeyPatch.context() as patch,
        two_nodes() as nodes,
    ):
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # each of two computes with as many threads as the one
        runs = finished_runs(tmp_path_factory.mktemp("runs"))
        data = {"prepare_run_id": runs["prepare"], "pretrain_run_id": runs["pretrain"]}
        training = data | TRAINING
        embedding = data | {"embedding_batch_size": 1, **dataclasses.asdict(CONTEXT)}
        scoring = {"prepare_run_id": runs["prepare"], "model_run_id": runs["asr"], "decoding_batch_size": 1, "no_plot": True}
        alone = {
            "domain": domain.run(domain.StepOptions(**training)),
            "embed": embed.run(embed.StepOptions(**embedding)),
            "evaluate": evaluate.run(evaluate.StepOptions(**scoring)),
        }
        killed, placed = list[int](), {"embed": embed.run(embed.StepOptions(**embedding, **BY_RAY))}
        killer = threading.Thread(target=kill_second, args=[killed, "update_*/manifest.json"])
        killer.start()
        placed["domain"] = domain.run(domain.StepOptions(**training, **BY_RAY))
        killer.join()
        remover = threading.Thread(target=once_there, args=["batch_*.json", nodes.replace_second])
        remover.start()
        placed["evaluate"] = evaluate.run(evaluate.StepOptions(**scoring, **BY_RAY))
        remover.join()
        yield Done(runs, alone, placed, tuple(killed), training, len(all_runs()))


def all_runs() -> list:
    client = connect().client
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def weights(run_id: str) -> dict[str, torch.Tensor]:
    folder = upstream(run_id, MODEL)
    return {
        f"{path.relative_to(folder)} {name}": tensor
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


@pytest.mark.slow
def test_a_training_of_which_a_process_is_killed_ends_with_the_weights_of_one(done: Done) -> None:
    one, two = (connect().client.get_run(runs["domain"]) for runs in (done.alone, done.placed))
    assert done.killed and two.info.status == "FINISHED" and "was killed by SIGKILL" in two.data.tags["moe.replaced_process"]
    wanted, found = weights(done.alone["domain"]), weights(done.placed["domain"])
    assert wanted.keys() == found.keys() and wanted
    for name, each in wanted.items():
        torch.testing.assert_close(found[name].float(), each.float(), rtol=1e-3, atol=1e-5)  # they are kept in half precision
    for name in ("train/loss", "dev/loss"):
        curves = [[point.value for point in connect().client.get_metric_history(run.info.run_id, name)] for run in (one, two)]
        assert curves[1] == pytest.approx(curves[0], abs=1e-4) and curves[0]
    names = [{name for name in run.data.metrics if not name.startswith("system/")} for run in (one, two)]
    assert names[0] == names[1] and two.data.params["cluster"] == "auto"
    assert one.data.tags["moe.fingerprint"] == two.data.tags["moe.fingerprint"]


@pytest.mark.slow
def test_two_nodes_write_the_embeddings_of_one_process(done: Done) -> None:
    one, two = (upstream(runs["embed"], EMBEDDINGS) for runs in (done.alone, done.placed))
    names = sorted(path.name for path in one.iterdir())
    assert sorted(path.name for path in two.iterdir()) == names and len(names) == 2
    assert [file_digest(one / name) for name in names] == [file_digest(two / name) for name in names]


@pytest.mark.slow
def test_two_nodes_of_which_one_is_removed_find_what_one_process_finds(done: Done) -> None:
    one, two = (connect().client.get_run(runs["evaluate"]) for runs in (done.alone, done.placed))
    assert two.info.status == "FINISHED" and "was lost with its node" in two.data.tags["moe.replaced_process"]
    tables = [pd.read_parquet(upstream(run.info.run_id, HYPOTHESES)) for run in (one, two)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    metrics = [{name: value for name, value in run.data.metrics.items() if name not in TIMES} for run in (one, two)]
    assert metrics[0] == metrics[1] and one.data.tags["moe.artifacts"] == two.data.tags["moe.artifacts"]


@pytest.mark.slow
def test_a_signal_to_all_that_the_step_started_stops_them_and_marks_the_run(done: Done) -> None:
    words = [
        f"--{name}={str(value).lower()}" for name, value in {**done.training, **BY_RAY, "seed": 7, "domain_epochs": 200}.items()
    ]
    with subprocess.Popen([sys.executable, "-m", "steps.domain", *words], text=True, stderr=subprocess.PIPE) as step:
        once_there("update_*/manifest.json", lambda: step.send_signal(signal.SIGTERM))
        said = step.stderr.read() if step.stderr else ""
    assert step.returncode == 128 + signal.SIGTERM and "stopped by SIGTERM, run marked KILLED" in said
    assert [run.info.status for run in all_runs()].count("KILLED") == 1


@pytest.mark.slow
def test_nothing_is_left_over(done: Done) -> None:
    assert {run.info.status for run in all_runs()} <= {"FINISHED", "KILLED", "FAILED"} and done.n_before == len(done.runs) + 6
    assert [process.pid for process in psutil.Process().children(recursive=True) if rank(process)] == []
    assert not any(unfinished_root().rglob("batch_*.json")) and "MOE_PROCESS_OF" not in os.environ


@pytest.mark.slow
def test_more_than_the_cluster_has_is_refused_before_a_run_is_opened(done: Done) -> None:
    before = len(all_runs())
    for given, said in (
        ({"num_processes": 3}, "num_processes=3: cluster=auto has room for 2 of 1 CPU"),
        ({"num_processes": 2, "cpus_per_process": 2}, "num_processes=2: cluster=auto has room for 0 of 2 CPUs"),
        ({"gpus_per_process": 1}, "gpus_per_process=1: cluster=auto has no GPU"),
    ):
        data = {"prepare_run_id": done.runs["prepare"], "pretrain_run_id": done.runs["pretrain"]}
        with pytest.raises(ValueError, match=f"^{said}$"):
            embed.run(embed.StepOptions(**data, cluster="auto", **given))
        asked = main.StepOptions.asked(cluster="auto", **given, **{name: 6 for name in ("expert_batch_size", "asr_batch_size")})
        assert said in remote_faults(asked)
    assert len(all_runs()) == before


@pytest.mark.slow
def test_nodes_that_share_no_folder_or_reach_no_store_stop_the_step(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    options = embed.StepOptions(
        prepare_run_id=done.runs["prepare"], pretrain_run_id=done.runs["pretrain"], embedding_batch_size=2, **BY_RAY, **dataclasses.asdict(CONTEXT)
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(placement, "machine", lambda: "another")
        with pytest.raises(
            RuntimeError, match=r"node [\d.]+ cannot use the store sqlite:///.*: set MLFLOW_TRACKING_URI to a server"
        ):
            embed.run(options)
    with monkeypatch.context() as patch:
        patch.setattr(placement, "project_root", lambda: Path("/nowhere"))
        with pytest.raises(
            RuntimeError, match=r"node [\d.]+ does not see this machine's /nowhere/steps; all nodes need it, at the same path"
        ):
            embed.run(options)


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ("somewhere", "cluster=somewhere: must be none, local, auto or ray://HOST:PORT"),
        ("ray://head", "cluster=ray://head: must be none, local, auto or ray://HOST:PORT"),
        ("ray://head:10001/x", "cluster=ray://head:10001/x: must be none, local, auto or ray://HOST:PORT"),
    ],
)
def test_what_is_no_cluster_is_refused(cluster: str, said: str) -> None:
    for asked in (
        lambda: transcribe.StepOptions(audio="a", cluster=cluster),
        lambda: main.check_stages(main.StepOptions.asked(cluster=cluster)),
    ):
        with pytest.raises(ValueError, match=f"^{said}$"):
            asked()


def test_a_cluster_without_the_package_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = "cluster=auto needs ray: pip install -r requirements-cluster.txt"
    assert remote_faults(main.StepOptions.asked(cluster="auto")) == [said]
    with pytest.raises(ValueError, match=f"^{said}$"):
        transcribe.run(transcribe.StepOptions(audio="a", cluster="auto"))


def test_a_process_on_a_node_waits_for_its_threads_as_the_step_does(monkeypatch: pytest.MonkeyPatch) -> None:
    names = re.findall(r"(\w+)=\$", PREFIX)
    for name in names:
        monkeypatch.setenv(name, f"{name} of the step")
    given = placement._environment(ProcessOptions(cluster="auto", num_processes=2), "192.168.1.7", 6379, "")
    assert len(names) == 2 and [given.get(name) for name in names] == [f"{name} of the step" for name in names]


def test_what_only_ray_keeps_is_refused_without_it() -> None:
    for name in ("gpus_per_process", "cpus_per_process"):
        with pytest.raises(ValueError, match=f"^{name}=.: cluster=none does not use it$"):
            transcribe.StepOptions(audio="a", **{name: 1 if name.startswith("gpus") else 2})


def test_a_cluster_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs requirements-cluster.txt")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    for cluster, address in (("auto", "127.0.0.1:9"), ("ray://127.0.0.1:9", "ray://127.0.0.1:9")):
        (said,) = placement.faults(ProcessOptions(cluster=cluster))
        assert said.startswith(f"cluster={cluster}: nothing answers at {address}")


def test_a_machine_that_is_no_node_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    services = pytest.importorskip("ray._private.services", reason="needs requirements-cluster.txt")

    def none_found(address: str) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "canonicalize_bootstrap_address", none_found)
    said = "cluster=auto: no Ray runs on this machine: start it (ray start), or set RAY_ADDRESS"
    assert placement.faults(ProcessOptions(cluster="auto")) == [said]


def test_what_answers_but_is_no_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs requirements-cluster.txt")
    monkeypatch.setattr(placement, "ANSWERS_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        for cluster, named in (("auto", address), (f"ray://{address}", f"ray://{address}")):
            assert placement.faults(ProcessOptions(cluster=cluster)) == [f"cluster={cluster}: what answers at {named} is no Ray"]


def test_a_step_waits_for_nodes_that_others_use_but_not_for_ever_for_those_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        def __init__(self) -> None:
            self.waits = 0

        def wait(self, seconds: float) -> bool:
            self.waits += 1
            return self.waits > 20

    options, group = ProcessOptions(cluster="auto", num_processes=2), Group()
    monkeypatch.setattr(placement, "NODE_S", -1.0)
    monkeypatch.setattr(placement, "_lacking", lambda asked: [])
    placement._wait_for_room("experts", group, options)
    assert group.waits == 21
    monkeypatch.setattr(placement, "_lacking", lambda asked: ["num_processes=2: cluster=auto has room for 1 of 1 CPU"])
    with pytest.raises(
        RuntimeError, match=r"^num_processes=2: cluster=auto has room for 1 of 1 CPU, and for .* min no other node came$"
    ):
        placement._wait_for_room("experts", Group(), options)


def test_more_than_this_machine_has_is_refused_before_ray_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs requirements-cluster.txt")
    monkeypatch.setattr(placement, "_this_machine", lambda: {"CPU": 4.0, "GPU": 1.0})
    assert placement.faults(ProcessOptions(cluster="local", num_processes=2, cpus_per_process=2)) == []
    (said,) = placement.faults(ProcessOptions(cluster="local", num_processes=2, gpus_per_process=1))
    assert said == "num_processes=2: cluster=local has room for 1 of 1 CPU and 1 GPU"
