"""Step `ctc` on a toy corpus: trained, evaluated, compared, registered, transcribed and served as every system is."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import soundfile

from moe.files import read_json
from moe.recognition.recognizer import Recognizer
from moe.serving.requests import ServiceOptions, check_params
from moe.serving.service import Service
from moe.systems.table import load_system
from steps import compare, ctc, evaluate, prepare, register, transcribe
from steps.registry import versions
from steps.tracking import artifacts
from steps.tracking.store import connect
from tests.toys.ctc import SMALL
from tests.toys.models import RATE, toy_wave
from tests.toys.registry import log_toy_asr, toy_store

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


@dataclasses.dataclass(frozen=True)
class Done:
    """Runs of the chain."""

    corpus: Path
    prepared: str
    trained: str
    evaluated: str

    def metrics(self, run_id: str) -> dict[str, float]:
        return connect().client.get_run(run_id).data.metrics

    def table(self, name: str) -> pd.DataFrame:
        table = read_json(artifacts.upstream(self.trained, name))
        return pd.DataFrame(table["data"], columns=table["columns"])


def write_corpus(folder: Path) -> Path:
    """Ten chords; one of them has more to say than it has time for."""
    rows = ["path,transcript,speaker,etiology,split"]
    for number, (split, transcript) in enumerate(zip(SPLITS, TRANSCRIPTS, strict=True)):
        soundfile.write(folder / f"u{number}.wav", toy_wave(number % 3, 0.6 + 0.05 * number), RATE, subtype="FLOAT")
        rows.append(f"u{number}.wav,{transcript},{split}{number % 2},{('als', 'typical')[number % 2]},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    with toy_store(empty_store, tmp_path_factory.mktemp("ctc") / "store"):
        corpus = write_corpus(tmp_path_factory.mktemp("corpus"))
        prepared = prepare.run(prepare.StepOptions(corpus="folder", dataset_root=str(corpus), no_plot=True, max_quarantined=0.5))
        trained = ctc.run(ctc.StepOptions(prepare_run_id=prepared, max_quarantined=0.2, **OPTIONS))
        evaluated = evaluate.run(evaluate.StepOptions(prepare_run_id=prepared, model_run_id=trained, no_plot=True))
        yield Done(corpus, prepared, trained, evaluated)


def test_what_is_trained_is_counted_and_scored(done: Done) -> None:
    found = done.metrics(done.trained)
    assert found["n_trainable"] == found["n_total"] == found["n_trainable/encoder"] + found["n_trainable/head"]
    assert {"dev/cer", "dev/wer", "dev/loss", "dev/blank_share", "dev/cer_kept"} <= set(found)
    assert found["n_utterances_seen"] == 2 * 5


def test_an_utterance_with_an_infinite_loss_is_left_out_by_name(done: Done) -> None:
    table = done.table("tables/infeasible.json")
    assert len(table) == 1 and table["reference"][0].startswith("elm oak ash elm")
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
    for row in table.itertuples():
        assert " ".join(word["word"] for word in row.words) == row.hypothesis


def test_too_many_infinite_losses_stop_the_step_before_training_and_name_the_way_out(done: Done) -> None:
    with pytest.raises(ValueError, match=r"max_quarantined=0.05: 1 of 6 train utterances have more labels.*add_adapter=false"):
        ctc.run(ctc.StepOptions(prepare_run_id=done.prepared, add_adapter=True, **OPTIONS))


def test_a_vocabulary_that_is_empty_stops_the_step(done: Done) -> None:
    with pytest.raises(ValueError, match="vocabulary is empty.*min_character_count=100"):
        ctc.run(ctc.StepOptions(prepare_run_id=done.prepared, min_character_count=100, **OPTIONS))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ctc_train": "adapter"}, "ctc_train=adapter: there is none; set add_adapter=true"),
        ({"head_updates": 5}, "head_updates=5: ctc_model=scratch has no tensors to keep"),
        ({"selection": "loss"}, "selection='loss': must be one of wer, cer"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ctc.StepOptions(prepare_run_id="p", **given)


def test_it_is_asked_for_nothing_that_it_has_not(done: Done) -> None:
    with pytest.raises(ValueError, match="decoding_top_k=2: Wav2Vec2-BERT CTC does not take it; it takes nothing"):
        evaluate.run(evaluate.StepOptions(prepare_run_id=done.prepared, model_run_id=done.trained, decoding_top_k=2))


def test_it_is_compared_with_a_mixture_registered_transcribed_and_served(done: Done, tmp_path: Path) -> None:
    options = evaluate.StepOptions(
        prepare_run_id=done.prepared, model_run_id=log_toy_asr(tmp_path), no_plot=True, ablations=False
    )
    runs = f"{done.evaluated},{evaluate.run(options)}"
    compared = compare.run(compare.StepOptions(evaluate_run_ids=runs, n_resamples=100, no_plot=True))
    table = pd.read_parquet(artifacts.upstream(compared, artifacts.COMPARISON))
    assert dict(zip(table["system"], table["role"], strict=True)) == {"Wav2Vec2-BERT CTC": "candidate", "Whisper-MoE": "mixture"}
    registered = register.run(register.StepOptions(evaluate_run_ids=runs, register_system="wav2vec2_ctc"))
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
    assert [param.name for param in params] == ["return_routing", "beam_size"]
    assert {"prepare", "ctc", "evaluate", "register"} <= set(artifacts.lineage(registered).values())
