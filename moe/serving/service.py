"""A recogniser that serves many clients at once: recordings in, transcripts with confidence, routing and timing out.

Chunks of all requests that are waiting share a pass through the model, where they ask for the same and are of one length
bucket; so an answer does not depend on who else was asking.
"""

import dataclasses
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe.audio.sampling import SAMPLE_RATE
from moe.experts.people.folders import OtherRecogniser
from moe.experts.people.person import AUTO_SPEAKER, Person
from moe.recognition.recognizer import Recognizer, Segment, Transcript
from moe.serving.micro_batches import MicroBatcher
from moe.serving.people import Served, ServedPeople, UnknownPerson
from moe.serving.requests import SPEAKER, Asked, Conflict, RequestError, ServiceOptions, as_bytes, check_body, decode, shown
from moe.serving.voices import ServedVoices
from moe.system import Ask, DecodingOptions, Hypothesis


@dataclasses.dataclass(frozen=True)
class Answer:
    """A transcript, the seconds of audio it is of, the seconds the client waited for it, and what of the recogniser was the speaker's own."""

    transcript: Transcript
    audio_s: float
    seconds: float
    personal: str = ""

    def as_row(self, with_routing: bool) -> dict[str, Any]:
        """The answer as plain values for JSON."""
        return {
            "text": self.transcript.text,
            "confidence": self.transcript.confidence,
            "no_speech": self.transcript.no_speech,
            "expert_weights": list(self.transcript.routing_weights) if with_routing else [],
            "expert_use": [list(layer) for layer in self.transcript.expert_use] if with_routing else [],
            "personal": self.personal,
            "segments": [_without_words(segment) for segment in self.transcript.segments],
            "words": [dataclasses.asdict(word) for word in self.transcript.words],
            "timing": {"audio_s": self.audio_s, "seconds": self.seconds},
        }


def _without_words(segment: Segment) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(segment).items() if name != "words"}


