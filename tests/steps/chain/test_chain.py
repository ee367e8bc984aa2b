"""The whole chain on a very small synthetic corpus: nested, finished, traceable, reused where it can be, and repeatable."""

import contextlib
import dataclasses
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from analysis.report import percent
from analysis.verdict import best_sentence, size_sentence
from moe.audio.waveforms import load_audio
from moe.files import read_json
from moe.recognition.recognizer import Recognizer
from moe.systems.table import load_system
from steps import asr, baseline, evaluate, experts, main
from steps.chain.screen import OWN_CORPUS, WIDTH
from steps.tracking import artifacts
from steps.tracking.store import connect, project_root
from tests.toys.chain import PLAIN, read_table
from tests.toys.models import HALF
from tests.toys.registry import toy_store

TINY = {
    "mode": "quick", "styles": "typical,parkinsons,als", "num_experts": 3, "n_train_speakers": 2, "n_dev_speakers": 1,
    "n_test_speakers": 1, "n_utterances": 4, "n_dev_utterances": 3, "n_test_utterances": 4, "gating_epochs": 5,
    "n_resamples": 100, "n_workers": 1, "seed": 7,
}  # fmt: skip
pytestmark = pytest.mark.slow
N_TRAIN, N_DEV, N_TEST = 3 * 2 * 4, 3 * 3, 3 * 4
CHAIN = (
    ["synthesize", "prepare", "pretrain", "embed", "cluster", "gate", "experts", "asr", "baseline", "baseline"]
    + ["evaluate"] * 3 + ["compare", "register"]
)  # fmt: skip
TIMES = re.compile("seconds|real_time_factor|loader_stall|per_s$|^system/")
Lines = list[tuple[str, str, str]]  # step, `ran` or `reused`, why
STAGE = re.compile(r"^(\w+)(?: \w+)? +(ran|reused) +[0-9a-f]{8} +[\d.]+ s  \((.*)\)$", re.MULTILINE)
PROGRESS = re.compile(r"^[a-z ,]+: \d+/\d+, .* left")


def run_main(**changes) -> tuple[str, Lines]:
    """Run `main` without pictures: its run id, and what it said of each stage."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run_id = main.run(main.StepOptions.asked(**TINY | {"no_plot": True} | changes))
    return run_id, STAGE.findall(said.getvalue())


def start_main() -> subprocess.CompletedProcess[str]:
    """`main` as `make demo` starts it, in a process of its own."""
    flags = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"MLFLOW_LOGGING_LEVEL": "WARNING", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "steps.main", *flags], env=environment, capture_output=True, text=True)


@contextlib.contextmanager
def own_store(empty_store: Path, folder: Path) -> Iterator[Path]:
    """As the fixture `store`, for longer than one test, and in the project's folder."""
    with toy_store(empty_store, folder) as found, contextlib.chdir(project_root()):  # where the shipped base model lies
        yield found


@dataclasses.dataclass(frozen=True)
class Chain:
    """A finished `main`: its run, what it wrote to the screen, and its stages' runs in order."""

    main_id: str
    out: str
    err: str
    runs: list[Run]

    @property
    def lines(self) -> Lines:
        return STAGE.findall(self.out)

    def of(self, step: str, number: int = 0) -> Run:
        return [run for run in self.runs if run.data.tags["moe.step"] == step][number]

    def path(self, step: str, artifact: str, number: int = 0) -> Path:
        return artifacts.upstream(self.of(step, number).info.run_id, artifact)


