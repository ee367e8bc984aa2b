"""Random changes to what the model hears in training, drawn from (seed, epoch, utterance id) and nothing else.

So no worker count, batch order or interruption changes what an utterance sounds like in an epoch. SpecAugment masks are those of
Park et al. 2019 (arXiv:1904.08779), without time warping.
"""

import dataclasses
import hashlib

import numpy as np

from moe.options import Options, option


@dataclasses.dataclass(frozen=True)
class Augmentation(Options):
    """SpecAugment masks and loudness; all off at zero."""

    n_masks: int = option(2, "SpecAugment masks in time and in frequency, each (0 = off)", low=0)
    mask_mels: int = option(12, "widest frequency mask, mel bands", low=0)
    mask_frames: int = option(10, "widest time mask, mel frames", low=0)
    gain: float = option(0.15, "largest log-mel offset (loudness), in units of the log-mel", low=0)


def generator(seed: int, epoch: int, utterance_id: str) -> np.random.Generator:
    """The generator of one utterance in one epoch."""
    key = hashlib.blake2b(f"{seed}/{epoch}/{utterance_id}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key))


def augment(mel: np.ndarray, options: Augmentation, random: np.random.Generator) -> np.ndarray:
    """A masked and louder or softer copy of a log-mel, (n_mels, n_frames)."""
    mel = mel + np.float32(random.uniform(-options.gain, options.gain))
    fill = mel.mean()
    for _ in range(options.n_masks):
        mel[_span(random, mel.shape[0], options.mask_mels), :] = fill
        mel[:, _span(random, mel.shape[1], options.mask_frames)] = fill
    return mel


def _span(random: np.random.Generator, length: int, widest: int) -> slice:
    width = int(random.integers(0, min(widest, length) + 1))
    start = int(random.integers(0, length - width + 1))
    return slice(start, start + width)
