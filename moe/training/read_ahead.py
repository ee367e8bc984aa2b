"""Shards at an address, brought to this machine before the batches that read them: the order of the batches says which come next.

A thread fetches them in the order of their first use, as far as the cache has room beside those that are still to be read. It lives while
an epoch's batches are asked for, so that none runs where a loader forks its workers, or while a data set is embedded or decoded.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from moe.corpora.locations import CorpusRoot, is_address, locate
from moe.corpora.shard_cache import ShardCache

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
        indices = [[draw.index for draw in batch] for batch in batches]
        with _fetching(self.cache, self.addresses, self.shards, indices) as reached:
            for number, batch in enumerate(batches):
                reached(number - self.margin)
                yield batch


def read_ahead(batches: Sampler[list[Any]], dataset: Any, margin: int) -> Sampler[list[Any]]:
    """The batches with shards fetched ahead, where a data set reads shards at an address and a cache keeps them."""
    found = _at_address(dataset)
    return batches if found is None else ReadAhead(batches, *found, margin)


@contextlib.contextmanager
def fetched_ahead(dataset: Any, batches: Iterable[Sequence[int] | np.ndarray]) -> Iterator[Callable[[int], None]]:
    """Within the block, shards that these batches of a data set read are fetched ahead; it says by number which batch it has reached.

    Args:
        batches: indices of the data set's utterances, in the order in which they are read; those that it holds in memory read no shard.
    """
    found = _at_address(dataset)
    if found is None:
        yield lambda number: None
        return
    unread = [[int(index) for index in batch if not dataset.is_kept(int(index))] for batch in batches]
    with _fetching(*found, unread) as reached:
        yield reached


def _at_address(dataset: Any) -> tuple[ShardCache, list[str], np.ndarray] | None:
    """Cache and addresses of a data set's shards, and in which each utterance lies, (N,); None where there is nothing to fetch."""
    root = getattr(dataset, "root", None)  # of a `SpeechDataset`, whose tables a bare checkout has no pandas for
    if not isinstance(root, CorpusRoot) or root.cache is None or not is_address(root) or (shards := dataset.shards) is None:
        return None
    names = dict(zip(shards.tolist(), dataset.rows.column("audio"), strict=True))
    return root.cache, [locate(root, names[number]) for number in range(len(names))], shards


@contextlib.contextmanager
def _fetching(
    cache: ShardCache, addresses: Sequence[str], shards: np.ndarray, batches: Sequence[Sequence[int]]
) -> Iterator[Callable[[int], None]]:
    """A thread that fetches the shards of batches for as long as the block."""
    fetching = _Fetching(cache, addresses, *_uses(len(addresses), shards, batches))
    try:
        yield fetching.reached
    finally:
        fetching.end()


def _uses(n_shards: int, shards: np.ndarray, batches: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """First and last batch that reads each shard, (n_shards,) each; −1 where none does."""
    first, last = (np.full(n_shards, -1) for _ in range(2))
    for number, batch in enumerate(batches):
        used = np.unique(shards[np.asarray(batch, int)])
        first[used] = np.where(first[used] < 0, number, first[used])
        last[used] = number
    return first, last


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
