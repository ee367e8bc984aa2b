"""Manifest rows as model inputs: log-mels cached unpadded, and labels."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from transformers import WhisperProcessor

from moe.audio.augmentation import AugmentationOptions, augment, augment_waveform, generator
from moe.audio.waveforms import SAMPLE_RATE
from moe.corpora.locations import Root
from moe.corpora.manifest import read_utterance
from moe.systems.whisper.features import log_mel, valid_frames, window_seconds
from moe.systems.whisper.tokens import label_ids

CACHE_BYTES = 1 << 30  # of unpadded log-mels and waveforms kept in memory; past it they are made again


@dataclasses.dataclass(frozen=True)
class Draw:
    """What a sampler asks of a dataset: an utterance, and the epoch that keys its augmentation."""

    index: int
    epoch: int


class SpeechDataset(Dataset):
    """Utterances of a manifest as model inputs.

    Args:
        manifest: rows to serve.
        root: the corpus root that the manifest's paths start from.
        processor: feature extractor and tokenizer of the base model.
        augmentation: None serves every utterance as it is.
        seed: of the augmentation.
        extras: further per-utterance arrays to serve, each (N, …) in the manifest's order, e.g. embeddings, routing weights.
        max_labels: tokens that the decoder can say; None where labels are not used.

    Raises:
        ValueError: utterances longer than the model's window, by id, before anything is read; labels longer than the decoder.
    """

    def __init__(
        self,
        manifest: pd.DataFrame,
        root: Root,
        processor: WhisperProcessor,
        augmentation: AugmentationOptions | None = None,
        seed: int = 0,
        extras: Mapping[str, np.ndarray] | None = None,
        max_labels: int | None = None,
    ) -> None:
        self.rows = manifest.to_dict("records")
        self.root, self.processor, self.augmentation, self.seed = root, processor, augmentation, seed
        self.extras = {name: torch.as_tensor(array) for name, array in (extras or {}).items()}
        self.labels = [label_ids(processor.tokenizer, row["reference"]) for row in self.rows]
        self._cache: dict[int, np.ndarray] = {}  # log-mels
        self._waveforms: dict[int, np.ndarray] = {}
        self._cached_bytes = 0
        self._refuse_too_long(max_labels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        draw = draw if isinstance(draw, Draw) else Draw(draw, 0)
        row = self.rows[draw.index]
        mel, n_samples = self._augmented(draw)
        n_valid = valid_frames(n_samples, self.processor.feature_extractor)
        extras = {name: values[draw.index] for name, values in self.extras.items()}
        return {
            "utterance_id": row["utterance_id"],
            "mel": mel,
            "n_frames": min(n_valid, mel.shape[1]),
            "labels": self.labels[draw.index],
            **extras,
        }

    def mel(self, index: int) -> np.ndarray:
        """Unpadded log-mel of an utterance, (n_mels, n_frames), from the cache where it is."""
        return self._kept(self._cache, index, lambda: log_mel(self.waveform(index), self.processor.feature_extractor))

    def _augmented(self, draw: Draw) -> tuple[np.ndarray, int]:
        """Log-mel of an utterance as it sounds in an epoch, and how many samples of audio are in it."""
        row, options, extractor = self.rows[draw.index], self.augmentation, self.processor.feature_extractor
        n_samples = round(row["duration_s"] * SAMPLE_RATE)
        if options is None:
            return self.mel(draw.index), n_samples
        random = generator(self.seed, draw.epoch, row["utterance_id"])
        if not options.changes_waveform:
            return augment(self.mel(draw.index), options, random), n_samples
        original = self._kept(self._waveforms, draw.index, lambda: self.waveform(draw.index))
        waveform = augment_waveform(original, options, random, extractor.n_samples)
        return augment(log_mel(waveform, extractor), options, random), len(waveform)

    def _kept(self, cache: dict[int, np.ndarray], index: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        if index not in cache:
            array = make()
            if self._cached_bytes + array.nbytes > CACHE_BYTES:
                return array
            cache[index] = array
            self._cached_bytes += array.nbytes
        return cache[index]

    def waveform(self, index: int) -> np.ndarray:
        """Samples of an utterance, (n_samples,)."""
        return read_utterance(self.root, self.rows[index])

    @property
    def utterance_ids(self) -> list[str]:
        """Ids of the utterances, (N,)."""
        return [row["utterance_id"] for row in self.rows]

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each utterance, (N,)."""
        return np.array([row["duration_s"] for row in self.rows])

    def _refuse_too_long(self, max_labels: int | None) -> None:
        too_long = [
            row["utterance_id"] for row, ids in zip(self.rows, self.labels, strict=True) if len(ids) > (max_labels or math.inf)
        ]
        if too_long:
            raise ValueError(
                f"the references of {len(too_long)} utterances have more than the decoder's {max_labels} tokens, e.g. {too_long[:3]}"
            )
        window = window_seconds(self.processor.feature_extractor)
        too_long = [row["utterance_id"] for row in self.rows if row["duration_s"] > window]
        if too_long:
            raise ValueError(
                f"{len(too_long)} utterances are longer than the base model's window of {window:g} s, e.g. {too_long[:3]}; "
                f"prepare the corpus with max_duration_s={window:g}"
            )
