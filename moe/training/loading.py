"""A Trainer that serves each process its share of every batch, in an order that follows from the epoch, and counts how long it waits."""

import abc
import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from moe.system import Batch
from moe.training import processes
from moe.training.batches import Shares, Widens
from moe.training.read_ahead import read_ahead
from moe.training.trainer_internals import OpenTrainer

LOADER_BATCHES = 2  # that each loader process is asked for ahead, as torch does by default


@dataclasses.dataclass
class Stall:
    """Seconds of a training's updates, and those of them in which it waited for data."""

    waiting_s: float = 0.0
    updates_s: float = 0.0

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """An update begins; in this block it waits for its batches."""
        self._began = time.monotonic()
        yield
        self.waiting_s += time.monotonic() - self._began

    def update_ends(self) -> None:
        """What comes until the next one, as a validation, is not counted."""
        self.updates_s += time.monotonic() - self._began

    @property
    def share(self) -> float:
        """Of the updates' time, that spent waiting."""
        return self.waiting_s / max(self.updates_s, 1e-9)


class LoadingTrainer(OpenTrainer):
    """A Trainer whose batches are its data's, whatever the number of processes.

    Attributes:
        n_parts: in which a batch is served, one after the other.
        stall: how long updates took and waited so far.
    """

    n_parts = 1

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.stall = Stall()

    @abc.abstractmethod
    def sampler_of(self) -> Any:
        """The order of an epoch's items; its `set_epoch` says which epoch."""

    def get_train_dataloader(self) -> DataLoader:
        """This process's share of every batch; accelerate would add utterances to a last batch that is short."""
        self.sampler, arguments = self.sampler_of(), self.args
        shares = Shares(self.sampler, arguments.per_device_train_batch_size * self.n_parts, self.n_parts)
        n_asked = 1 + LOADER_BATCHES * arguments.dataloader_num_workers
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]  # it has what a loader needs
            batch_sampler=read_ahead(shares, self.train_dataset, n_asked),
            collate_fn=self.data_collator,
            num_workers=arguments.dataloader_num_workers,
            persistent_workers=arguments.dataloader_persistent_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def of_one_width(self, batch: Batch) -> Batch:
        """A share padded as the whole batch is in one process, where padding counts."""
        inputs = getattr(self.train_dataset, "inputs", None)
        if processes.n_processes() == 1 or not isinstance(inputs, Widens):
            return batch
        return inputs.widened(batch, processes.most(inputs.width(batch)))

    def get_batch_samples(self, *arguments: Any) -> Any:
        """The batches of an update, as the Trainer takes them."""
        with self.stall.waiting():
            return super().get_batch_samples(*arguments)
