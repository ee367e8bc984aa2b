"""Waveforms → text with a saved recogniser: what serving, notebooks and the command line use.

Audio longer than the model's window is cut at its quietest places, recognised chunk by chunk and joined; nothing is dropped. A chunk
is heard in a context of its own length, so that what is recognised in it does not depend on the recordings beside it.
"""

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import WhisperProcessor

from moe.audio.cutting import Span, cut_quietly
from moe.audio.waveforms import SAMPLE_RATE
from moe.recognition.decoding import DecodingOptions, Hypothesis, confidence, decode
from moe.systems.whisper.features import log_mel, valid_frames, window_seconds
from moe.systems.whisper.tokens import label_ids
from moe.systems.whisper_moe.folder import SavedModel, load_model
from moe.text.normalisers import normalise
from moe.training.precision import PrecisionOptions, fastest_device, precision


@dataclasses.dataclass(frozen=True)
class Segment:
    """A recognised chunk of a recording: start and end in seconds, its text, and exp of its mean token log-probability."""

    start_s: float
    end_s: float
    text: str
    confidence: float


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was recognised in a recording.

    `routing_weights` are those of its chunks, averaged by duration (empty without experts); `confidence` is exp of the mean
    log-probability of all its tokens.
    """

    text: str
    segments: tuple[Segment, ...]
    routing_weights: tuple[float, ...]
    confidence: float


class Recognizer(Protocol):
    """What every system here can do."""

    def transcribe(
        self, waveforms: Sequence[np.ndarray], options: DecodingOptions, top_k: int | None = None, language: str | None = None
    ) -> list[Transcript]:
        """Transcripts of waveforms, float32 (n_samples,) at 16 kHz, in their order."""


class WhisperRecognizer:
    """A mixture, one LoRA or a bare Whisper, read from its folder. Calls from several threads take turns."""

    def __init__(self, saved: SavedModel) -> None:
        self.saved = saved
        self._turn = threading.Lock()

    @classmethod
    def load(cls, folder: Path) -> "WhisperRecognizer":
        """Read a recogniser from the artifact `model` of a run."""
        saved = load_model(Path(folder))
        saved.model.to(fastest_device()).use_precision(precision(PrecisionOptions()))
        return cls(saved)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that may be asked for: the one it was trained for, and those of a multilingual base."""
        config = self.saved.model.base.generation_config
        known = getattr(config, "lang_to_id", None) or {} if getattr(config, "is_multilingual", False) else {}
        return tuple(dict.fromkeys([self.saved.record.language, *(token.strip("<|>") for token in known)]))

    def transcribe(
        self,
        waveforms: Sequence[np.ndarray],
        options: DecodingOptions = DecodingOptions(),
        top_k: int | None = None,
        language: str | None = None,
    ) -> list[Transcript]:
        """Transcripts of waveforms, all chunks of all recordings batched together.

        Raises:
            ValueError: an empty waveform, `top_k` outside 1 … number of experts, or a language that the model has no token for.
        """
        empty = [number for number, waveform in enumerate(waveforms) if not len(waveform)]
        if empty:
            raise ValueError(f"recording {empty[0]} holds no audio")
        cuts = [self.cut(waveform) for waveform in waveforms]
        chunks = [waveform[start:stop] for waveform, spans in zip(waveforms, cuts, strict=True) for start, stop in spans]
        hypotheses = iter(self.recognise(chunks, options, top_k, language))
        return [self.join(spans, [next(hypotheses) for _ in spans]) for spans in cuts]

    def check(self, top_k: int | None, language: str | None) -> None:
        """Refuse what this model cannot do.

        Raises:
            ValueError: see `transcribe`.
        """
        most = max(1, self.saved.record.n_experts)
        if top_k is not None and not 1 <= top_k <= most:
            raise ValueError(f"top_k={top_k}: must be between 1 and {most}, the number of experts")
        if language is not None and language not in self.languages:
            raise ValueError(f"language={language!r}: the model knows {', '.join(self.languages)}")

    def cut(self, waveform: np.ndarray) -> list[Span]:
        """Spans of a waveform that fit the model's window."""
        return cut_quietly(waveform, int(window_seconds(self.saved.processor.feature_extractor) * SAMPLE_RATE))

    def context_frames(self, n_samples: int) -> int:
        """Mel frames that the encoder hears for a chunk of so many samples; chunks of the same number share a pass."""
        extractor = self.saved.processor.feature_extractor
        return self.saved.record.context.n_frames(valid_frames(n_samples, extractor), extractor)

    def recognise(
        self, chunks: Sequence[np.ndarray], options: DecodingOptions, top_k: int | None = None, language: str | None = None
    ) -> list[Hypothesis]:
        """Hypotheses of chunks that fit the window, in their order.

        Raises:
            ValueError: see `check`.
        """
        self.check(top_k, language)
        with self._turn, self._asked(top_k, language):
            return decode(self.saved.model, WaveformSet(chunks, self.saved.processor), self.saved.record.context, options)

    def join(self, spans: Sequence[Span], hypotheses: Sequence[Hypothesis]) -> Transcript:
        """The hypotheses of a recording's chunks as one transcript."""
        segments = tuple(self._segment(span, hypothesis) for span, hypothesis in zip(spans, hypotheses, strict=True))
        text = " ".join(segment.text for segment in segments if segment.text)
        weights = ()
        if hypotheses[0].routing_weights is not None:
            rows, lengths = [each.routing_weights for each in hypotheses], [stop - start for start, stop in spans]
            weights = tuple(np.average(rows, axis=0, weights=np.array(lengths, float)).tolist())
        return Transcript(text, segments, weights, confidence(hypotheses))

    def _segment(self, span: Span, hypothesis: Hypothesis) -> Segment:
        text = normalise(self.saved.record.normaliser, hypothesis.text)
        return Segment(span[0] / SAMPLE_RATE, span[1] / SAMPLE_RATE, text, confidence([hypothesis]))

    @contextlib.contextmanager
    def _asked(self, top_k: int | None, language: str | None) -> Iterator[None]:
        """The model with this top-k and language inside the block, as it was after it."""
        model, other = self.saved.model, language not in (None, self.saved.record.language)
        phase, generation = model.phase, model.base.generation_config
        if top_k is not None:
            model.phase = dataclasses.replace(phase, top_k=top_k)
        if other:
            model.base.generation_config = copy.deepcopy(generation)
            model.base.generation_config.language = language
        try:
            yield
        finally:
            model.phase, model.base.generation_config = phase, generation


class WaveformSet:
    """Waveforms in memory with what `decode` asks of a dataset."""

    def __init__(self, waveforms: Sequence[np.ndarray], processor: WhisperProcessor) -> None:
        self.waveforms, self.processor = waveforms, processor
        self.durations = np.array([len(waveform) / SAMPLE_RATE for waveform in waveforms])
        self.utterance_ids = [str(number) for number in range(len(waveforms))]

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mel = log_mel(self.waveforms[index], self.processor.feature_extractor)
        n_frames = min(valid_frames(len(self.waveforms[index]), self.processor.feature_extractor), mel.shape[1])
        return {"utterance_id": str(index), "mel": mel, "n_frames": n_frames, "labels": label_ids(self.processor.tokenizer, "")}
