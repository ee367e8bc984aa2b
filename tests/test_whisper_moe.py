"""The Python front: `load` and `transcribe`, whatever a recording comes as."""

from pathlib import Path

import numpy as np
import pytest

import whisper_moe
from moe.audio.waveforms import load_audio
from moe.recognition.recognizer import Recognizer
from moe.system import DecodingOptions
from moe.systems.table import load_system
from steps import register
from tests.toys.models import HALF
from tests.toys.registry import WRONG, log_toy_asr, log_toy_evaluation, log_toy_rivals, toy_recording


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.toys.recognizers import recognizer

    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("model") / "model"
    recognizer(base).system.save(folder)
    return folder


def test_a_path_bytes_and_samples_have_one_transcript_and_a_list_has_a_list(folder: Path, tmp_path: Path) -> None:
    audio = toy_recording(1, 1.5)
    path = tmp_path / "a.wav"
    path.write_bytes(audio)
    recogniser = whisper_moe.load(folder, speech_threshold=0)
    found = [recogniser.transcribe(each) for each in (str(path), path, audio, load_audio(audio))]
    several = recogniser.transcribe([path, audio])
    assert len({each.text for each in found}) == 1 and [each.text for each in several] == [found[0].text] * 2
    (expected,) = Recognizer(load_system(folder)).transcribe([load_audio(audio)], DecodingOptions(word_times=True))
    assert [word.word for word in found[0].words] == [word.word for word in expected.words] != []
    assert found[0].text == expected.text and found[0].routing_weights == pytest.approx(expected.routing_weights, abs=HALF)
    assert recogniser.record.system == "whisper_moe" and recogniser.transcribe([]) == []
    assert recogniser.transcribe(path, top_k=1).routing_weights.count(0.0) == 3


def test_half_precision_is_computed_where_it_is_asked_for(folder: Path) -> None:
    half, full = (whisper_moe.load(folder, speech_threshold=0, fp16=fp16) for fp16 in (True, False))
    assert [each.recognizer.system.model.precision for each in (half, full)] == ["bf16", "fp32"]
    (one,), (other,) = (each.transcribe([toy_recording(1, 1.5)]) for each in (half, full))
    assert one.routing_weights == pytest.approx(other.routing_weights, abs=0.05) and one.confidence == pytest.approx(
        other.confidence, abs=0.05
    )


@pytest.mark.parametrize(
    ("audio", "asked", "said"),
    [
        ("gone.wav", {}, "gone.wav: no such file"),
        (["gone.wav"], {}, "gone.wav: no such file"),
        (np.float32(1), {}, "is no recording"),
        (np.zeros(0, np.float32), {}, "empty: the recording has no samples"),
        (np.ones(8000, np.float32), {"topk": 1}, "topk=1: Whisper-MoE takes backoff, language, top_k"),
        (np.ones(8000, np.float32), {"top_k": 9}, "top_k=9: must be between 1 and 4"),
        (np.ones(8000, np.float32), {"language": "xx"}, "language='xx'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(folder: Path, audio: object, asked: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        whisper_moe.load(folder).transcribe(audio, **asked)


def test_the_champion_is_loaded_from_the_registry(store: Path, tmp_path: Path) -> None:
    asr = log_toy_asr(tmp_path)
    register.run(
        register.StepOptions(evaluate_run_ids=",".join([log_toy_evaluation(asr, WRONG), *log_toy_rivals(asr)]), n_resamples=100)
    )
    audio = toy_recording(1, 0.8)
    named, by_run = (whisper_moe.load(name, 0).transcribe(audio).text for name in ("models:/whisper-moe@champion", asr))
    assert named == by_run
    with pytest.raises(ValueError, match="not in the registry"):
        whisper_moe.load("models:/nobody@champion")
