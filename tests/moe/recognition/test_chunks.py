"""Utterances longer than the window: cut, recognised in chunks and joined, with nothing lost; short ones are left alone."""

import numpy as np
import pandas as pd
import pytest

from moe.audio.sampling import SAMPLE_RATE
from moe.recognition.chunks import Chunks, ChunkSet, cut_rows
from moe.recognition.decoding import decode
from moe.recognition.recognizer import Recognizer
from moe.system import DecodingOptions, Hypothesis
from moe.training.dataset import SpeechDataset
from tests.toys.models import HALF, shared_base, system_of, toy_mixture, whisper_inputs, write_corpus

WINDOW_S = 2.0  # of the toy


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("corpus")
    return write_corpus(root, (1.2, 5.3, 0.6)), root


def test_short_utterances_are_their_own_piece(corpus) -> None:
    manifest, root = corpus
    chunks = cut_rows(manifest.iloc[[0, 2]], str(root), WINDOW_S)
    assert chunks.rows["utterance_id"].tolist() == ["u0", "u2"] and chunks.owner.tolist() == [0, 1]
    vectors = np.random.default_rng(0).random((2, 3), np.float32)
    assert chunks.pool(vectors) is vectors


def test_pieces_cover_the_recording_and_fit_the_window(corpus) -> None:
    manifest, root = corpus
    chunks = cut_rows(manifest, str(root), WINDOW_S)
    long = chunks.rows[chunks.owner == 1]
    assert long["start"].iloc[0] == 0 and long["stop"].iloc[-1] == round(5.3 * SAMPLE_RATE)
    assert long["start"].tolist()[1:] == long["stop"].tolist()[:-1] and (long["duration_s"] <= WINDOW_S).all()
    data = ChunkSet(chunks, root, whisper_inputs())
    joined = np.concatenate([data.waveform(index) for index in np.flatnonzero(chunks.owner == 1)])
    np.testing.assert_array_equal(joined, SpeechDataset.waveform(data, 1))
    assert len(joined) == round(5.3 * SAMPLE_RATE)


def test_a_long_utterance_is_recognised_as_serving_recognises_it(corpus) -> None:
    """The same cuts, the same joining: what evaluate scores is what a user gets."""
    manifest, root = corpus
    system = system_of(toy_mixture())
    chunks = cut_rows(manifest, str(root), WINDOW_S)
    data = ChunkSet(chunks, root, whisper_inputs())
    found = chunks.join(decode(system, data, DecodingOptions()), manifest["utterance_id"])
    waveforms = [SpeechDataset.waveform(data, int(np.flatnonzero(chunks.owner == number)[0])) for number in range(3)]
    served = Recognizer(system).transcribe(waveforms, DecodingOptions())
    assert [each.utterance_id for each in found] == ["u0", "u1", "u2"]
    for ours, theirs in zip(found, served, strict=True):
        assert ours.routing_weights == pytest.approx(theirs.routing_weights, abs=HALF)
        assert np.exp(ours.mean_logprob) == pytest.approx(theirs.confidence, abs=HALF)
    assert system.record.normaliser == "basic" and found[1].n_tokens > found[0].n_tokens


def test_joining_by_hand() -> None:
    rows = pd.DataFrame({"duration_s": [3.0, 1.0, 2.0]})
    parts = [Hypothesis("a#0", "x y", np.float32([1, 0]), mean_logprob=-1.0, n_tokens=2),
             Hypothesis("a#1", "", np.float32([0, 1]), mean_logprob=-4.0, n_tokens=1), Hypothesis("b", "z")]  # fmt: skip
    first, second = Chunks(rows, np.array([0, 0, 1])).join(parts, ["a", "b"])
    assert (first.utterance_id, first.text, first.n_tokens, first.mean_logprob) == ("a", "x y", 3, -2.0)
    assert first.routing_weights.tolist() == [0.75, 0.25] and second is parts[2]
    assert Chunks(rows, np.array([0, 0, 1])).pool(np.array([[1.0], [5.0], [7.0]])).tolist() == [[2.0], [7.0]]


def test_a_selection_keeps_features_labels_and_extras(corpus) -> None:
    manifest, root = corpus
    data = ChunkSet(cut_rows(manifest, str(root), WINDOW_S), root, whisper_inputs())
    data.extras["mark"] = shared_base().model.get_input_embeddings().weight[: len(data), :1].detach()
    last = len(data) - 1
    whole, part = data[last], data.select(np.array([last, 0]))
    assert len(part) == 2 and part[0]["utterance_id"] == whole["utterance_id"]
    np.testing.assert_array_equal(part[0]["mel"], whole["mel"])
    assert part[0]["labels"] == whole["labels"] and part[0]["mark"] == whole["mark"] and part[1]["utterance_id"] == "u0"


def test_times_of_words_count_from_the_start_of_the_utterance() -> None:
    chunks = Chunks(pd.DataFrame({"utterance_id": ["u#0", "u#1"], "duration_s": [2.0, 1.5]}), np.array([0, 0]))
    words = [[{"word": "oak", "start_s": 0.2, "end_s": 0.6}], [{"word": "elm", "start_s": 0.1, "end_s": 1.2}]]
    parts = [
        Hypothesis(name, "x", mean_logprob=-1.0, n_tokens=1, details={"words": row})
        for name, row in zip("ab", words, strict=True)
    ]
    (joined,) = chunks.join(parts, ["u"])
    assert [tuple(word.values()) for word in joined.details["words"]] == [("oak", 0.2, 0.6), ("elm", 2.1, 3.2)]
