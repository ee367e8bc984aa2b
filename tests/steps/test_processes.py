"""A step in two processes: one run, logged once, with the result of one process; a process that is killed is replaced."""

import dataclasses
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import soundfile
import torch

from moe.systems.whisper.base_model import save_base
from moe.training import processes
from steps import asr, decoder, domain, evaluate, gate, main, prepare, pretrain
from steps.tracking.artifacts import MODEL, upstream
from steps.tracking.store import connect
from tests.toys.killing import kill_second, rank
from tests.toys.models import RATE, WORDS, toy_wave
from tests.toys.registry import toy_store
from tests.toys.training import toy_base

SPLITS = ("train",) * 9 + ("dev",) * 3 + ("test",)
OPTIONS = {
    "context_floor_s": 1.0, "context_silence_s": 0.2, "context_bucket_s": 0.25, "domain_epochs": 4, "domain_batch_size": 4, "no_plot": True,
    "eval_every_n_epochs": 2, "logging_steps": 1, "save_every_n_updates": 1, "unfreeze_encoder_blocks": 1, "token_dropout": 1.0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Done:
    """The same training by one process and by two, of which the second was killed once."""

    alone: str
    shared: str
    killed: tuple[int, ...]


def write_corpus(folder: Path) -> Path:
    rows = ["path,transcript,speaker,etiology,split"]
    for number, split in enumerate(SPLITS):
        soundfile.write(folder / f"u{number}.wav", toy_wave(number, 0.5 + 0.05 * number), RATE, subtype="FLOAT")
        rows.append(
            f"u{number}.wav,{' '.join(WORDS[: 1 + number % 3])},{split}{number % 2},{('als', 'typical')[number % 2]},{split}"
        )
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    with toy_store(empty_store, tmp_path_factory.mktemp("processes") / "store"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "places", lambda: (2, "cores"))
        corpus, base = write_corpus(tmp_path_factory.mktemp("corpus")), tmp_path_factory.mktemp("base") / "toy"
        save_base(toy_base(), base)
        prepared = prepare.run(prepare.StepOptions(corpus="folder", dataset_root=str(corpus), no_plot=True))
        pretrained = pretrain.run(pretrain.StepOptions(whisper_model=str(base), prepare_run_id=prepared, no_plot=True))
        given = {"prepare_run_id": prepared, "pretrain_run_id": pretrained, **OPTIONS}
        alone, killed = domain.run(domain.StepOptions(**given)), list[int]()
        killer = threading.Thread(target=kill_second, args=[killed, "update_*/manifest.json"])
        killer.start()
        shared = domain.run(domain.StepOptions(num_processes=2, **given))
        killer.join()
        yield Done(alone, shared, tuple(killed))


def curve(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect().client.get_metric_history(run_id, name)]


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_give_the_result_of_one_logged_once(done: Done) -> None:
    one, two = (connect().client.get_run(run_id) for run_id in (done.alone, done.shared))
    assert done.killed and two.info.status == "FINISHED" and "was killed by SIGKILL" in two.data.tags["moe.replaced_process"]
    for name in ("train/loss", "dev/loss", "dev/cer"):
        expected = curve(done.alone, name)
        assert [step for step, _ in curve(done.shared, name)] == [step for step, _ in expected] and expected
        assert [value for _, value in curve(done.shared, name)] == pytest.approx([value for _, value in expected], abs=1e-4)
    names = [{name for name in run.data.metrics if not name.startswith("system/")} for run in (one, two)]
    assert names[0] == names[1] and two.data.params["num_processes"] == "2"
    assert one.data.tags["moe.artifacts"] == two.data.tags["moe.artifacts"] and upstream(done.shared, MODEL).is_dir()
    assert one.data.tags["moe.fingerprint"] == two.data.tags["moe.fingerprint"]


@pytest.mark.slow
def test_nothing_is_left_over(done: Done) -> None:
    client = connect().client
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert [run.info.run_id for run in runs if run.info.status == "RUNNING"] == [] and len(runs) == 4
    assert [process.pid for process in psutil.Process().children(recursive=True) if rank(process)] == []
    assert "MOE_PROCESS_OF" not in os.environ


def test_what_cannot_be_shared_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "places", lambda: (4, "cores"))
    given = {"prepare_run_id": "p", "pretrain_run_id": "q"}
    with pytest.raises(ValueError, match=r"num_processes=5: this machine has 4 cores"):
        domain.StepOptions(**given, num_processes=5, domain_batch_size=5)
    with pytest.raises(ValueError, match=r"domain_batch_size=16: must be a multiple of num_processes=3"):
        domain.StepOptions(**given, num_processes=3)
    with pytest.raises(ValueError, match=r"num_processes=0: must be at least 1"):
        domain.StepOptions(**given, num_processes=0)
    with pytest.raises(ValueError, match=r"num_processes=2: .* is taken as it is"):
        decoder.StepOptions(num_processes=2)
    with pytest.raises(ValueError, match=r"num_processes=2: asr_epochs=0 trains nothing"):
        asr.StepOptions(**given, skip_pretraining=True, num_experts=2, asr_epochs=0, num_processes=2)
    with pytest.raises(ValueError, match=r"decoder_batch_size=32: must be a multiple of num_processes=3"):
        decoder.StepOptions(init_from="scratch", num_processes=3)
    with pytest.raises(ValueError, match=r"expert_batch_size=15: must be a multiple of num_processes=2"):
        main.check_stages(main.StepOptions.asked(num_processes=2, expert_batch_size=15))
    with pytest.raises(TypeError, match="num_processes"):
        gate.StepOptions(embed_run_id="p", cluster_run_id="m", num_processes=2)  # it takes seconds


def test_a_model_is_cut_only_over_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "places", lambda: (4, "cores"))
    given, two = {"prepare_run_id": "p", "pretrain_run_id": "q", "strategy": "fsdp"}, {"num_processes": 2}
    unseen = "strategy=fsdp shards over GPUs; this machine has none; set strategy=ddp"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for asked in (
        lambda: domain.StepOptions(**given, **two),
        lambda: decoder.StepOptions(init_from="scratch", strategy="fsdp", **two),
        lambda: pretrain.StepOptions(init_from="scratch", tokenizer="characters", prepare_run_id="p", strategy="fsdp", **two),
        lambda: main.check_stages(main.StepOptions.asked(strategy="fsdp", **two)),
    ):
        with pytest.raises(ValueError, match=f"^{unseen}$"):
            asked()
    with pytest.raises(ValueError, match=r"^strategy=fsdp shards over GPUs; gpus_per_process=0 gives its processes none"):
        domain.StepOptions(**given, **two, cluster="auto")
    assert domain.StepOptions(**given, **two, cluster="auto", gpus_per_process=1).strategy == "fsdp"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert domain.StepOptions(**given, **two).strategy == "fsdp"
    with pytest.raises(
        ValueError, match=r"^strategy=fsdp shards over several processes; num_processes=1 is one; set strategy=ddp$"
    ):
        domain.StepOptions(**given)
    with pytest.raises(TypeError, match="strategy"):
        evaluate.StepOptions(prepare_run_id="p", model_run_id="m", strategy="fsdp")  # it trains nothing
