"""Waveforms → text with any system: what serving, notebooks and the command line use.

Audio longer than the model's window is cut at its quietest places, recognised chunk by chunk and joined; nothing is dropped. A chunk
shares a pass only with chunks of its own length bucket, so what is recognised in it does not depend on the recordings beside it.
A chunk in which nobody speaks is not decoded: its text is empty and `no_speech` says why.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe.audio.cutting import Span, cut_quietly
from moe.audio.sampling import SAMPLE_RATE
from moe.audio.voice_activity import VoiceActivity
from moe.experts.people.person import Person
from moe.recognition.decoding import confidence, decode, device_of
from moe.recognition.words import Word, spread
from moe.system import EXPERT_USE, WORDS, Ask, DecodingOptions, Hypothesis, Inputs, System
from moe.text.normalisers import normalise
from moe.training.batches import collate, to_device
from moe.training.precision import PrecisionOptions, fastest_device, precision


@dataclasses.dataclass(frozen=True)
class Segment:
    """A chunk of a recording: start and end in seconds, its text, exp of its mean token log-probability, and whether nobody speaks in it.

    With `word_times` start and end are those of the speech in it, and `words` its words, where the system says when they were said.
    """

    start_s: float
    end_s: float
    text: str
    confidence: float
    no_speech: bool = False
    words: tuple[Word, ...] = ()


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was recognised in a recording.

    `routing_weights` are those of its chunks with speech, averaged by duration (empty where there are none, or no experts),
    and so is `expert_use` of each layer;
    `confidence` is exp of the mean log-probability of all its tokens, 0 where nothing was decoded; `no_speech` says that nobody
    speaks in any of its chunks.
    """

    text: str
    segments: tuple[Segment, ...]
    routing_weights: tuple[float, ...]
    confidence: float
    no_speech: bool = False
    expert_use: tuple[tuple[float, ...], ...] = ()

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments; empty where the system does not time them, or was not asked to."""
        return tuple(word for segment in self.segments for word in segment.words)


NO_SPEECH = {"no_speech": True}  # details of a hypothesis that stands for a chunk in which nobody speaks
SPOKEN = "spoken"  # among a hypothesis's details: first sample and end of the speech in its chunk


class Recognizer:
    """A system that transcribes. Calls from several threads take turns.

    Args:
        speech_threshold: least probability of speech of a chunk that is decoded; 0: every chunk is decoded.
    """

    def __init__(self, system: System, speech_threshold: float = 0.0) -> None:
        self.system = system
        self.voice_activity = VoiceActivity(speech_threshold) if speech_threshold else None
        self._turn = threading.Lock()

    @classmethod
    def on_fastest_device(
        cls, system: System, speech_threshold: float = 0.0, computed: PrecisionOptions = PrecisionOptions()
    ) -> "Recognizer":
        """The system on the GPU where there is one, in the precision that is asked for: half on a GPU where nothing is said."""
        system.place(fastest_device(), precision(computed))
        return cls(system, speech_threshold)

    def transcribe(
        self,
        waveforms: Sequence[np.ndarray],
        options: DecodingOptions = DecodingOptions(),
        ask: Ask | None = None,
        people: Sequence[Person | None] | None = None,
    ) -> list[Transcript]:
        """Transcripts of waveforms, float32 (n_samples,) at 16 kHz, in their order; all chunks of all recordings are batched together.

        Args:
            ask: what is asked of the system (its `ask_type`); None for nothing.
            people: who speaks in each waveform, None for nobody's expert.

        Raises:
            ValueError: an empty waveform, or what the system cannot do.
        """
        if strange := [type(each).__name__ for each in waveforms if np.ndim(each) != 1]:
            raise ValueError(
                f"a {strange[0]} is no waveform (n_samples,); moe.audio.sources.waveform_of makes one of a path, bytes or samples"
            )
        empty = [number for number, waveform in enumerate(waveforms) if not len(waveform)]
        if empty:
            raise ValueError(f"recording {empty[0]} holds no audio")
        cuts = [self.cut(waveform) for waveform in waveforms]
        chunks = [waveform[start:stop] for waveform, spans in zip(waveforms, cuts, strict=True) for start, stop in spans]
        whose = None if people is None else [each for each, spans in zip(people, cuts, strict=True) for _ in spans]
        hypotheses = iter(self.recognise(chunks, options, ask, whose))
        return [self.join(spans, [next(hypotheses) for _ in spans]) for spans in cuts]

    def ask(self, given: Mapping[str, Any]) -> Ask:
        """What is asked, by name, as the system's own kind of ask.

        Raises:
            ValueError: a name that it does not take, or a value out of range.
        """
        known = sorted(field.name for field in dataclasses.fields(self.system.ask_type))
        if strange := [name for name in given if name not in known]:
            title = self.system.record.title
            raise ValueError(f"{strange[0]}={given[strange[0]]!r}: {title} takes {', '.join(known) or 'nothing'}")
        return self.system.ask_type(**given)

    def cut(self, waveform: np.ndarray) -> list[Span]:
        """Spans of a waveform (n_samples,) that fit the model's window."""
        window_s = self.system.inputs.window_s
        return [(0, len(waveform))] if window_s is None else cut_quietly(waveform, int(window_s * SAMPLE_RATE))

    def recognise(
        self,
        chunks: Sequence[np.ndarray],
        options: DecodingOptions,
        ask: Ask | None = None,
        people: Sequence[Person | None] | None = None,
    ) -> list[Hypothesis]:
        """Hypotheses of chunks that fit the window, in their order; without text where nobody speaks. Other arguments as of `transcribe`.

        Raises:
            ValueError: an ask or beams that the system cannot meet.
        """
        ask = self._asked(ask)
        self.system.check(ask, options.beam_size)
        spoken = [self._spoken(chunk, options.word_times) for chunk in chunks]
        with self._turn:
            dataset = WaveformSet([chunk for chunk, edges in zip(chunks, spoken, strict=True) if edges], self.system.inputs)
            with self._people_of(dataset, [each for each, edges in zip(people or (), spoken, strict=False) if edges]):
                decoded = iter(decode(self.system, dataset, options, ask))
        return [
            _placed(next(decoded), edges) if edges else Hypothesis(str(number), "", details=NO_SPEECH)
            for number, edges in enumerate(spoken)
        ]

    @torch.inference_mode()
    def embedding(self, waveform: np.ndarray) -> Tensor:
        """What the gate reads of a waveform (n_samples,), the mean over its chunks, (D,); of a system that serves people."""
        system: Any = self.system
        chunks = WaveformSet([waveform[start:stop] for start, stop in self.cut(waveform)], system.inputs)
        with self._turn:
            batches = (to_device(collate(chunks, [chunks[index]]), device_of(system)) for index in range(len(chunks)))
            rows = [system.embed(batch) for batch in batches]
        return torch.cat(rows).mean(0)

    @contextlib.contextmanager
    def _people_of(self, dataset: "WaveformSet", people: Sequence[Person | None]) -> Iterator[None]:
        """The system's people inside the block are those of a dataset, which numbers them."""
        distinct = list({id(each): each for each in people if each is not None}.values())
        if not distinct:
            yield
            return
        system: Any = self.system
        numbers = {id(each): number for number, each in enumerate(distinct)}
        dataset.extras["person"] = torch.tensor([numbers.get(id(each), -1) for each in people])
        system.people = distinct
        try:
            yield
        finally:
            system.people = []

    def _spoken(self, chunk: np.ndarray, exactly: bool) -> Span | None:
        """Where somebody speaks in a chunk (n_samples,), which is all of it unless that is to be known exactly; None: nowhere."""
        voice_activity = self.voice_activity
        if voice_activity is not None and exactly:
            return voice_activity.edges(chunk)
        return (0, len(chunk)) if voice_activity is None or voice_activity.is_speech(chunk) else None

    def _asked(self, ask: Ask | None) -> Ask:
        """What is asked, as the system's own kind of ask; what is as by default is not asked."""
        if ask is None:
            return self.ask({})
        return self.ask({name: value for name, value in vars(ask).items() if ask.is_changed(name)})

    def join(self, spans: Sequence[Span], hypotheses: Sequence[Hypothesis]) -> Transcript:
        """The hypotheses of a recording's chunks as one transcript."""
        segments = tuple(self._segment(span, hypothesis) for span, hypothesis in zip(spans, hypotheses, strict=True))
        text = " ".join(segment.text for segment in segments if segment.text)
        weights = _averaged([each.routing_weights for each in hypotheses], spans)
        use = _averaged([each.details.get(EXPERT_USE) for each in hypotheses], spans)
        nobody = all(segment.no_speech for segment in segments)
        return Transcript(
            text, segments, tuple(weights.tolist()), confidence(hypotheses), nobody, tuple(map(tuple, use.tolist()))
        )

    def _segment(self, span: Span, hypothesis: Hypothesis) -> Segment:
        details, offset_s = hypothesis.details, span[0] / SAMPLE_RATE
        start, stop = details.get(SPOKEN, (0, span[1] - span[0]))
        edges = ((span[0] + start) / SAMPLE_RATE, (span[0] + stop) / SAMPLE_RATE)
        text = self._normalised(hypothesis.text)
        words = tuple(self._word(word, offset_s, edges) for word in details.get(WORDS, ()) if self._normalised(word["word"]))
        return Segment(*edges, text, confidence([hypothesis]), details.get("no_speech", False), spread(words))

    def _word(self, word: Mapping[str, Any], offset_s: float, edges: tuple[float, float]) -> Word:
        """A word in the words of the transcript, its times those of the recording and within what is spoken."""
        start, end = (round(float(np.clip(offset_s + word[name], *edges)), 3) for name in ("start_s", "end_s"))
        return Word(self._normalised(word["word"]), start, end, word["confidence"])

    def _normalised(self, text: str) -> str:
        return normalise(self.system.record.normaliser, text)


