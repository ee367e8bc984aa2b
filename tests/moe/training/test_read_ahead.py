"""Shards come in the order of their first use, never more of them than there is room for beside those still to be read."""

import threading

import numpy as np
import pandas as pd
import pytest

from moe.corpora.locations import CorpusRoot
from moe.corpora.shard_cache import ShardCache
from moe.training.batches import Draw, LengthGroupedSampler
from moe.training.dataset import SpeechDataset
from moe.training.read_ahead import ReadAhead, read_ahead
from tests.toys.bucket_training import Loudness
from tests.toys.corpora import ROW

WAITS_S = 60


class Noted:
    """A cache with room for some shards of one byte, which writes down what it is asked for."""

    def __init__(self, n_bytes: int, fails: bool = False) -> None:
        self.n_bytes, self.fails, self.asked, self.moved = n_bytes, fails, list[str](), threading.Condition()

    def size(self, address: str) -> int:
        return 1

    def fetch(self, address: str, before: list[str]) -> bool:
        if self.fails:
            raise OSError("gone")
        with self.moved:
            self.asked.append(address)
            self.moved.notify()
        assert len(before) < self.n_bytes
        return True

    def has(self, *addresses: str) -> bool:
        with self.moved:
            return self.moved.wait_for(lambda: set(addresses) <= set(self.asked), WAITS_S)


def batches_of(*shards: str) -> list[list[Draw]]:
    """Utterance n lies in shard n."""
    return [[Draw("abcd".index(shard), 0) for shard in batch] for batch in shards]


def test_each_batch_finds_its_shards_fetched_and_the_order_is_that_of_first_use() -> None:
    cache, batches = Noted(2), batches_of("c", "ca", "a", "b", "bd")
    served = ReadAhead(batches, cache, list("abcd"), np.arange(4))
    for batch, needed in zip(served, ("c", "ca", "a", "b", "bd"), strict=True):
        assert cache.has(*needed) and batch in batches
    assert cache.asked == list("cabd") and len(served) == 5


def test_with_no_room_nothing_more_is_fetched_and_an_epoch_that_is_left_ends_the_thread() -> None:
    cache = Noted(1)
    served = iter(ReadAhead(batches_of("ab", "ab", "ab"), cache, list("abcd"), np.arange(4)))
    next(served)
    assert cache.has("a") and cache.asked == ["a"]
    served.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "read ahead"]


def test_what_cannot_be_fetched_is_left_to_who_reads_it() -> None:
    batches = batches_of("a", "b")
    assert list(ReadAhead(batches, Noted(2, fails=True), list("abcd"), np.arange(4))) == batches


@pytest.mark.parametrize(("root", "ahead"), [("file:///b", True), ("/b", False)])
def test_only_shards_at_an_address_are_fetched_ahead(root: str, ahead: bool) -> None:
    rows = pd.DataFrame([ROW | {"utterance_id": name, "audio": f"{name}.tar", "member": "x"} for name in "ab"])
    data = SpeechDataset(rows, CorpusRoot(root, (), ShardCache("/nowhere", 1)), Loudness())
    found = read_ahead(batches_of("a"), data, 0)
    assert isinstance(found, ReadAhead) == ahead and (not ahead or found.addresses == ["file:///b/a.tar", "file:///b/b.tar"])
    files = SpeechDataset(rows.assign(member=None), data.root, Loudness())
    assert files.shards is None and read_ahead(batches_of("a"), files, 0) == batches_of("a")


def test_utterances_of_few_shards_come_together_and_all_come_once() -> None:
    random, n_shards, n_each, together = np.random.default_rng(0), 40, 64, 4
    shards = random.permutation(np.repeat(np.arange(n_shards), n_each))
    sampler = LengthGroupedSampler(random.uniform(1, 9, len(shards)), 2, 0, shards, together)  # a pool has 64 utterances
    order = np.array([draw.index for draw in sampler])
    assert sorted(order) == list(range(len(shards)))
    places = [np.flatnonzero(shards[order] == shard) for shard in range(n_shards)]
    open_at = [sum(place.min() <= at <= place.max() for place in places) for at in range(0, len(order), 16)]
    assert max(open_at) <= 2 * together
    sampler.set_epoch(1)
    assert [draw.index for draw in sampler] != order.tolist()
