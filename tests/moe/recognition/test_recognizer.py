"""Waveforms of any length become transcripts, and no sample is lost on the way."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.audio.cutting import cut_quietly
from moe.audio.voice_activity import SPEECH_THRESHOLD
from moe.recognition.decoding import decode
from moe.recognition.recognizer import Recognizer, Segment, WaveformSet
from moe.system import DecodingOptions
from moe.systems.whisper_moe.asks import MixtureAsk, WhisperAsk
from tests.toys.corpora import RATE
from tests.toys.models import HALF, N_EXPERTS, toy_wave
from tests.toys.recognizers import recognizer
from tests.toys.speech import spoken

OPTIONS = DecodingOptions(max_tokens_per_s=1.0)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    return recognizer(tmp_path_factory.mktemp("base"))


@given(st.integers(0, 60_000), st.integers(1_000, 9_000), st.integers(0, 99))
def test_pieces_cover_every_sample_once_and_none_is_too_long(n_samples: int, longest: int, seed: int) -> None:
    spans = cut_quietly(np.random.default_rng(seed).normal(size=n_samples).astype(np.float32), longest)
    assert spans[0][0] == 0 and spans[-1][1] == n_samples
    assert all(stop == start for (_, stop), (start, _) in zip(spans[:-1], spans[1:], strict=True))
    assert all(0 < stop - start <= longest for start, stop in spans) or n_samples == 0
    assert all(stop - start >= longest // 2 for start, stop in spans[:-1])


def test_recordings_are_cut_where_it_is_quiet() -> None:
    wave = toy_wave(1, 5.0)
    for second in (1.6, 3.1):
        wave[int(second * RATE) - 2400 : int(second * RATE) + 2400] = 0
    cuts = [stop / RATE for _, stop in cut_quietly(wave, 2 * RATE)[:-1]]
    assert cuts == pytest.approx([1.6, 3.1], abs=0.1)


def test_a_recording_that_fits_is_one_piece() -> None:
    assert cut_quietly(np.zeros(100, np.float32), 100) == [(0, 100)]


def test_a_long_recording_is_recognised_to_its_end(mixture) -> None:
    wave = np.concatenate([toy_wave(number, 1.3) for number in range(4)])  # 5.2 s, the window holds 2 s
    (found,) = mixture.transcribe([wave], OPTIONS)
    assert found.segments[0].start_s == 0 and found.segments[-1].end_s == len(wave) / RATE
    assert all(a.end_s == b.start_s for a, b in zip(found.segments, found.segments[1:], strict=False))
    assert len(found.segments) >= 3 and found.text == " ".join(segment.text for segment in found.segments if segment.text)
    chunks = [wave[round(s.start_s * RATE) : round(s.end_s * RATE)] for s in found.segments]
    alone = [mixture.transcribe([chunk], OPTIONS)[0] for chunk in chunks]
    assert sum(map(len, chunks)) == len(wave) and all(len(each.segments) == 1 for each in alone)
    assert [s.confidence for s in found.segments] == pytest.approx([each.confidence for each in alone], abs=HALF)
    assert min(s.confidence for s in found.segments) <= found.confidence <= max(s.confidence for s in found.segments)
    lengths = [len(chunk) for chunk in chunks]
    expected = np.average([each.routing_weights for each in alone], axis=0, weights=lengths)
    np.testing.assert_allclose(found.routing_weights, expected, atol=HALF)


def test_transcripts_come_in_the_order_of_the_recordings(mixture) -> None:
    waves = [toy_wave(number, seconds) for number, seconds in enumerate((0.5, 3.0, 1.5, 0.5))]
    found = mixture.transcribe(waves, OPTIONS)
    assert [transcript.segments[-1].end_s for transcript in found] == [0.5, 3.0, 1.5, 0.5]
    again = mixture.transcribe(waves[::-1], OPTIONS)[::-1]
    assert [transcript.text for transcript in again] == [transcript.text for transcript in found]
    assert mixture.transcribe([], OPTIONS) == []


def test_it_says_what_decoding_says(mixture) -> None:
    waves = [toy_wave(number, 1.0) for number in range(3)]
    plain = decode(mixture.system, WaveformSet(waves, mixture.system.inputs), OPTIONS)
    for hypothesis, transcript in zip(plain, mixture.transcribe(waves, OPTIONS), strict=True):
        assert transcript.text.split() == transcript.segments[0].text.split()
        np.testing.assert_allclose(transcript.routing_weights, hypothesis.routing_weights, atol=HALF)
        sure = np.exp(hypothesis.mean_logprob)
        assert transcript.segments == (Segment(0.0, 1.0, transcript.segments[0].text, pytest.approx(sure)),)
        assert 0 < transcript.confidence == pytest.approx(sure)


@pytest.mark.parametrize("top_k", [1, 2, N_EXPERTS])
def test_top_k_is_that_of_the_call_and_only_of_the_call(mixture, top_k: int) -> None:
    before = mixture.system.module.phase
    (found,) = mixture.transcribe([toy_wave(0, 1.0)], OPTIONS, MixtureAsk(top_k=top_k))
    assert sum(weight > 0 for weight in found.routing_weights) == top_k and sum(found.routing_weights) == pytest.approx(1)
    assert mixture.system.module.phase == before


@pytest.mark.parametrize(
    ("top_k", "allowed"),
    [(0, "at least 1"), (-1, "at least 1"), (N_EXPERTS + 1, f"between 1 and {N_EXPERTS}, the number of experts")],
)
def test_a_top_k_out_of_range_is_refused(mixture, top_k: int, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"top_k={top_k}: must be {allowed}"):
        mixture.transcribe([toy_wave(0, 0.5)], OPTIONS, MixtureAsk(top_k=top_k))


def test_a_failed_call_leaves_the_model_as_it_was(mixture, monkeypatch) -> None:
    before = mixture.system.module.phase
    monkeypatch.setattr("moe.recognition.recognizer.decode", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mixture.transcribe([toy_wave(0, 0.5)], OPTIONS, MixtureAsk(top_k=1))
    assert mixture.system.module.phase == before


def test_an_empty_recording_is_refused_by_number(mixture) -> None:
    with pytest.raises(ValueError, match="recording 1 holds no audio"):
        mixture.transcribe([toy_wave(0, 0.5), np.zeros(0, np.float32)], OPTIONS)


def test_silence_and_one_sample_are_recordings(mixture) -> None:
    found = mixture.transcribe([np.zeros(RATE, np.float32), np.zeros(1, np.float32)], OPTIONS)
    assert len(found) == 2 and np.isfinite(found[1].routing_weights).all()


def test_without_experts_there_are_no_routing_weights(tmp_path: Path) -> None:
    single = recognizer(tmp_path, n_experts=0)
    (found,) = single.transcribe([toy_wave(0, 3.0)], OPTIONS)
    assert found.routing_weights == () and len(found.segments) == 2
    assert single.system.ask_type is WhisperAsk and not hasattr(WhisperAsk(), "top_k")


@pytest.mark.parametrize("language", ["nl", "english", ""])
def test_a_language_the_model_has_no_token_for_is_refused(mixture, language: str) -> None:
    with pytest.raises(ValueError, match=f"language='{language}': the model knows en"):
        mixture.transcribe([toy_wave(0, 0.5)], OPTIONS, MixtureAsk(language=language))


def test_what_is_recognised_does_not_depend_on_the_company(mixture) -> None:
    """A batch used to hear as much silence as its longest recording: 7 of 150 transcripts of a real mixture differed (see moe.recognition.decoding)."""
    waves = [toy_wave(number, seconds) for number, seconds in enumerate((0.3, 0.9, 1.4, 1.9, 0.6))]
    options = DecodingOptions(max_tokens_per_s=8.0)
    alone = [mixture.transcribe([wave], options)[0] for wave in waves]
    together = mixture.transcribe(waves, options)
    assert [one.text for one in together] == [one.text for one in alone] and any(one.text for one in alone)
    assert [one.confidence for one in together] == pytest.approx([one.confidence for one in alone], abs=HALF)


def test_what_a_system_does_not_take_is_refused_by_name_and_not_dropped(tmp_path: Path) -> None:
    one_lora = recognizer(tmp_path, n_experts=0)
    with pytest.raises(ValueError, match="top_k=1: one LoRA, same size takes language"):
        one_lora.transcribe([toy_wave(1, 0.5)], OPTIONS, MixtureAsk(top_k=1))
    assert one_lora.transcribe([toy_wave(1, 0.5)], OPTIONS, MixtureAsk()) == one_lora.transcribe([toy_wave(1, 0.5)], OPTIONS)


def test_a_chunk_in_which_nobody_speaks_is_empty_and_says_so(tmp_path: Path) -> None:
    """A long pause in a long recording: its chunks have no words, the others have those they have alone."""
    open_to_all = recognizer(tmp_path)
    gated = Recognizer(open_to_all.system, SPEECH_THRESHOLD)
    pause = np.random.default_rng(0).normal(0, 1e-3, 10 * RATE).astype(np.float32)
    (found,) = gated.transcribe([np.concatenate([spoken(), pause, spoken()])], OPTIONS)
    (everything,) = open_to_all.transcribe([np.concatenate([spoken(), pause, spoken()])], OPTIONS)
    silent = [segment for segment in found.segments if segment.no_speech]
    assert len(silent) >= 4 and not any(segment.text or segment.confidence for segment in silent) and not found.no_speech
    kept = [(segment, other) for segment, other in zip(found.segments, everything.segments, strict=True) if not segment.no_speech]
    assert len(kept) >= 2 and all(segment.text == other.text for segment, other in kept)
    assert sum(found.routing_weights) == pytest.approx(1)
    (nobody,) = gated.transcribe([pause], OPTIONS)
    assert (nobody.text, nobody.no_speech, nobody.confidence, nobody.routing_weights) == ("", True, 0.0, ())
    (before, within, after) = gated.transcribe([spoken(), pause, spoken()], OPTIONS)
    assert before == after and within == nobody and gated.transcribe([spoken()], OPTIONS)[0].text == before.text
