"""Items of a dataset → batches of similar length, whose order depends on (seed, epoch) alone."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from moe.audio.sampling import SAMPLE_RATE
from moe.system import Batch, Inputs
from moe.training import processes

LENGTH_POOL = 32  # batches whose utterances are sorted by length together


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """What a sampler asks of a dataset: an utterance, and the epoch that keys its augmentation."""

    index: int
    epoch: int


class Collates(Protocol):
    """What makes a batch of examples."""

    def collate(self, examples: Sequence[Batch]) -> Batch:
        """Examples padded to one batch of tensors."""


@runtime_checkable
class Widens(Protocol):
    """Inputs whose padding changes what a model computes: every process pads to the longest utterance of the batch."""

    def width(self, batch: Batch) -> int:
        """Frames that a batch is padded to."""

    def widened(self, batch: Batch, width: int) -> Batch:
        """The batch padded to at least so many."""


class TrainingSet(Protocol):
    """What training asks of a dataset."""

    @property
    def inputs(self) -> Collates:
        """What makes batches of its examples."""

    @property
    def extras(self) -> Mapping[str, Tensor]:
        """Further per-utterance tensors, (N, …) each."""

    @property
    def durations(self) -> np.ndarray:
        """Seconds of each utterance, (N,): those of similar length come together."""

    def __len__(self) -> int: ...

    def __getitem__(self, draw: Any) -> dict[str, Any]: ...


class Examples(TrainingSet, Protocol):
    """What decoding and embedding ask of a dataset."""

    @property
    def inputs(self) -> Inputs:
        """What makes its examples."""

    @property
    def utterance_ids(self) -> list[str]:
        """Ids of the utterances, (N,)."""


class LengthGroupedSampler(Sampler):
    """Shuffled utterances in an order whose batches hold similar lengths; a function of (seed, epoch), on which `set_epoch` decides.

    Args:
        durations: seconds of each utterance, (N,).
        shards: number of the shard that each lies in, (N,), and `together`, how many of them are shuffled as one; None: all.
    """

    def __init__(
        self,
        durations: np.ndarray,
        batch_size: int,
        seed: int,
        shards: np.ndarray | None = None,
        together: int | None = None,
    ) -> None:
        self.durations, self.batch_size, self.seed, self.epoch = durations, batch_size, seed, 0
        self.shards, self.together = shards, together

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at each epoch's start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.durations)

    def __iter__(self) -> Iterator[Draw]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.durations))
        turns = self._turns(random)
        order = order[np.argsort(turns[order], kind="stable")]
        pool = LENGTH_POOL * self.batch_size
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        ordered = np.concatenate([part[np.argsort(self.durations[part], kind="stable")] for part in pools])
        batches = [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]
        full, rest = batches[: len(ordered) // self.batch_size], batches[len(ordered) // self.batch_size :]
        random.shuffle(full)  # a short batch stays last, so that no other batch is cut
        full.sort(key=lambda batch: turns[batch].min())
        return iter([Draw(int(index), self.epoch) for batch in [*full, *rest] for index in batch])

    def _turns(self, random: np.random.Generator) -> np.ndarray:
        """When each utterance's group of shards comes in the epoch, from 0, (N,)."""
        if self.shards is None or self.together is None:
            return np.zeros(len(self.durations), int)
        return (random.permutation(int(self.shards.max()) + 1) // self.together)[self.shards]


class Shares(Sampler[list[Any]]):
    """A process's share of every batch: batches of an order cut in parts for memory, and each part among the processes, evenly.

    Every process has the same number of parts. A last batch of fewer utterances than there are processes is every process's, whole.

    Args:
        order: of the epoch; that of the first process counts.
        n_parts: in which a full batch is served, one after the other.
    """

    def __init__(self, order: Sampler, batch_size: int, n_parts: int = 1) -> None:
        self.order, self.batch_size, self.n_parts = order, batch_size, n_parts

    def __len__(self) -> int:
        n_full, n_rest = divmod(len(self.order), self.batch_size)  # type: ignore[arg-type]  # ours have a length
        return n_full * self.n_parts + (self._n_parts(n_rest) if n_rest else 0)

    def __iter__(self) -> Iterator[list[Any]]:
        order = processes.gathered(list(self.order) if processes.number() == 0 else [])[0]
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for part in np.array_split(np.arange(len(batch)), self._n_parts(len(batch))):
                yield [batch[place] for place in self._own(part)]

    def _n_parts(self, n_utterances: int) -> int:
        """Parts of a batch: a short one has fewer, none larger than those of a full one."""
        return -(-n_utterances * self.n_parts // self.batch_size)

    def _own(self, part: np.ndarray) -> np.ndarray:
        n_processes = processes.n_processes()
        return part if len(part) < n_processes else np.array_split(part, n_processes)[processes.number()]


def length_batches(dataset: Examples, batch_size: int) -> list[np.ndarray]:
    """Indices of utterances of one length bucket, long ones first; the same batches whatever the dataset's order.

    For decoding and embedding: what comes out for an utterance then depends neither on its neighbours nor, but for rounding, on the
    batch size.

    Args:
        dataset: has `durations`, `utterance_ids` and `inputs`, as `SpeechDataset` has. Where it has `turns`, (N,), utterances of one turn
            come together, turn by turn.
    """
    durations, ids, turns = dataset.durations, dataset.utterance_ids, getattr(dataset, "turns", None)
    turn = [0] * len(dataset) if turns is None else turns.tolist()
    lengths = [dataset.inputs.length(round(seconds * SAMPLE_RATE)) for seconds in durations]
    order = sorted(range(len(dataset)), key=lambda index: (turn[index], -lengths[index], -durations[index], ids[index]))
    groups: dict[tuple[int, int], list[int]] = {}
    for index in order:
        groups.setdefault((turn[index], lengths[index]), []).append(index)
    return [np.array(group[at : at + batch_size]) for group in groups.values() for at in range(0, len(group), batch_size)]


def collate(dataset: TrainingSet, items: Sequence[dict[str, Any]]) -> Batch:
    """A dataset's items as one batch: what its inputs make of the examples, extras stacked (B, …), and the utterance ids."""
    extras = {name: torch.stack([item[name] for item in items]) for name in dataset.extras}
    return {**dataset.inputs.collate(items), **extras, "utterance_ids": [item["utterance_id"] for item in items]}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
