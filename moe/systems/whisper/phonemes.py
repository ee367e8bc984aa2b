"""Phoneme events of a corpus as one class per encoder frame, which pretraining's second loss learns from."""

import dataclasses

import numpy as np
import pandas as pd
from transformers import WhisperProcessor

from moe.audio.sampling import SAMPLE_RATE

SILENCE = 0  # phoneme class of frames without one


@dataclasses.dataclass(frozen=True)
class Alignments:
    """Phonemes of the training utterances: frame labels (N, T) int, and their names."""

    frames: np.ndarray
    phonemes: tuple[str, ...]


def align(manifest: pd.DataFrame, alignments: pd.DataFrame, processor: WhisperProcessor) -> Alignments:
    """Phoneme events as one class per encoder frame.

    Args:
        manifest: rows to align, in the order wanted.
        alignments: utterance_id, starts (samples), phonemes (labels), as `synthesize` writes them.

    Raises:
        ValueError: an utterance without alignment.
    """
    events = alignments.set_index("utterance_id")
    absent = [name for name in manifest.utterance_id if name not in events.index]
    if absent:
        raise ValueError(f"{len(absent)} utterances have no alignment, e.g. {absent[:3]}")
    names = sorted({_plain(name) for row in events.phonemes for name in row} - {""})
    classes = {name: number + 1 for number, name in enumerate(names)}
    extractor = processor.feature_extractor
    frame = 2 * extractor.hop_length  # samples per encoder frame
    frames = np.zeros((len(manifest), extractor.nb_max_frames // 2), np.int64)
    for row, utterance in zip(frames, manifest.itertuples(), strict=True):
        _label_frames(row, events.loc[utterance.utterance_id], classes, frame, round(utterance.duration_s * SAMPLE_RATE))
    return Alignments(frames, ("", *names))


def _plain(name: str) -> str:
    """A phoneme without stress marks; pauses are empty."""
    return name.strip("',%=_:;|! ")


def _label_frames(row: np.ndarray, event: pd.Series, classes: dict[str, int], frame: int, n_samples: int) -> None:
    edges = [*(round(start / frame) for start in event.starts), -(-n_samples // frame)]
    for name, start, stop in zip(event.phonemes, edges[:-1], edges[1:], strict=True):
        row[start:stop] = classes.get(_plain(name), SILENCE)
