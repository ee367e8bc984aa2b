"""Shards come in the order of their first use, never more of them than there is room for beside those still to be read."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import Tensor, nn

import tests.toys.corpora as toys
from moe.corpora.locations import CorpusRoot
from moe.corpora.shard_cache import ShardCache
from moe.recognition.decoding import decode
from moe.recognition.hypothesis_store import BatchStore
from moe.routing.embeddings import embed
from moe.system import Ask, DecodingOptions, Hypothesis
from moe.training.batches import Draw, LengthGroupedSampler, length_batches
from moe.training.dataset import SpeechDataset
from moe.training.example_memory import ExampleMemory
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

    def open(self, address: str) -> None:
        return None  # read where it lies

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


class Measured(Loudness):
    """The same with a length, as what is embedded or decoded has."""

    def length(self, n_samples: int) -> int:
        return 1


class Deaf:
    """A system that hears nothing, once the shards of its batch are here."""

    ask_type, module = Ask, nn.Linear(1, 1)

    def __init__(self, here: Callable[[list[str]], None]) -> None:
        self.here = here

    def decode(self, batch: dict, options: DecodingOptions, ask: Ask, with_loss: bool) -> list[Hypothesis]:
        self.here(batch["utterance_ids"])
        return [Hypothesis(name, f"{value:.6f}") for name, value in zip(batch["utterance_ids"], batch["loudness"], strict=True)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pd.DataFrame]:
    """Four shards of three utterances and the manifest; the utterance `a0` lies in `a.tar`."""
    folder, rows = tmp_path_factory.mktemp("shards"), []
    for number, shard in enumerate("abcd"):
        members = {f"{shard}{place}": toys.encode(toys.tone(3 * number + place), "wav") for place in range(3)}
        (folder / f"{shard}.tar").write_bytes(toys.tar_bytes(members))
        rows += [ROW | {"utterance_id": name, "audio": f"{shard}.tar", "member": name} for name in members]
    durations = np.random.default_rng(0).permutation(len(rows)) + 1.0
    return f"file://{folder}", pd.DataFrame(rows).assign(duration_s=durations)


def embedded(data: SpeechDataset, here: Callable[[list[str]], None], folder: Path) -> list[float]:
    def embedder(batch: dict) -> Tensor:
        here(batch["utterance_ids"])
        return batch["loudness"][:, None]

    return embed(embedder, data, folder, 2).vectors[:, 0].tolist()


def decoded(data: SpeechDataset, here: Callable[[list[str]], None], folder: Path) -> list[str]:
    return [each.text for each in decode(Deaf(here), data, DecodingOptions(decoding_batch_size=2), store=BatchStore(folder))]


@pytest.mark.parametrize("work", [embedded, decoded])
@pytest.mark.parametrize("together", [None, 2])
def test_what_is_embedded_or_decoded_finds_its_shards_fetched_to_the_same_bits(
    work: Callable, together: int | None, shards: tuple[str, pd.DataFrame], tmp_path: Path
) -> None:
    address, rows = shards
    cache = Noted(4)

    def here(names: list[str]) -> None:
        assert cache.has(*{f"{address}/{name[0]}.tar" for name in names})

    ahead = SpeechDataset(rows, CorpusRoot(address, (), cache), Measured(), memory=ExampleMemory(0), shards_together=together)
    plain = SpeechDataset(rows, address, Measured(), memory=ExampleMemory(0), shards_together=together)
    assert work(ahead, here, tmp_path / "ahead") == work(plain, lambda names: None, tmp_path / "plain")
    assert sorted(cache.asked) == [f"{address}/{name}.tar" for name in "abcd"]
    assert together is None or sorted(cache.asked[:2]) == [f"{address}/{name}.tar" for name in "ab"]


def test_what_is_in_memory_or_done_is_not_fetched(shards: tuple[str, pd.DataFrame], tmp_path: Path) -> None:
    address, rows = shards
    data = SpeechDataset(rows, CorpusRoot(address, (), cache := Noted(4)), Measured())
    for index in range(len(rows)):
        data.example(index)
    embedded(data, lambda names: None, tmp_path / "embedded")
    done = decoded(data, lambda names: None, tmp_path / "decoded")
    data.forget()
    assert decoded(data, lambda names: None, tmp_path / "decoded") == done and cache.asked == []


def test_batches_of_shards_that_come_together_hold_no_others_whatever_the_order_of_the_rows(
    shards: tuple[str, pd.DataFrame],
) -> None:
    address, rows = shards
    found = []
    for order in (np.arange(len(rows)), np.random.default_rng(1).permutation(len(rows))):
        data = SpeechDataset(rows.iloc[order].reset_index(drop=True), address, Measured(), shards_together=2)
        found.append([[data.utterance_ids[index] for index in batch] for batch in length_batches(data, 4)])
    assert found[0] == found[1] and sorted(sum(found[0], [])) == sorted(rows["utterance_id"])
    assert ["".join(sorted({name[0] for name in batch})) for batch in found[0]] == ["ab", "ab", "cd", "cd"]
