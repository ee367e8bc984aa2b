"""Manifest rows → batches: log-mels cached unpadded, labels, and batches of similar length whose order depends on (seed, epoch) alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import WhisperProcessor

from moe.audio.waveforms import SAMPLE_RATE
from moe.systems.whisper.features import AudioContextOptions, pad_silence, valid_frames
from moe.systems.whisper.tokens import label_batch
from moe.training.dataset import Draw, SpeechDataset

LENGTH_POOL = 32  # batches whose utterances are sorted by length together


class LengthGroupedSampler(Sampler):
    """Shuffled utterances in an order whose batches hold similar lengths; a function of (seed, epoch), on which `set_epoch` decides."""

    def __init__(self, durations: np.ndarray, batch_size: int, seed: int) -> None:
        self.durations, self.batch_size, self.seed, self.epoch = durations, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at each epoch's start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.durations)

    def __iter__(self) -> Iterator[Draw]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.durations))
        pool = LENGTH_POOL * self.batch_size
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        ordered = np.concatenate([part[np.argsort(self.durations[part], kind="stable")] for part in pools])
        batches = [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]
        full, rest = batches[: len(ordered) // self.batch_size], batches[len(ordered) // self.batch_size :]
        random.shuffle(full)  # a short batch stays last, so that no other batch is cut
        return iter([Draw(int(index), self.epoch) for batch in [*full, *rest] for index in batch])


def context_batches(dataset: SpeechDataset, context: AudioContextOptions, batch_size: int) -> list[np.ndarray]:
    """Indices of utterances that hear the same context, long ones first; the same batches whatever the dataset's order.

    For decoding and embedding: what comes out for an utterance then depends neither on its neighbours nor on the batch size. Under a
    full context too utterances of one length bucket go together: their hypotheses have the same bound.
    """
    durations, ids, extractor = dataset.durations, dataset.utterance_ids, dataset.processor.feature_extractor
    frames = [context.bucket(valid_frames(round(seconds * SAMPLE_RATE), extractor), extractor) for seconds in durations]
    order = sorted(range(len(dataset)), key=lambda index: (-frames[index], -durations[index], ids[index]))
    groups: dict[int, list[int]] = {}
    for index in order:
        groups.setdefault(frames[index], []).append(index)
    return [np.array(group[at : at + batch_size]) for group in groups.values() for at in range(0, len(group), batch_size)]


def collator(processor: WhisperProcessor, context: AudioContextOptions) -> Callable[[Sequence[dict[str, Any]]], dict[str, Any]]:
    """A function that makes a batch of a dataset's items: mel (B, n_mels, F), n_frames (B,), labels (B, N), extras, utterance_ids."""
    extractor = processor.feature_extractor

    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        n_frames = context.n_frames(max(item["n_frames"] for item in items), extractor)
        extras = [name for name in items[0] if name not in ("utterance_id", "mel", "n_frames", "labels")]
        return {
            "mel": torch.from_numpy(np.stack([pad_silence(item["mel"], n_frames) for item in items])),  # (B, n_mels, F)
            "n_frames": torch.tensor([item["n_frames"] for item in items]),  # (B,)
            "labels": label_batch([item["labels"] for item in items]),  # (B, N)
            **{name: torch.stack([item[name] for item in items]) for name in extras},
            "utterance_ids": [item["utterance_id"] for item in items],
        }

    return collate


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on a device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
