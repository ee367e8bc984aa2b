"""The project as a Python package: load a recogniser and transcribe with it.

    import whisper_moe

    recogniser = whisper_moe.load("models:/whisper-moe@champion")
    print(recogniser.transcribe("a.wav").text)

`moe` knows no registry and its packages hand nothing on, so this module stands above `moe` and `steps`, and nothing of them imports it.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from moe.audio.sampling import SAMPLE_RATE
from moe.audio.sources import Source, waveform_of
from moe.audio.voice_activity import SPEECH_THRESHOLD
from moe.recognition.recognizer import Recognizer, Segment, Transcript
from moe.recognition.words import Word
from moe.system import DecodingOptions, Record
from moe.systems.table import load_system
from moe.training.precision import PrecisionOptions

__all__ = ["Recogniser", "Segment", "Transcript", "Word", "load"]


@dataclasses.dataclass(frozen=True)
class Recogniser:
    """A recogniser in memory. Calls from several threads take turns."""

    recognizer: Recognizer

    @property
    def record(self) -> Record:
        """What it is: system, language, normaliser, and what it was trained with."""
        return self.recognizer.system.record

    @overload
    def transcribe(self, audio: Source, **options: Any) -> Transcript: ...

    @overload
    def transcribe(self, audio: Sequence[Source], **options: Any) -> list[Transcript]: ...

    def transcribe(
        self,
        audio: Source | Sequence[Source],
        *,
        rate: int = SAMPLE_RATE,
        word_times: bool = True,
        beam_size: int = 1,
        **asked: Any,
    ) -> Transcript | list[Transcript]:
        """The transcript of a recording, or those of a list of them, in its order: text, segments, words, confidence, routing_weights.

        Args:
            audio: a path, the bytes of a file, or samples (n_samples,) or (n_samples, n_channels).
            rate: of samples, in Hz; a file says its own.
            word_times: say when each word was said.
            asked: what else the system can be asked, such as `language` and `top_k`.

        Raises:
            ValueError: no such file, no recording, or what the system cannot do.
        """
        several = isinstance(audio, (list, tuple))
        sources: Sequence[Any] = audio if several else [audio]  # type: ignore[assignment]
        waveforms = [waveform_of(source, rate) for source in sources]
        options = DecodingOptions(beam_size=beam_size, word_times=word_times)
        found = self.recognizer.transcribe(waveforms, options, self.recognizer.ask(asked))
        return found if several else found[0]


def load(model: str | os.PathLike[str], speech_threshold: float = SPEECH_THRESHOLD, fp16: bool | None = None) -> Recogniser:
    """A recogniser from the model registry, from a run, or from its folder; on the GPU where there is one.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, the id of a run with a model, or a folder, which needs no MLflow.
        speech_threshold: least probability of speech; below it the text is empty. 0: everything is decoded.
        fp16: compute in half precision; None: on a GPU. A processor with bf16 instructions takes about half the time.

    Raises:
        ValueError: no recogniser is there, or the registry does not know it.
        RuntimeError: a run that holds no model.
    """
    system = load_system(folder_of(model))
    computed = PrecisionOptions(fp16=fp16, no_fp16=fp16 is False)
    return Recogniser(Recognizer.on_fastest_device(system, speech_threshold, computed))


def folder_of(model: str | os.PathLike[str]) -> Path:
    """The folder of a recogniser; MLflow is imported only where it is asked."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from steps.registry.versions import recognizer_dir

    return recognizer_dir(str(model))