def _placed(hypothesis: Hypothesis, edges: Span) -> Hypothesis:
    return dataclasses.replace(hypothesis, details={**hypothesis.details, SPOKEN: edges})


def _averaged(values: Sequence[Any], spans: Sequence[Span]) -> np.ndarray:
    """What chunks say of their experts, averaged by duration over those that say it; empty where none does."""
    said = [(value, float(stop - start)) for value, (start, stop) in zip(values, spans, strict=True) if value is not None]
    if not said:
        return np.zeros(0)
    rows, lengths = zip(*said, strict=True)
    return np.asarray(np.average(rows, axis=0, weights=lengths))


class WaveformSet:
    """Waveforms in memory with what decoding asks of a dataset."""

    def __init__(self, waveforms: Sequence[np.ndarray], inputs: Inputs) -> None:
        self.waveforms, self.inputs = waveforms, inputs
        self.extras: dict[str, Tensor] = {}
        self.durations = np.array([len(waveform) / SAMPLE_RATE for waveform in waveforms])
        self.utterance_ids = [str(number) for number in range(len(waveforms))]

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitem__(self, index: int) -> dict[str, Any]:
        extras = {name: values[index] for name, values in self.extras.items()}
        return {"utterance_id": str(index), **self.inputs.example(self.waveforms[index], ""), **extras}
