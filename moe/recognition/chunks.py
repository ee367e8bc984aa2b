"""Utterances longer than the model's window: cut at their quietest places, recognised chunk by chunk and joined; nothing is lost.

Where every utterance fits, the chunks are the utterances.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moe.audio.cutting import cut_quietly
from moe.audio.sampling import SAMPLE_RATE
from moe.corpora.locations import Root
from moe.corpora.manifest import read_utterance
from moe.corpora.rows import Rows
from moe.system import EXPERT_USE, WORDS, Hypothesis, Inputs
from moe.training.dataset import SpeechDataset

WHOLE = [(0, -1)]  # of an utterance that is not cut


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Utterances in chunks.

    Attributes:
        rows: manifest rows of the chunks, in order, with `start` and `stop` in samples (−1: to the end).
        owner: (n_chunks,) number of the utterance that each belongs to, rising.
    """

    rows: pd.DataFrame
    owner: np.ndarray

    @property
    def n_utterances(self) -> int:
        """Utterances that the chunks make up."""
        return int(self.owner[-1]) + 1

    def join(self, hypotheses: Sequence[Hypothesis], utterance_ids: Sequence[str]) -> list[Hypothesis]:
        """The chunks' hypotheses as those of their utterances: texts in a row, weights by duration, log-probabilities by tokens."""
        parts: list[list[tuple[float, Hypothesis]]] = [[] for _ in utterance_ids]
        for owner, seconds, hypothesis in zip(self.owner, self.rows["duration_s"], hypotheses, strict=True):
            parts[owner].append((seconds, hypothesis))
        return [part[0][1] if len(part) == 1 else _joined(name, part) for name, part in zip(utterance_ids, parts, strict=True)]

    def pool(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors of chunks (n_chunks, D) → means by duration (n_utterances, D)."""
        seconds = self.rows["duration_s"].to_numpy(float)
        if len(self.owner) == self.n_utterances:
            return vectors
        sums = np.zeros((self.n_utterances, vectors.shape[1]))
        np.add.at(sums, self.owner, vectors * seconds[:, None])
        return (sums / np.bincount(self.owner, seconds)[:, None]).astype(vectors.dtype)


class ChunkSet(SpeechDataset):
    """Chunks as model inputs."""

    def __init__(self, chunks: Chunks, root: Root, inputs: Inputs, shards_together: int | None = None) -> None:
        super().__init__(chunks.rows, root, inputs, shards_together=shards_together)

    def waveform(self, index: int) -> np.ndarray:
        """Samples of a chunk, (n_samples,)."""
        row = self.rows[index]
        whole = super().waveform(index)
        return whole if row["stop"] < 0 else whole[row["start"] : row["stop"]]

    def select(self, indices: np.ndarray) -> "ChunkSet":
        """Some of the chunks, by indices (n,), with what is known of them."""
        chosen = copy.copy(self)
        chosen.rows = self.rows.take(indices)
        chosen._n_before = self._n_before[indices]
        chosen.extras = {name: values[indices] for name, values in self.extras.items()}
        chosen._waveforms = {}
        chosen._examples = {new: self._examples[old] for new, old in enumerate(indices.tolist()) if old in self._examples}
        chosen._cached_bytes = 0  # they are counted where they were made
        return chosen


def cut_rows(rows: pd.DataFrame, root: Root, window_s: float | None) -> Chunks:
    """The chunks of a manifest's utterances; only those longer than the window are read (None: any length fits)."""
    rows, window = rows.reset_index(drop=True), math.inf if window_s is None else window_s
    spans = {number: _spans(row, root, window) for number, row in _longer(rows, window)}
    owner = np.repeat(np.arange(len(rows)), [len(spans.get(number, WHOLE)) for number in range(len(rows))])
    starts, stops = np.array([span for number in range(len(rows)) for span in spans.get(number, WHOLE)], int).reshape(-1, 2).T
    cut, place = stops >= 0, np.arange(len(owner)) - np.searchsorted(owner, owner)
    chunks = rows.iloc[owner].reset_index(drop=True).assign(start=starts, stop=stops)
    chunks["utterance_id"] = chunks["utterance_id"].mask(cut, chunks["utterance_id"] + "#" + pd.Series(place).astype("str"))
    chunks["duration_s"] = chunks["duration_s"].mask(cut, (stops - starts) / SAMPLE_RATE)
    return Chunks(chunks, owner)


def _longer(rows: pd.DataFrame, window_s: float) -> Iterator[tuple[int, dict]]:
    """Number and row of the utterances longer than the window."""
    numbers = np.flatnonzero(rows["duration_s"] > window_s)
    return zip(numbers.tolist(), Rows(rows).take(numbers), strict=True)


def _spans(row: dict, root: Root, window_s: float) -> list[tuple[int, int]]:
    return cut_quietly(read_utterance(root, row), int(window_s * SAMPLE_RATE))


def _joined(utterance_id: str, parts: Sequence[tuple[float, Hypothesis]]) -> Hypothesis:
    seconds, hypotheses = zip(*parts, strict=True)
    weights, gate = (
        _mean([getattr(each, name) for each in hypotheses], seconds) for name in ("routing_weights", "gate_probabilities")
    )
    n_tokens = sum(each.n_tokens for each in hypotheses)
    logprob = sum(each.mean_logprob * each.n_tokens for each in hypotheses) / n_tokens
    text = " ".join(each.text for each in hypotheses if each.text)
    return Hypothesis(
        utterance_id,
        text,
        weights,
        mean_logprob=logprob,
        n_tokens=n_tokens,
        gate_probabilities=gate,
        details=_details([each.details for each in hypotheses], seconds),
    )


def _details(parts: Sequence[Mapping[str, Any]], seconds: Sequence[float]) -> dict[str, Any]:
    """Numbers and the use of experts averaged by duration, words in the order of their chunks; anything else from the longest chunk."""
    longest = parts[int(np.argmax(seconds))]
    numbers = [name for name, value in longest.items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
    averaged: dict[str, Any] = {name: float(np.average([part[name] for part in parts], weights=seconds)) for name in numbers}
    if EXPERT_USE in longest:
        averaged[EXPERT_USE] = np.average([part[EXPERT_USE] for part in parts], axis=0, weights=seconds).tolist()
    return {**longest, **averaged, **({WORDS: _words(parts, seconds)} if WORDS in longest else {})}


def _words(parts: Sequence[Mapping[str, Any]], seconds: Sequence[float]) -> list[dict[str, Any]]:
    """The words of all chunks, with times from the start of the utterance."""
    starts = np.cumsum([0.0, *seconds[:-1]]).tolist()
    return [
        {**word, **{name: round(start + word[name], 3) for name in ("start_s", "end_s")}}
        for start, part in zip(starts, parts, strict=True)
        for word in part[WORDS]
    ]


def _mean(rows: Sequence[np.ndarray | None], seconds: Sequence[float]) -> np.ndarray | None:
    given = [row for row in rows if row is not None]
    return np.average(given, axis=0, weights=seconds).astype(given[0].dtype) if given else None
