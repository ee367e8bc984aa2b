"""Shards at an address, brought to this machine before the batches that read them: an epoch's order says which come next.

A thread fetches them in the order of their first use, as far as the cache has room beside those that are still to be read. It lives while
an epoch's batches are asked for, so that none runs where a loader forks its workers.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from moe.corpora.locations import CorpusRoot, is_address, locate
from moe.corpora.shard_cache import ShardCache
from moe.training.batches import Draw

ENDS_S = 5.0  # that an epoch's end waits for a shard that is just coming
LOG = logging.getLogger(__name__)


class ReadAhead(Sampler[list[Any]]):
    """Batches as they are, with their shards fetched ahead.

    Args:
        batches: of an epoch; each a list of `Draw`.
        addresses: of the shards; `shards` says in which each utterance lies, (N,).
        margin: batches that loaders may have asked for and not read yet.
    """

    def __init__(
        self, batches: Sampler[list[Any]], cache: ShardCache, addresses: Sequence[str], shards: np.ndarray, margin: int = 0
    ) -> None:
        self.batches, self.cache, self.addresses, self.shards, self.margin = batches, cache, addresses, shards, margin

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # ours have a length

    def __iter__(self) -> Iterator[list[Any]]:
        batches = list(self.batches)
        fetching = _Fetching(self.cache, self.addresses, *self._uses(batches))
        try:
            for number, batch in enumerate(batches):
                fetching.reached(number - self.margin)
                yield batch
        finally:
            fetching.end()

    def _uses(self, batches: Sequence[list[Draw]]) -> tuple[np.ndarray, np.ndarray]:
        """First and last batch that reads each shard, (n_shards,) each; −1 where none does."""
        first, last = (np.full(len(self.addresses), -1) for _ in range(2))
        for number, batch in enumerate(batches):
            used = np.unique(self.shards[[draw.index for draw in batch]])
            first[used] = np.where(first[used] < 0, number, first[used])
            last[used] = number
        return first, last


def read_ahead(batches: Sampler[list[Any]], dataset: Any, margin: int) -> Sampler[list[Any]]:
    """The batches with shards fetched ahead, where a data set reads shards at an address and a cache keeps them."""
    root = getattr(dataset, "root", None)  # of a `SpeechDataset`, whose tables a bare checkout has no pandas for
    if not isinstance(root, CorpusRoot) or root.cache is None or not is_address(root) or (shards := dataset.shards) is None:
        return batches
    names = dict(zip(shards.tolist(), dataset.rows.column("audio"), strict=True))
    return ReadAhead(batches, root.cache, [locate(root, names[number]) for number in range(len(names))], shards, margin)


class _Fetching:
    """A thread that fetches shards in the order of their first use."""

    def __init__(self, cache: ShardCache, addresses: Sequence[str], first: np.ndarray, last: np.ndarray) -> None:
        self.cache, self.addresses, self.last = cache, addresses, last
        self.order = [int(shard) for shard in np.argsort(first, kind="stable") if first[shard] >= 0]
        self._here = list[int]()  # shards that are fetched and still to be read
        self._place, self._ended, self._moved = 0, False, threading.Condition()
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)
        self._thread.start()

    def reached(self, batch: int) -> None:
        """All batches before this one are read."""
        with self._moved:
            self._place = batch
            self._moved.notify()

    def end(self) -> None:
        """Fetch no more."""
        with self._moved:
            self._ended = True
            self._moved.notify()
        self._thread.join(ENDS_S)

    def _run(self) -> None:
        try:
            for shard in self.order:
                if not self._waits_for_room(self.cache.size(self.addresses[shard])):
                    return
                if self.last[shard] >= self._place:
                    self.cache.fetch(self.addresses[shard], [self.addresses[each] for each in self._here])
                    self._here.append(shard)
        except Exception as error:  # each scheme's library raises kinds of its own; who reads the shard says what is wrong
            LOG.warning("shards are not fetched ahead any more: %s", error)

    def _waits_for_room(self, n_bytes: int) -> bool:
        """Whether so many bytes fit, at last, beside the shards that are still to be read; False where no more is to be fetched."""
        with self._moved:
            self._moved.wait_for(lambda: self._ended or self._room() >= n_bytes)
            return not self._ended

    def _room(self) -> int:
        self._here = [each for each in self._here if self.last[each] >= self._place]
        return self.cache.n_bytes - sum(self.cache.size(self.addresses[each]) for each in self._here)
