"""Waveforms → text with a saved recogniser: what serving, notebooks and the command line use.

Audio longer than the model's window is cut at its quietest places, recognised piece by piece and joined; nothing is dropped.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import WhisperProcessor

from moe.audio import SAMPLE_RATE
from moe.decoding import DecodingOptions, Hypothesis, decode
from moe.features import log_mel, valid_frames, window_seconds
from moe.saved_model import SavedModel, load_model
from moe.text import normalise
from moe.tokens import label_ids

QUIET_S = 0.2  # loudness is averaged over so much when a place to cut is sought
CUT_SHARE = 0.5  # a piece is at least this share of the window


@dataclasses.dataclass(frozen=True)
class Segment:
    """A recognised piece of a recording: start and end in seconds, and its text."""

    start_s: float
    end_s: float
    text: str


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was recognised in a recording; `routing_weights` are those of its pieces, averaged by duration (empty without experts)."""

    text: str
    segments: tuple[Segment, ...]
    routing_weights: tuple[float, ...]


class Recognizer(Protocol):
    """What every system here can do."""

    def transcribe(self, waveforms: Sequence[np.ndarray], options: DecodingOptions, top_k: int | None = None) -> list[Transcript]:
        """Transcripts of waveforms, float32 (n_samples,) at 16 kHz, in their order."""


class WhisperRecognizer:
    """A mixture, one LoRA or a bare Whisper, read from its folder."""

    def __init__(self, saved: SavedModel) -> None:
        self.saved = saved

    @classmethod
    def load(cls, folder: Path) -> "WhisperRecognizer":
        """Read a recogniser from the artifact `model` of a run."""
        return cls(load_model(Path(folder)))

    def transcribe(
        self, waveforms: Sequence[np.ndarray], options: DecodingOptions = DecodingOptions(), top_k: int | None = None
    ) -> list[Transcript]:
        """Transcripts of waveforms, all pieces of all recordings batched together.

        Raises:
            ValueError: an empty waveform, or `top_k` outside 1 … number of experts.
        """
        self._check(waveforms, top_k)
        window = window_seconds(self.saved.processor.feature_extractor)
        cuts = [cut_quietly(waveform, int(window * SAMPLE_RATE)) for waveform in waveforms]
        pieces = [waveform[start:stop] for waveform, spans in zip(waveforms, cuts, strict=True) for start, stop in spans]
        model, before = self.saved.model, self.saved.model.phase
        if top_k is not None:
            model.phase = dataclasses.replace(before, top_k=top_k)
        try:
            hypotheses = iter(decode(model, WaveformSet(pieces, self.saved.processor), self.saved.record.context, options))
        finally:
            model.phase = before
        return [self._join([(span, next(hypotheses)) for span in spans]) for spans in cuts]

    def _check(self, waveforms: Sequence[np.ndarray], top_k: int | None) -> None:
        empty = [number for number, waveform in enumerate(waveforms) if not len(waveform)]
        if empty:
            raise ValueError(f"recording {empty[0]} holds no audio")
        n_experts = self.saved.record.n_experts
        if top_k is not None and not 1 <= top_k <= max(1, n_experts):
            raise ValueError(f"top_k={top_k}: must be between 1 and {max(1, n_experts)}, the number of experts")

    def _join(self, pieces: Sequence[tuple[tuple[int, int], Hypothesis]]) -> Transcript:
        segments = tuple(
            Segment(start / SAMPLE_RATE, stop / SAMPLE_RATE, normalise(self.saved.record.normaliser, piece.text))
            for (start, stop), piece in pieces
        )
        text = " ".join(segment.text for segment in segments if segment.text)
        if pieces[0][1].routing_weights is None:
            return Transcript(text, segments, ())
        lengths = np.array([stop - start for (start, stop), _ in pieces], float)
        weights = np.average([piece.routing_weights for _, piece in pieces], axis=0, weights=lengths)
        return Transcript(text, segments, tuple(float(weight) for weight in weights))


class WaveformSet:
    """Waveforms in memory with what `decode` asks of a dataset."""

    def __init__(self, waveforms: Sequence[np.ndarray], processor: WhisperProcessor) -> None:
        self.waveforms, self.processor = waveforms, processor
        self.durations = np.array([len(waveform) / SAMPLE_RATE for waveform in waveforms])

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mel = log_mel(self.waveforms[index], self.processor.feature_extractor)
        n_frames = min(valid_frames(len(self.waveforms[index]), self.processor.feature_extractor), mel.shape[1])
        return {"utterance_id": str(index), "mel": mel, "n_frames": n_frames, "labels": label_ids(self.processor.tokenizer, "")}


def cut_quietly(waveform: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """Spans (start, stop) in samples that cover a waveform, none longer than `longest`, cut where it is quietest."""
    spans, start = [], 0
    width = int(QUIET_S * SAMPLE_RATE)
    while len(waveform) - start > longest:
        earliest = start + int(CUT_SHARE * longest)
        loudness = _loudness(waveform[earliest : start + longest], width)
        stop = earliest + int(loudness.argmin()) + 1
        spans.append((start, stop))
        start = stop
    return [*spans, (start, len(waveform))]


def _loudness(region: np.ndarray, width: int) -> np.ndarray:
    """Sum of magnitudes over `width` samples around each sample (fewer at the ends), (n_samples,) both."""
    sums = np.concatenate([[0.0], np.cumsum(np.abs(region), dtype=np.float64)])
    middle = np.arange(len(region))
    first, last = np.maximum(middle - width // 2, 0), np.minimum(middle + width // 2 + 1, len(region))
    return (sums[last] - sums[first]) / (last - first)