@pytest.fixture(scope="module")
def chain(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with own_store(empty_store, tmp_path_factory.mktemp("chain") / "store"):
        said, store = start_main(), connect()
        assert said.returncode == 0, said.stderr
        (run,) = store.client.search_runs([store.experiment_id], "tags.`moe.step` = 'main'")
        yield Chain(run.info.run_id, said.stdout, said.stderr, children(run.info.run_id))


def children(main_id: str) -> list[Run]:
    """Runs nested in a run, oldest first."""
    store = connect()
    return store.client.search_runs(
        [store.experiment_id], f"tags.mlflow.parentRunId = '{main_id}'", order_by=["attributes.start_time ASC"]
    )


def test_several_trainings_are_stacked_and_go_on_as_one_model(chain: Chain) -> None:
    ids = {f"{step}_run_id": chain.of(step).info.run_id for step in ("prepare", "pretrain", "embed", "cluster", "gate")}
    read = {name: ids[name] for name in ("prepare_run_id", "pretrain_run_id")}
    small = {"shared_r": 3, "lora_r": 2, "expert_epochs": 2, "seed": 7, "no_plot": True}
    stacked = experts.run(experts.StepOptions(**read, cluster_run_id=ids["cluster_run_id"], trainings=2, **small))
    record = read_json(artifacts.upstream(stacked, artifacts.EXPERTS_RECORD))
    assert (record["adapters"]["lora_r"], record["adapters"]["shared_r"], record["adapters"]["lora_alpha"]) == (4, 6, 16)
    assert record["kept"] == "the mean of 2 trainings" and record["n_utterances_seen"] == 2 * 2 * N_TRAIN
    mixture = asr.run(asr.StepOptions(**ids, experts_run_id=stacked, asr_epochs=0, seed=7, no_plot=True))
    lora = baseline.run(
        baseline.StepOptions(
            **read,
            system="single_lora",
            adapter_rank=18,
            lora_epochs=4,
            trainings=2,
            averaging="last",
            average_epochs=1,
            seed=7,
            no_plot=True,
        )
    )
    models = {run_id: load_system(artifacts.upstream(run_id, artifacts.MODEL)) for run_id in (mixture, lora)}
    ranks = {run_id: system.shape.adapters for run_id, system in models.items()}
    assert ranks[lora].shared_rank == 18 == ranks[mixture].shared_rank + 3 * ranks[mixture].lora_r
    assert models[lora].record.facts["n_utterances_seen"] == record["n_utterances_seen"]
    run = connect().client.get_run(lora)
    assert "An epoch of each is kept" in run.data.tags["mlflow.note.content"] and "best_epoch" not in run.data.metrics


def test_every_stage_is_a_finished_run_nested_in_main(chain: Chain) -> None:
    assert [run.data.tags["moe.step"] for run in chain.runs] == CHAIN == [step for step, _, _ in chain.lines]
    assert {run.info.status for run in chain.runs} == {"FINISHED"} == {connect().client.get_run(chain.main_id).info.status}
    assert all(word == "ran" for _, word, _ in chain.lines)
    names = [run.info.run_name for run in chain.runs]
    assert all("·" in name for name in names) and len({*names}) == len(names)


def test_the_screen_shows_the_threads_a_line_for_each_stage_and_the_result(chain: Chain) -> None:
    lines = chain.out.splitlines()
    assert lines[0] == "main: 1 thread" and lines[1].startswith(
        "main: corpus=synthetic, systems=whisper_moe,single_lora,zero_shot, "
    )
    assert [line for line in lines if len(line) > WIDTH and not line.startswith("Pictures and tables: ")] == []
    table = pd.read_parquet(chain.path("compare", "comparison.parquet"))
    tests = pd.read_csv(chain.path("compare", "tables/tests.csv"))
    assert best_sentence(table, tests) in lines and all(any(line.startswith(name) for line in lines) for name in table["system"])
    (where,) = [line for line in lines if line.startswith("Pictures and tables: ")]
    assert Path(where.removeprefix("Pictures and tables: ").partition(";")[0]).is_file()
    own = next(number for number, line in enumerate(lines) if line.endswith(OWN_CORPUS))
    said = connect().client.get_run(chain.of("register").info.run_id).data.tags["moe.champion"]
    assert " ".join(lines[own + 1 :]) == f"{said} {size_sentence(table, tests)}"
    assert said.startswith(("No champion of whisper-moe yet.", "Champion of synthetic: "))


def test_main_and_evaluations_show_what_was_used(chain: Chain) -> None:
    """One name for one thing, so that the UI's table, charts and compare page set runs side by side."""
    main_run = connect().client.get_run(chain.main_id)
    used = main_run.data.params
    assert (used["mode"], used["num_experts"], used["n_utterances"], used["corpus_seed"]) == ("quick", "3", "4", "7")
    assert not {"dataset_root", "init_from", "ctc_epochs"} & set(used) or used["init_from"] == "none"
    for number, system in enumerate(("zero_shot", "single_lora", "whisper_moe")):
        run = chain.of("evaluate", number)
        assert main_run.data.metrics[f"test/wer/{system}"] == run.data.metrics["test/wer"] and run.data.params["system"] == system
        assert run.info.run_name == f"evaluate · {system} · WER {percent(run.data.metrics['test/wer'])} · synthetic · seed 7"
    assert main_run.data.metrics["test/wer"] == main_run.data.metrics["test/wer/whisper_moe"]
    assert chain.of("evaluate", 2).data.params.items() >= {"expert_epochs": "1", "top_k": "2", "n_utterances": "4"}.items()
    assert "top_k" not in chain.of("evaluate").data.params  # of the base model: nothing to route
    note = main_run.data.tags["mlflow.note.content"]
    assert note.startswith("Lowest WER: ") and all(run.info.run_id in note for run in chain.runs)


def test_the_command_for_own_recordings_is_one_that_main_takes() -> None:
    options = dict(word.split("=") for word in OWN_CORPUS.split() if "=" in word)
    main.check_stages(main.StepOptions.asked(**options))


def test_no_library_speaks_between_the_stages(chain: Chain) -> None:
    """Bars of MLflow, logs of the Trainer and warnings; lines about the registry and our own progress may stand."""
    registry = ("Successfully registered model", "Registered model", "Created version")
    assert [line for line in chain.err.splitlines() if not line.startswith(registry) and not PROGRESS.match(line)] == []


def test_every_run_says_what_it_did_and_holds_its_artifacts(chain: Chain) -> None:
    wanted = {
        "synthesize": ["corpus/manifest.csv", "plots/styles.png"], "prepare": ["manifest.parquet", "tables/quarantine.parquet"],
        "pretrain": ["base/model.safetensors", "base/training.json"], "embed": ["embeddings/embeddings.safetensors"],
        "cluster": ["clusters/labels.parquet", "plots/embeddings.png", "plots/cluster_by_etiology.png"],
        "gate": ["gate/gate.safetensors", "plots/confusion.png"], "experts": ["experts/expert_2/adapter_config.json", "experts/shared"],
        "asr": ["model/model.json", "model/expert_0", "model/gate"], "baseline": ["model/model.json"],
        "evaluate": ["scores.json", "hypotheses.parquet", "tables/hypotheses.json"], "compare": ["comparison.parquet", "comparison.md"],
        "register": [],
    }  # fmt: skip
    for run in chain.runs:
        step = run.data.tags["moe.step"]
        assert not run.data.tags["mlflow.note.content"].startswith(("#", "*", "\n")), step  # the finding comes first
        assert "SYNTHETIC" in run.data.tags["mlflow.note.content"] or step in ("pretrain", "compare"), step
        for artifact in [*wanted[step], "fingerprint.json"]:
            assert artifacts.upstream(run.info.run_id, artifact).exists(), (step, artifact)
    read_nothing = ("synthesize", "cluster_only", "pretrain", "gate", "register", "baseline")
    assert all(run.inputs.dataset_inputs for run in chain.runs if run.data.tags["moe.step"] not in read_nothing)


def test_no_pickle_is_written_anywhere(chain: Chain, empty_store: Path) -> None:
    """Design 12. The registered model is code and safetensors."""
    root = Path(connect().client.get_run(chain.main_id).info.artifact_uri.removeprefix("file://")).parents[1]
    written = [path for path in root.rglob("*") if path.is_file()]
    assert len(written) > 100
    assert [path for path in written if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy")] == []


def test_counts_add_up_from_corpus_to_hypotheses(chain: Chain) -> None:
    """Design 5, pitfall 7: most utterances were skipped because a stage had not embedded them."""
    prepared = chain.of("prepare").data.metrics
    assert prepared["n_listed"] == N_TRAIN + N_DEV + N_TEST
    assert prepared["n_listed"] == prepared["n_used"] + prepared["n_quarantined"] + prepared["n_beyond_max_samples"]
    manifest = pd.read_parquet(chain.path("prepare", "manifest.parquet"))
    embedded = set(pd.read_parquet(chain.path("embed", "embeddings/index.parquet"))["utterance_id"])
    labelled = set(pd.read_parquet(chain.path("cluster", "clusters/labels.parquet"))["utterance_id"])
    assert embedded == labelled == set(manifest.loc[manifest["split"] != "test", "utterance_id"])  # the test split is not read
    assert chain.of("experts").data.metrics["n_utterances_seen"] == N_TRAIN
    asr, lora = chain.of("asr").data.metrics, chain.of("baseline", 1).data.metrics
    assert asr["n_utterances_seen"] == 2 * N_TRAIN  # experts and joint training, an epoch each
    assert lora["n_utterances_seen"] == asr["n_utterances_seen"] and lora["n_updates"] == asr["n_updates"]
    assert lora["n_trainable"] == pytest.approx(asr["n_trainable"], rel=0.05)


def test_every_test_utterance_is_scored_by_every_system(chain: Chain) -> None:
    manifest = pd.read_parquet(chain.path("prepare", "manifest.parquet"))
    wanted = manifest.loc[manifest["split"] == "test", "utterance_id"].tolist()
    found = []
    for number in range(3):
        hypotheses = pd.read_parquet(chain.path("evaluate", "hypotheses.parquet", number))
        scores = read_json(chain.path("evaluate", "scores.json", number))
        assert hypotheses["utterance_id"].tolist() == wanted and hypotheses["hypothesis"].notna().all()
        wer = hypotheses["word_errors"].sum() / hypotheses["n_words"].sum()
        assert chain.of("evaluate", number).data.metrics["test/wer"] == pytest.approx(wer)
        found.append((scores["system"], scores["test_set_digest"]))
    assert [system for system, _ in found] == ["zero_shot", "single_lora", "whisper_moe"] and len(
        {digest for _, digest in found}
    ) == 1


def test_the_mixture_has_all_the_rows_it_must_be_seen_beside(chain: Chain) -> None:
    """Pitfall 2: a collapsed mixture's WER was reported without a baseline."""
    ablations = read_json(chain.path("evaluate", "scores.json", 2))["ablations"]
    assert set(ablations) == {"learned", "random", "oracle", "cluster", "uniform", "shared", "expert_0", "expert_1", "expert_2"}
    assert set(pd.read_parquet(chain.path("compare", "comparison.parquet"))["system"]) == {
        "base model",
        "one LoRA, same size",
        "Whisper-MoE",
    }
    hypotheses = pd.read_parquet(chain.path("evaluate", "hypotheses.parquet", 2))
    weights = hypotheses[["weight_0", "weight_1", "weight_2"]]
    assert weights.sum(axis=1).to_numpy() == pytest.approx(1) and ((weights > 0).sum(axis=1) <= 2).all()
    assert {"dev/routing_entropy", "train/routing_entropy", "curriculum/top_k"} <= set(chain.of("asr").data.metrics)
    by_epoch = set(read_table(chain.of("asr").info.run_id, "tables/history.json").columns)
    assert {"load/expert_0", "load/als/expert_1", "training_load/expert_2", "training_entropy"} <= by_epoch
    assert "moe.collapse" in chain.of("evaluate", 2).data.tags


def registered_mixture() -> ModelVersion:
    """Its version; the toy deserves no champion, and its control may be registered beside it."""
    found = connect().client.search_model_versions("name='whisper-moe' and tags.system='whisper_moe'")
    return found[0]


def test_a_registered_version_leads_back_to_the_corpus(chain: Chain) -> None:
    """Design 1."""
    version = registered_mixture()
    assert version.tags["synthetic"] == "true" and version.run_id == chain.of("register").info.run_id
    assert set(artifacts.lineage(version.run_id).values()) == set(CHAIN) - {"compare"}
    assert version.tags["model_run_id"] == chain.of("asr").info.run_id
    assert chain.of("asr").info.run_id in artifacts.lineage(version.run_id)


def test_the_registered_model_hears_what_the_recogniser_hears(chain: Chain) -> None:
    """The model in the registry is loaded from there, given the bytes of three recordings, and beams and top-k as parameters."""
    model = mlflow.pyfunc.load_model(f"models:/whisper-moe/{registered_mixture().version}")
    paths = sorted((chain.path("synthesize", "corpus/audio")).glob("*.flac"))[:3]
    table = pd.DataFrame({"audio": [path.read_bytes() for path in paths]})
    recognizer = Recognizer.on_fastest_device(load_system(chain.path("asr", "model")))
    expected = recognizer.transcribe([load_audio(path) for path in paths])
    said = model.predict(table)
    assert said["text"].tolist() == [each.text for each in expected] and any(said["text"])
    assert said["expert_weights"].tolist() == [pytest.approx(list(each.routing_weights), abs=HALF) for each in expected]
    single = model.predict(table, params={"top_k": 1})
    assert all(max(weights) == 1.0 for weights in single["expert_weights"])


def test_the_registered_model_says_what_was_evaluated(chain: Chain) -> None:
    """Every utterance of the test split, sent as a client would: the transcripts that the WER was counted on."""
    hypotheses = pd.read_parquet(chain.path("evaluate", "hypotheses.parquet", 2)).set_index("utterance_id")["hypothesis"]
    manifest = pd.read_parquet(chain.path("prepare", "manifest.parquet")).set_index("utterance_id").loc[hypotheses.index]
    corpus = chain.path("synthesize", "corpus")
    audio = pd.DataFrame({"audio": [(corpus / name).read_bytes() for name in manifest["audio"]]})
    said = mlflow.pyfunc.load_model(f"models:/whisper-moe/{registered_mixture().version}").predict(audio)
    assert said["text"].tolist() == hypotheses.tolist() and len(audio) == N_TEST and any(hypotheses)


def test_a_second_main_reuses_everything(chain: Chain) -> None:
    main_id, lines = run_main()
    assert [step for step, _, _ in lines] == CHAIN
    assert {(word, why) for _, word, why in lines} == {("reused", "same parameters, code and inputs")}
    assert children(main_id) == [] and connect().client.get_run(main_id).info.status == "FINISHED"


def test_systems_side_by_side_are_trained_on_the_same_and_compared_as_in_turn(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The mixture and the base are reused; one LoRA is planned, and has the size and the updates of the one that waited for the mixture."""
    main_id, trunk = run_main(systems_together=2)
    branches, runs = STAGE.findall(capfd.readouterr().out), children(main_id)
    assert [(step, word) for step, word, _ in trunk[:6]] == [(step, "reused") for step in CHAIN[:6]]
    assert sorted((step, word) for step, word, _ in branches) == [
        ("asr", "reused"), ("baseline", "ran"), ("baseline", "reused"),
        ("evaluate", "ran"), ("evaluate", "reused"), ("evaluate", "reused"), ("experts", "reused"),
    ]  # fmt: skip
    assert sorted(run.data.tags["moe.step"] for run in runs) == ["baseline", "compare", "evaluate", "register"]
    lora, waited = next(run.data for run in runs if run.data.tags["moe.step"] == "baseline"), chain.of("baseline", 1).data
    for name in ("n_updates", "n_trainable", "n_utterances_seen"):
        assert lora.metrics[name] == waited.metrics[name], name
    assert lora.metrics["dev/wer_kept"] == pytest.approx(waited.metrics["dev/wer_kept"], abs=0.05)  # but for rounding the same
    monkeypatch.setattr("steps.chain.chain.not_as_planned", lambda *_: "seen fewer")
    again, lines = run_main(systems_together=2)
    assert [(step, word) for step, word, _ in lines[6:]] == [
        (step, "reused") for step in ("baseline", "evaluate", "compare", "register")
    ]
    assert connect().client.get_run(again).data.tags["moe.reused.compare"] == chain.of("compare").info.run_id, (
        "with the one that waited"
    )


def test_a_changed_parameter_re_runs_its_stage_and_what_follows(chain: Chain) -> None:
    _, lines = run_main(expert_epochs=2, until="baseline")
    words = [(step, word) for step, word, _ in lines]
    assert words == [(step, "reused") for step in CHAIN[:6]] + [
        ("experts", "ran"), ("asr", "ran"), ("baseline", "reused"), ("baseline", "ran"),
    ]  # fmt: skip
    assert "expert_epochs 1 → 2" in lines[6][2] and "experts_run_id" in lines[7][2] and "asr_run_id" in lines[9][2]


def test_force_runs_one_stage_and_until_ends_after_one(chain: Chain) -> None:
    main_id, lines = run_main(force="gate", until="gate")
    assert [(step, word) for step, word, _ in lines] == [(step, "reused") for step in CHAIN[:5]] + [("gate", "ran")]
    assert lines[-1][2] == "forced" and [run.data.tags["moe.step"] for run in children(main_id)] == ["gate"]
    forced = children(main_id)[0]
    assert timeless(forced) == timeless(chain.of("gate"))  # the same seed, the same gate


def test_without_pretraining_gate_and_experts_start_random(chain: Chain) -> None:
    main_id, lines = run_main(skip_pretraining=True, gating_epochs=60, until="asr")  # 60: the default, since there is no gate run
    assert [(step, word) for step, word, _ in lines] == [(step, "reused") for step in CHAIN[:3]] + [("asr", "ran")]
    asr = children(main_id)[0].info.run_id
    assert not (artifacts.upstream(asr, "model") / "clusters").exists()
    options = evaluate.StepOptions(prepare_run_id=chain.of("prepare").info.run_id, model_run_id=asr, ablations=False, **PLAIN)
    scores = read_json(artifacts.upstream(evaluate.run(options), "scores.json"))
    assert scores["gating_accuracy"] is None and scores["system"] == "whisper_moe" and scores["n_utterances_seen"] == N_TRAIN


def test_one_system_alone_takes_only_the_stages_it_needs(chain: Chain) -> None:
    main_id, lines = run_main(
        systems="zero_shot", gating_epochs=60, register_system="any"
    )  # 60: the default, since there is no gate run
    words = [(step, word) for step, word, _ in lines]
    assert words == [(step, "reused") for step in ("synthesize", "prepare", "pretrain", "baseline", "evaluate")] + [
        ("register", "ran")
    ]
    assert connect().client.get_run(children(main_id)[0].info.run_id).data.tags["moe.registered"] == "zero-shot/1"


def timeless(run: Run) -> dict[str, float]:
    """The metrics of a run that are not times."""
    return {name: value for name, value in run.data.metrics.items() if not TIMES.search(name)}


def test_the_same_seed_in_another_store_gives_the_same_metrics_even_after_a_kill(
    chain: Chain, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 11 and design 11: a stage that is stopped is not taken for done, what was done is kept, the result is the same."""

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    outer = mlflow.get_tracking_uri()
    with own_store(empty_store, tmp_path / "other"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(experts, "train_experts", stopped)
            run_main(until="asr")
        store = connect()
        killed = store.client.search_runs([store.experiment_id], "attributes.status = 'KILLED'")
        assert {run.data.tags["moe.step"] for run in killed} == {"main", "experts"}
        main_id, lines = run_main(until="asr")
        assert [word for _, word, _ in lines] == ["reused"] * 6 + ["ran"] * 2 and "is KILLED" in lines[6][2]
        again = {
            run.data.tags["moe.step"]: timeless(run)
            for run in store.client.search_runs([store.experiment_id], "attributes.status = 'FINISHED'")
        }
    mlflow.set_tracking_uri(outer)
    for step in CHAIN[:8]:
        assert again[step] == timeless(chain.of(step)), step
    assert again["asr"]["dev/wer_kept"] >= 0 and "dev/loss" in again["asr"]


def test_the_shipped_base_says_that_it_is_synthetic(chain: Chain) -> None:
    assert "SYNTHETIC" in chain.of("pretrain").data.tags["mlflow.note.content"]
    assert (chain.path("pretrain", "base") / "LICENSE").exists()


def test_the_chain_leaves_its_pictures(chain: Chain) -> None:
    plots = [path for run in chain.runs for path in Path(run.info.artifact_uri.removeprefix("file://")).glob("plots/*.png")]
    assert len(plots) >= 20 and all(path.stat().st_size > 5000 for path in plots)
