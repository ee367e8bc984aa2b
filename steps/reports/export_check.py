"""What each export says of the test split beside what we say: how many utterances differ, and both error rates."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from moe.progress import counted
from moe.recognition.chunks import Chunks, ChunkSet, cut_rows
from moe.recognition.decoding import decode
from moe.system import DecodingOptions, Merges
from moe.systems.whisper import other_runtimes
from moe.text.error_rates import word_error_rate
from moe.text.normalisers import normalise
from steps.inputs.corpus import Prepared

MERGED, CTRANSLATE2, ONNX, FASTER_WHISPER = "transformers", "ctranslate2", "onnx", "faster-whisper"


@dataclasses.dataclass(frozen=True)
class Checked:
    """One runtime on the test split.

    An ordinary Whisper pads to its whole window, which this project does not do by default (`audio_context=bucketed`). So ours are
    decoded as this project decodes them and over the whole window: what differs from the first alone differs by that padding.
    """

    format: str
    n_utterances: int
    n_different: int
    n_different_in_window: int
    our_wer: float
    our_wer_in_window: float
    wer: float
    difference: float  # of `wer` from `our_wer`

    def __str__(self) -> str:
        return (
            f"{self.format}: {self.n_different} of {self.n_utterances} utterances differ from ours, {self.n_different_in_window} from ours "
            f"over the whole window; WER {100 * self.wer:.2f} %, ours {100 * self.our_wer:.2f} %, over the whole window "
            f"{100 * self.our_wer_in_window:.2f} %"
        )


def check(
    system: Merges, experts: tuple[float, ...], prepared: Prepared, places: dict[str, Path], faster_whisper: bool
) -> list[Checked]:
    """Every export but `peft` beside ours under a fixed mixture (E,).

    Args:
        places: the exports' folders by format.
        faster_whisper: whether it decodes too; see `faster_whisper_fault`.
    """
    test = prepared.rows("test")
    chunks, references = cut_rows(test, prepared.root, system.inputs.window_s), test["reference"].tolist()
    ours, in_window = (ChunkSet(chunks, prepared.root, inputs) for inputs in (system.inputs, system.window_inputs))
    waveforms = [ours.waveform(index) for index in range(len(ours))]
    said, said_in_window = (
        _texts(
            chunks, [each.text for each in decode(system, each, DecodingOptions(), system.fixed(experts), title="ours")], prepared
        )
        for each in (ours, in_window)
    )
    our_wer, in_window_wer = word_error_rate(references, said), word_error_rate(references, said_in_window)
    rows = []
    for name, says in _runtimes(places, faster_whisper and CTRANSLATE2 in places):
        theirs = _texts(chunks, _said(name, says, waveforms), prepared)
        wer = word_error_rate(references, theirs)
        n_different, n_in_window = (_n_different(each, theirs) for each in (said, said_in_window))
        rows.append(Checked(name, len(test), n_different, n_in_window, our_wer, in_window_wer, wer, wer - our_wer))
    return rows


def faster_whisper_fault(places: dict[str, Path]) -> str | None:
    """Why faster-whisper cannot say what we say; None where it can, or where nothing was written for it."""
    return other_runtimes.faster_whisper_fault(places[CTRANSLATE2], places[MERGED]) if CTRANSLATE2 in places else None


def _runtimes(places: dict[str, Path], faster_whisper: bool) -> Iterator[tuple[str, other_runtimes.Says]]:
    yield MERGED, other_runtimes.says_transformers(places[MERGED])
    if CTRANSLATE2 in places:
        yield CTRANSLATE2, other_runtimes.says_ctranslate2(places[CTRANSLATE2], places[MERGED])
    if faster_whisper:
        yield FASTER_WHISPER, other_runtimes.says_faster_whisper(places[CTRANSLATE2], places[MERGED])
    if ONNX in places:
        yield ONNX, other_runtimes.says_onnx(places[ONNX], places[MERGED])


def _said(name: str, says: other_runtimes.Says, waveforms: Sequence[np.ndarray]) -> list[str]:
    """What a runtime says, batch by batch under a bar: those that decode the whole window take long."""
    batches = [waveforms[at : at + other_runtimes.BATCH] for at in range(0, len(waveforms), other_runtimes.BATCH)]
    return [text for batch in counted(batches, name, "batches") for text in says(batch)]


def _texts(chunks: Chunks, texts: Sequence[str], prepared: Prepared) -> list[str]:
    """Normalised texts of utterances from those of their chunks."""
    joined = pd.Series(list(texts)).groupby(chunks.owner).agg(" ".join)
    return [normalise(prepared.normaliser, text) for text in joined]


def _n_different(ours: Sequence[str], theirs: Sequence[str]) -> int:
    return sum(one != other for one, other in zip(ours, theirs, strict=True))
