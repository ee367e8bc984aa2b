"""Step `ctc` on a toy corpus: trained, evaluated, compared, registered, transcribed and served as every system is."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import soundfile

from moe.corpora.manifest import read_manifest
from moe.files import read_json
from moe.recognition.recognizer import Recognizer
from moe.serving.requests import ServiceOptions, check_params
from moe.serving.service import Service
from moe.systems.table import load_system
from moe.systems.wav2vec2_ctc.frames import Frames
from moe.systems.wav2vec2_ctc.options import SHIPPED
from steps import compare, ctc, evaluate, prepare, register, transcribe
from steps.inputs.feasible import share_to_allow
from steps.registry import versions
from steps.reports.training import GROUPS
from steps.tracking import artifacts, runs
from steps.tracking.store import connect
from tests.toys.chain import PLAIN, Runs, read_table
from tests.toys.ctc import SMALL
from tests.toys.models import RATE, toy_wave, write_chords
from tests.toys.registry import ToyOptions, log_toy_asr, toy_store

WORDS = ("oak", "elm", "ash")
RARE = "ф"  # in one train utterance, in dev and in test
SPLITS = ("train",) * 6 + ("dev",) * 2 + ("test",) * 2
OPTIONS = {**SMALL, "ctc_epochs": 2, "ctc_batch_size": 2, "mask_time_prob": 0.1, "mask_time_length": 3}
TRANSCRIPTS = [
    "oak",
    "elm ash",
    f"ash {RARE}",
    "oak",
    "elm oak ash " * 6,
    "ash",
    f"oak {RARE}",
    "elm жж",
    f"ash {RARE}",
    "oak жж",
]


EXPERTS = {"ctc_train": "lora", "ctc_experts": 3, "cluster_run_id": "c"}


@dataclasses.dataclass(frozen=True)
class Done(Runs):
    """And the run that scored what it trained."""

    evaluated: str


@pytest.fixture(scope="module")
def done(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    with toy_store(empty_store, tmp_path_factory.mktemp("ctc") / "store"):
        corpus = write_chords(tmp_path_factory.mktemp("corpus"), TRANSCRIPTS, SPLITS)
        prepared = prepare.run(prepare.StepOptions(corpus="folder", dataset_root=str(corpus), no_plot=True, max_quarantined=0.5))
        trained = ctc.run(ctc.StepOptions(prepare_run_id=prepared, max_quarantined=0.2, **OPTIONS))
        evaluated = evaluate.run(evaluate.StepOptions(prepare_run_id=prepared, model_run_id=trained, **PLAIN))
        yield Done(corpus, prepared, trained, evaluated)


def test_what_is_trained_is_counted_and_scored(done: Done) -> None:
    found = done.metrics(done.trained)
    groups = done.table(GROUPS).set_index("group")["n_trainable"]
    assert found["n_trainable"] == found["n_total"] == groups["encoder"] + groups["head"]
    assert {"dev/cer", "dev/wer", "dev/loss", "dev/blank_share", "dev/cer_kept", "dev/infinite_losses"} <= set(found)
    assert found["n_utterances_seen"] == 2 * 5


def test_an_utterance_with_an_infinite_loss_is_left_out_by_name(done: Done) -> None:
    table = done.table("tables/infeasible.json")
    assert table["split"].tolist() == ["train"] and table["reference"][0].startswith("elm oak ash elm")
    assert done.metrics(done.trained)["n_infeasible"] == 1


def test_the_vocabulary_is_of_the_train_split_alone(done: Done) -> None:
    vocabulary = load_system(artifacts.upstream(done.trained, artifacts.MODEL)).vocabulary
    assert set(vocabulary.characters) == set("".join(WORDS))
    counts = done.table("tables/characters.json").set_index("character")
    assert not counts["known"][RARE] and counts["count"][RARE] == 1 and "ж" not in counts.index
    unknown = done.table("tables/unknown_characters.json")
    assert sorted(zip(unknown["split"], unknown["characters"], strict=True)) == [("dev", "ж"), ("dev", RARE), ("train", RARE)]


def test_the_hypotheses_have_words_with_their_times(done: Done) -> None:
    table = pd.read_parquet(artifacts.upstream(done.evaluated, artifacts.HYPOTHESES))
    assert {"words", "blank_share"} <= set(table.columns) and "expert" not in table.columns
    assert table.set_index("utterance_id")["unknown_characters"].tolist() == [1, 2]  # ф and жж, which train has once and never
    for row in table.itertuples():
        assert " ".join(word["word"] for word in row.words) == row.hypothesis


def test_where_nobody_speaks_there_are_neither_text_nor_words(done: Done) -> None:
    options = evaluate.StepOptions(prepare_run_id=done.prepared, model_run_id=done.trained, speech_threshold=0.3, **PLAIN)
    table = pd.read_parquet(artifacts.upstream(evaluate.run(options), artifacts.HYPOTHESES))
    assert table["no_speech"].all() and (table["hypothesis"] == "").all() and all(len(words) == 0 for words in table["words"])


def test_shards_are_shuffled_together_only_where_there_are_some(done: Done) -> None:
    with pytest.raises(ValueError, match="shards_together=2: recordings of this corpus are files of their own, not in shards"):
        ctc.run(ctc.StepOptions(prepare_run_id=done.prepared, shards_together=2, no_plot=True, **OPTIONS))


def test_corrupt_recordings_are_listed_and_leave_the_loss_curve_as_it_is(done: Done, tmp_path: Path) -> None:
    """Document 004's second experiment, where such files made the validation loss infinite."""
    corpus = write_chords(tmp_path, TRANSCRIPTS, SPLITS)
    soundfile.write(tmp_path / "whole.flac", toy_wave(0, 0.7), RATE)
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "whole.flac").unlink()
    broken = {"cut": whole[: len(whole) // 3], "zeros": bytes(len(whole)), "header": b"RIFF" + whole[4:], "empty": b""}
    with (corpus / "manifest.csv").open("a", encoding="utf-8") as manifest:
        for name, content in broken.items():
            (tmp_path / f"{name}.flac").write_bytes(content)
            manifest.write(f"\n{name}.flac,oak,train0,typical,train")
    prepared = prepare.run(prepare.StepOptions(corpus="folder", dataset_root=str(corpus), no_plot=True, max_quarantined=0.5))
    quarantined = pd.DataFrame(**read_json(artifacts.upstream(prepared, "tables/quarantine.json")))
    assert {f"{name}.flac" for name in broken} <= set(quarantined["utterance_id"]) | set(quarantined["utterance_id"] + ".flac")
    trained = ctc.run(ctc.StepOptions(prepare_run_id=prepared, max_quarantined=0.2, no_plot=True, **OPTIONS))
    for name in ("train/loss", "dev/loss"):
        curves = [[each.value for each in connect().client.get_metric_history(run, name)] for run in (done.trained, trained)]
        assert curves[0] == curves[1] and len(curves[0]) > 0


SHORT = {"ctc_epochs": 1, "ctc_batch_size": 2}
TRAINED = {**SHORT, "ctc_model": "TRAINED"}  # the model that the fixture trained, as a checkpoint
OTHER = "name another ctc_model than [^ ]*, with shorter frames, or "


@pytest.mark.parametrize(
    ("given", "ways"),
    [
        (OPTIONS, "set ctc_frame_ms below 20, or "),
        ({**OPTIONS, "add_adapter": True}, "set add_adapter=false, or "),
        (TRAINED, f"{OTHER}set ctc_model=scratch and ctc_frame_ms below 20, or "),
        ({**TRAINED, "ctc_train": "head"}, OTHER),
        ({**TRAINED, "ctc_train": "adapter", "add_adapter": True}, "set add_adapter=false and another ctc_train, or "),
    ],
    ids=["scratch", "adapter", "checkpoint", "head of a checkpoint", "adapter alone"],
)
def test_too_many_infinite_losses_stop_the_step_before_training_and_name_what_helps(done: Done, given: dict, ways: str) -> None:
    options = {**given, "ctc_model": str(artifacts.upstream(done.trained, artifacts.MODEL))} if "ctc_model" in given else given
    with pytest.raises(
        ValueError, match=rf"=0.05: 1 of 6 train .* ms, e.g. \['u4.*'\]; {ways}raise max_quarantined to 0.17, or prepare"
    ):
        ctc.run(ctc.StepOptions(prepare_run_id=done.prepared, **options))


def test_nothing_is_shorter_than_a_mel() -> None:
    assert ctc._more_outputs(ctc.StepOptions(prepare_run_id="p", ctc_model="scratch", ctc_frame_ms=10), Frames(stack=1)) is None


def test_a_model_as_it_comes_is_never_asked_for_the_frames_of_one_from_scratch() -> None:
    """The shipped one is in use where none is named."""
    options = ctc.StepOptions(prepare_run_id="p")
    shipped = dataclasses.replace(options, ctc_model=options.chosen_model(suits_shipped=True))
    said = ctc._more_outputs(shipped, Frames(stack=4))
    assert (
        said == f"name another ctc_model than {SHIPPED}, with shorter frames, or set ctc_model=scratch and ctc_frame_ms below 40"
    )


def test_the_share_that_is_named_is_enough_and_hardly_more() -> None:
    for n_all in range(2, 150):
        for n_left_out in range(1, n_all):
            share = share_to_allow(n_left_out, n_all)
            assert n_left_out <= share * n_all and share <= 1 and share - n_left_out / n_all < 0.0101


def test_a_vocabulary_that_is_empty_stops_the_step(done: Done) -> None:
    with pytest.raises(ValueError, match="vocabulary is empty.*min_character_count=100"):
        ctc.run(ctc.StepOptions(prepare_run_id=done.prepared, min_character_count=100, **OPTIONS))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ctc_train": "adapter"}, "ctc_train=adapter: there is none; set add_adapter=true"),
        ({"ctc_model": "scratch", "head_updates": 5}, "head_updates=5: ctc_model=scratch has no tensors to keep"),
        ({"ctc_train": "lora", "ctc_model": "scratch"}, "ctc_train=lora: ctc_model=scratch has nothing to keep"),
        ({"ctc_train": "lora", "shared_expert": False}, "ctc_train=lora: shared_expert=false leaves ctc_experts=1 no LoRA"),
        ({"ctc_train": "lora", "ctc_experts": 3}, "ctc_experts=3: needs as many clusters; set cluster_run_id"),
        ({"ctc_experts": 3, "cluster_run_id": "c"}, "ctc_experts=3: experts are LoRA; set ctc_train=lora"),
        ({**EXPERTS, "top_k": 4}, "top_k=4: ctc_experts=3 has no more to mix"),
        ({"cluster_run_id": "c"}, "cluster_run_id=c: ctc_experts=1 leaves nothing to route"),
        ({"lora_r": 8}, "lora_r=8: ctc_train=all has no LoRA"),
        (
            {**EXPERTS, "top_k": 1, "balance": "none", "gate_learning_rate": 0.1},
            "gate_learning_rate=0.1: top_k=1 gives the gate no",
        ),
        ({"selection": "loss"}, "selection='loss': must be one of wer, cer"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ctc.StepOptions(prepare_run_id="p", **given)


def test_nepali_as_openslr_54_has_it_comes_out_in_words_of_devanagari(done: Done, tmp_path: Path) -> None:
    lines = []
    for number in range(9):
        name, text = f"{number:02d}abc", ("२ घर छ।", "तीन‍ किताब")[number % 2]
        path = tmp_path / "data" / name[:2] / f"{name}.flac"
        path.parent.mkdir(parents=True)
        soundfile.write(path, toy_wave(number % 3, 0.9 + 0.02 * number), RATE)
        lines.append(f"{name}\t{number // 3}spk\t{text}")
    (tmp_path / "utt_spk_text.tsv").write_text("\n".join(lines), encoding="utf-8")
    given = {"corpus": "openslr", "dataset_root": str(tmp_path), "language": "ne", "dev_share": 0.3, "test_share": 0.3}
    prepared = prepare.run(prepare.StepOptions(**given, no_plot=True))
    trained = ctc.run(ctc.StepOptions(prepare_run_id=prepared, **{**OPTIONS, "ctc_epochs": 1}))
    evaluated = evaluate.run(evaluate.StepOptions(prepare_run_id=prepared, model_run_id=trained, **PLAIN))
    table = pd.read_parquet(artifacts.upstream(evaluated, artifacts.HYPOTHESES))
    assert set(table["reference"]) == {"दुई घर छ", "तीन किताब"} and table["language"].unique().tolist() == ["ne"]
    assert "test/grapheme_cer" in done.metrics(evaluated) and (table["n_graphemes"] < table["n_chars"]).all()
    assert load_system(artifacts.upstream(trained, artifacts.MODEL)).record.normaliser == "nepali"


@pytest.fixture(scope="module")
def clusters(done: Done, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that says of every utterance that its etiology is its cluster."""
    rows = read_manifest(artifacts.upstream(done.prepared, artifacts.MANIFEST))
    cluster = (rows["etiology"] == "typical").astype(int)
    labels = rows[["utterance_id", "etiology", "split"]].assign(cluster=cluster, soft_0=1.0 - cluster, soft_1=1.0 * cluster)
    folder = tmp_path_factory.mktemp("labels") / artifacts.CLUSTERS
    folder.mkdir()
    labels.to_parquet(folder / Path(artifacts.LABELS).name)
    with runs.step_run("cluster", ToyOptions(prepare_run_id=done.prepared), "clusters") as step:
        step.log_folder(folder, artifacts.CLUSTERS)
    return step.run_id


def experts_of(done: Done, clusters: str, **changes) -> ctc.StepOptions:
    network = str(artifacts.upstream(done.trained, artifacts.MODEL))
    given = {"prepare_run_id": done.prepared, "cluster_run_id": clusters, "ctc_model": network, "ctc_train": "lora"}
    plan = {"ctc_epochs": 1, "ctc_batch_size": 2, "max_quarantined": 0.2, "lora_r": 2, "no_plot": True}
    return ctc.StepOptions(**given | plan | {"ctc_experts": 2} | changes)


def test_experts_start_from_clusters_and_are_evaluated_as_any_mixture(done: Done, clusters: str) -> None:
    trained = ctc.run(experts_of(done, clusters, alignment_coefficient=0.1))
    found = done.metrics(trained)
    groups = read_table(trained, GROUPS).set_index("group")["n_trainable"]
    assert set(groups.index) == {"lora", "head", "gate"} and found["n_trainable"] == groups.sum() < found["n_total"]
    (epoch,) = read_table(trained, "tables/history.json").to_dict("records")
    assert epoch["load/expert_0"] + epoch["load/expert_1"] == pytest.approx(1)
    system = load_system(artifacts.upstream(trained, artifacts.MODEL))
    assert system.record.role == "mixture" and system.expert_of_etiology == {"als": 0, "typical": 1}
    evaluated = evaluate.run(evaluate.StepOptions(prepare_run_id=done.prepared, model_run_id=trained, **PLAIN))
    assert {"test/routing_entropy", "test/load_entropy"} <= set(done.metrics(evaluated))
    assert read_table(evaluated, "tables/expert_load.json")["load"].sum() == pytest.approx(1)
    ablations = read_json(artifacts.upstream(evaluated, artifacts.SCORES))["ablations"]
    assert {"learned", "expert_0", "expert_1", "uniform", "random"} <= set(ablations)


def test_as_many_experts_as_clusters(done: Done, clusters: str) -> None:
    with pytest.raises(ValueError, match=f"ctc_experts=3: cluster run {clusters} has 2 clusters; give as many"):
        ctc.run(experts_of(done, clusters, ctc_experts=3))


def test_it_is_asked_for_nothing_that_it_has_not(done: Done) -> None:
    with pytest.raises(ValueError, match="top_k=2: Wav2Vec2-BERT CTC has no experts"):
        evaluate.run(evaluate.StepOptions(prepare_run_id=done.prepared, model_run_id=done.trained, decoding_top_k=2))


def test_it_is_compared_with_a_mixture_registered_transcribed_and_served(done: Done, tmp_path: Path) -> None:
    options = evaluate.StepOptions(prepare_run_id=done.prepared, model_run_id=log_toy_asr(tmp_path), ablations=False, **PLAIN)
    runs = f"{done.evaluated},{evaluate.run(options)}"
    compared = compare.run(compare.StepOptions(evaluate_run_ids=runs, n_resamples=100, no_plot=True))
    table = pd.read_parquet(artifacts.upstream(compared, artifacts.COMPARISON))
    assert dict(zip(table["system"], table["role"], strict=True)) == {"Wav2Vec2-BERT CTC": "candidate", "Whisper-MoE": "mixture"}
    registered = register.run(
        register.StepOptions(evaluate_run_ids=runs, register_system="wav2vec2_ctc", registered_model="wav2vec2-ctc")
    )
    address = "models:/wav2vec2-ctc@challenger"
    transcribe.run(
        transcribe.StepOptions(audio=str(done.corpus), model=address, output_dir=str(tmp_path / "out"), speech_threshold=0.0)
    )
    service = Service(Recognizer(load_system(versions.recognizer_dir(address))))
    recording = (done.corpus / "u0.wav").read_bytes()
    answer = service.answer([recording], check_params({}, ServiceOptions(), service.usual))[0].transcript.text
    service.close()
    assert json.loads((tmp_path / "out" / "u0.json").read_text(encoding="utf-8"))["text"] == answer
    params = mlflow.models.get_model_info(address).signature.params.params
    assert {"return_routing", "beam_size", "top_k"} <= {param.name for param in params}
    assert {"prepare", "ctc", "evaluate", "register"} <= set(artifacts.lineage(registered).values())