class Service:
    """Serves one recogniser to any number of threads.

    Args:
        usual: what is asked of the system where a request says nothing.
        people: whose experts are served; None for nobody's.
        voices: by which people are recognised; None for by nothing but their name.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        options: ServiceOptions = ServiceOptions(),
        usual: Ask | None = None,
        people: ServedPeople | None = None,
        voices: ServedVoices | None = None,
    ) -> None:
        self.recognizer, self.options, self.people, self.voices = recognizer, options, people, voices
        self.usual = usual or recognizer.system.ask_type()
        self._batcher = MicroBatcher(self._recognise, options.batch_window_ms / 1000, options.decoding_batch_size)
        self._decoders = threading.BoundedSemaphore(
            os.cpu_count() or 1
        )  # unfolded audio is large: not more at once than can work

    def check(self, body: bytes) -> None:
        """Check the body of a request, all but the audio itself.

        Raises:
            RequestError: what is wrong with it, in one sentence.
        """
        self._check_model(check_body(body, self.options, self.usual))

    def answer(self, recordings: Sequence[Any], asked: Asked) -> list[Answer]:
        """Transcripts of recordings (encoded bytes, or base64 text), in their order.

        Raises:
            RequestError: what is wrong with the request, in one sentence.
        """
        started = time.perf_counter()
        if not 1 <= len(recordings) <= self.options.max_inputs:
            raise RequestError(f"{len(recordings)} recordings in one request: must be between 1 and {self.options.max_inputs}")
        named = self._check_model(asked)
        waveforms = self._waveforms(recordings)
        speakers = [self._recognised(waveform) if asked.speaker == AUTO_SPEAKER else named for waveform in waveforms]
        cuts = [self.recognizer.cut(waveform) for waveform in waveforms]
        waiting = [
            [self._submit(waveform[start:stop], asked, speaker) for start, stop in spans]
            for waveform, spans, speaker in zip(waveforms, cuts, speakers, strict=True)
        ]
        transcripts = [
            self.recognizer.join(spans, [future.result() for future in futures])
            for spans, futures in zip(cuts, waiting, strict=True)
        ]
        seconds = time.perf_counter() - started
        return [
            Answer(each, len(waveform) / SAMPLE_RATE, seconds, "" if speaker is None else speaker.kept)
            for each, waveform, speaker in zip(transcripts, waveforms, speakers, strict=True)
        ]

    def health(self) -> dict[str, Any]:
        """What is served, for who watches the server."""
        record = self.recognizer.system.record
        return {"status": "ok", "system": record.system, "language": record.language, "max_audio_s": self.options.max_audio_s}

    def close(self) -> None:
        """End the worker."""
        self._batcher.close()

    def _check_model(self, asked: Asked) -> Served | None:
        """The person who is asked for by name, if any; what the model cannot do is refused."""
        if asked.speaker is not None and self.people is None:
            raise RequestError(f"{SPEAKER}={shown(asked.speaker)}: nobody has anything of their own here; leave it out")
        try:
            self.recognizer.system.check(asked.ask, asked.beam_size)
            if asked.speaker == AUTO_SPEAKER and self.voices is not None:
                self.voices.check()
                return None
            return None if asked.speaker is None or self.people is None else self.people.of(asked.speaker)
        except OtherRecogniser as error:
            raise Conflict(str(error)) from error
        except ValueError as error:
            raise RequestError(str(error)) from error

    def _recognised(self, waveform: np.ndarray) -> Served | None:
        """The person whose voice it is; None where it is nobody's who has a profile."""
        assert self.voices is not None  # else the request is refused
        try:
            return self.voices.whose(self.recognizer.embedding(waveform))
        except UnknownPerson as error:
            raise RequestError(str(error)) from error

    def _waveforms(self, recordings: Sequence[Any]) -> list[np.ndarray]:
        """Decoded recordings, together no longer than a request may be."""
        waveforms, left_s = [], self.options.max_audio_s
        for number, recording in enumerate(recordings):
            data = as_bytes(recording, number)
            if left_s <= 0:
                raise RequestError(
                    f"the recordings are too long together: at most {self.options.max_audio_s:g} s are served at once"
                )
            with self._decoders:
                waveforms.append(decode(data, number, left_s, self.options.channels))
            left_s -= len(waveforms[-1]) / SAMPLE_RATE
        return waveforms

    def _submit(self, chunk: np.ndarray, asked: Asked, served: Served | None) -> Any:
        """Whoever speaks: people share their passes with each other and with nobody's."""
        kind = Kind(asked.beam_size, asked.word_times, asked.ask, self.recognizer.system.inputs.length(len(chunk)))
        return self._batcher.submit(kind, (chunk, None if served is None else served.person))

    def _recognise(self, kind: "Kind", items: list[tuple[np.ndarray, Person | None]]) -> list[Hypothesis]:
        options = dataclasses.replace(self.options.part(DecodingOptions), beam_size=kind.beam_size, word_times=kind.word_times)
        return self.recognizer.recognise([chunk for chunk, _ in items], options, kind.ask, [person for _, person in items])


@dataclasses.dataclass(frozen=True)
class Kind:
    """What chunks that share a pass have in common."""

    beam_size: int
    word_times: bool
    ask: Ask
    length: int


def settings(config: Mapping[str, Any], ask_type: type[Ask]) -> tuple[ServiceOptions, Ask]:
    """A served model's configuration: how it is served, and what is asked of its system where a request says nothing.

    Raises:
        ValueError: a name that neither has, or a value that is not allowed.
    """
    own, asks = ({field.name for field in dataclasses.fields(kind)} for kind in (ServiceOptions, ask_type))
    if unknown := sorted(set(config) - own - asks):
        raise ValueError(f"the configuration has {unknown[0]}: there are {', '.join(sorted(own | asks))}")
    return ServiceOptions(**{name: config[name] for name in own & set(config)}), ask_type(
        **{name: config[name] for name in asks & set(config)}
    )
