"""Manifest rows become batches: nothing lost, in an order and with a sound that (seed, epoch) decide."""

import gc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.audio.augmentation import AugmentationOptions
from moe.system import IGNORED
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper.tokens import label_ids
from moe.training.batches import Draw, LengthGroupedSampler, collate
from moe.training.dataset import SpeechDataset
from moe.training.example_memory import ExampleMemory
from tests.toys.models import CONTEXT, LENGTHS_S, batch_of, dataset, shared_base, tokenizer, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    root = tmp_path_factory.mktemp("corpus")
    return write_corpus(root), root


lengths = st.lists(st.floats(0.1, 30), min_size=1, max_size=120)


def drawn(durations: list[float], batch_size: int, seed: int, epoch: int) -> list[Draw]:
    sampler = LengthGroupedSampler(np.array(durations), batch_size, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


@given(lengths, st.integers(1, 9), st.integers(0, 99), st.integers(0, 9))
def test_every_epoch_is_a_permutation_that_knows_its_epoch(
    durations: list[float], batch_size: int, seed: int, epoch: int
) -> None:
    draws = drawn(durations, batch_size, seed, epoch)
    assert sorted(draw.index for draw in draws) == list(range(len(durations)))
    assert {draw.epoch for draw in draws} == {epoch}


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    durations = np.random.default_rng(0).uniform(1, 5, 64).tolist()
    first = drawn(durations, 4, 1, 2)
    np.random.seed(0)
    torch.manual_seed(0)
    assert drawn(durations, 4, 1, 2) == first
    orders = {tuple(draw.index for draw in drawn(durations, 4, *key)) for key in ((1, 2), (1, 3), (2, 2), (2, 1), (12, 0))}
    assert len(orders) == 5


def test_a_sampler_that_skipped_epochs_goes_on_as_one_that_ran_them() -> None:
    sampler = LengthGroupedSampler(np.arange(20.0), 4, 3)
    ran = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        ran.append([draw.index for draw in sampler])
    assert ran[2] == [draw.index for draw in drawn(np.arange(20.0).tolist(), 4, 3, 2)]


def test_batches_hold_similar_lengths_and_only_the_last_is_short() -> None:
    durations = np.random.default_rng(0).uniform(1, 30, 259)
    order = [draw.index for draw in drawn(durations.tolist(), 8, 0, 0)]
    spreads = [np.ptp(durations[order[start : start + 8]]) for start in range(0, 256, 8)]
    assert np.mean(spreads) < 2 and len(order) == 259  # by chance it would be about 22
    firsts = [durations[order[start]] for start in range(0, 256, 8)]
    assert np.any(np.diff(firsts) < 0) and np.any(np.diff(firsts) > 0)  # the batches themselves are shuffled


def test_an_item_is_the_utterances_audio_labels_and_extras(corpus) -> None:
    manifest, root = corpus
    extras = {"embedding": np.arange(12, dtype=np.float32).reshape(6, 2)}
    item = dataset(manifest, root, extras=extras)[3]
    assert item["utterance_id"] == "u3" and item["embedding"].tolist() == [6.0, 7.0]
    assert item["labels"] == label_ids(tokenizer(), manifest["reference"][3])
    assert item["n_frames"] == round(LENGTHS_S[3] * 50) <= item["mel"].shape[1]


def test_a_batch_by_hand(corpus) -> None:
    manifest, root = corpus
    data = dataset(manifest, root)
    batch = collate(data, [data[0], data[2]])
    assert batch["mel"].shape == (2, 16, 50)  # 0.7 s + 0.2 s of silence: the next quarter is 1 s, 50 frames
    assert batch["n_frames"].tolist() == [20, 35] and batch["utterance_ids"] == ["u0", "u2"]
    n_labels = [len(data.example(index)["labels"]) for index in (0, 2)]
    assert (batch["labels"] != IGNORED).sum(1).tolist() == n_labels and batch["labels"].shape[1] == max(n_labels)
    assert batch_of(data, [0])["mel"].shape == (1, 16, 100)


def test_augmentation_is_keyed_by_seed_epoch_and_utterance_not_by_place_or_order(corpus) -> None:
    manifest, root = corpus
    data, again = (dataset(manifest, root, augmentation=AugmentationOptions(), seed=4) for _ in range(2))
    augmented = data[Draw(2, 5)]["mel"]
    for other in (Draw(0, 5), Draw(2, 4)):
        again[other]
    assert np.array_equal(again[Draw(2, 5)]["mel"], augmented)
    assert not np.array_equal(again[Draw(2, 4)]["mel"], augmented)
    assert not np.array_equal(dataset(manifest, root, augmentation=AugmentationOptions(), seed=5)[Draw(2, 5)]["mel"], augmented)
    part = dataset(manifest.iloc[2:].reset_index(drop=True), root, augmentation=AugmentationOptions(), seed=4)
    assert np.array_equal(part[Draw(0, 5)]["mel"], augmented)


def test_an_utterance_that_is_repeated_is_drawn_anew_each_time(corpus) -> None:
    manifest, root = corpus
    rows = manifest.iloc[[2, 0, 2, 2]].reset_index(drop=True)
    repeated, once = (dataset(each, root, augmentation=AugmentationOptions(), seed=4) for each in (rows, manifest))
    first, again, third = (repeated[Draw(place, 5)]["mel"] for place in (0, 2, 3))
    assert np.array_equal(first, once[Draw(2, 5)]["mel"]), "the first is as without repeats"
    assert not np.array_equal(first, again) and not np.array_equal(first, third) and not np.array_equal(again, third)


def test_an_utterance_is_computed_in_one_thread_as_in_a_loaders_worker(corpus, monkeypatch) -> None:
    """With two threads a log-mel has other bits without AVX-512, and training with workers would be another than without."""
    manifest, root = corpus
    data, seen = dataset(manifest, root), []
    monkeypatch.setattr(
        data, "waveform", lambda index: seen.append(torch.get_num_threads()) or SpeechDataset.waveform(data, index)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert len(data[0]["mel"]) and seen == [1] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_cache_changes_nothing_and_all_data_sets_have_one_bound(corpus) -> None:
    manifest, root = corpus
    options, memory = AugmentationOptions(), ExampleMemory()
    data = dataset(manifest, root, augmentation=options, memory=memory)
    first = data[Draw(1, 0)]["mel"]
    assert np.array_equal(data[Draw(1, 0)]["mel"], first) and 1 in data._examples
    memory.n_bytes = memory.used + 1
    other = dataset(manifest, root, memory=memory)
    assert other.example(4)["mel"].shape[0] == 16 and not other._examples and data.example(4) and 4 not in data._examples
    nothing = dataset(manifest, root, augmentation=options, memory=ExampleMemory(0))
    assert np.array_equal(nothing[Draw(1, 0)]["mel"], first) and not nothing._examples


def test_what_a_data_set_kept_is_given_back_with_it(corpus) -> None:
    manifest, root = corpus
    memory = ExampleMemory()
    data, other = (dataset(manifest, root, memory=memory) for _ in range(2))
    used = [memory.used for each in (data, other) if each.example(0)]
    assert used == [used[0], 2 * used[0]] and used[0] >= data.example(0)["mel"].nbytes
    data.forget()
    assert memory.used == used[0]
    del other
    gc.collect()
    assert memory.used == 0


@pytest.mark.parametrize(
    ("environment", "n_loaders", "share"),
    [({}, 0, 600), ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "8"}, 2, 100), ({"WORLD_SIZE": "3"}, 1, 100)],
)
def test_each_process_and_loader_of_a_machine_has_an_even_share(environment, n_loaders, share, monkeypatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    memory = ExampleMemory(600, n_loaders)
    assert memory.share == share and memory.take(share) and not memory.take(1)


def test_utterances_longer_than_the_window_are_refused_by_name_before_anything_is_read(corpus) -> None:
    manifest, _ = corpus
    with pytest.raises(
        ValueError, match=r"2 utterances are longer than .* window of 2 s, e.g. \['u1', 'u3'\]; .*max_duration_s=2"
    ):
        dataset(manifest.assign(duration_s=[1, 2.1, 2, 9, 1, 1]), Path("nowhere"))


def test_references_longer_than_the_decoder_are_refused_by_name_where_they_are_trained_on(corpus) -> None:
    manifest, root = corpus
    too_long = manifest.assign(reference=["oak " * 40, *manifest["reference"][1:]])
    n_positions = shared_base().model.config.max_target_positions
    with pytest.raises(
        ValueError, match=rf"1 utterances have references of more than the decoder's {n_positions} tokens, e.g. \['u0'\]"
    ):
        dataset(too_long, root, trains=True)
    assert len(dataset(too_long, root)) == 6  # where labels are not used


def test_a_reference_of_just_as_many_tokens_as_the_decoder_takes_is_learnt(corpus) -> None:
    manifest, root = corpus
    lengths = [len(label_ids(tokenizer(), reference)) for reference in manifest["reference"]]
    processor, longest = shared_base().processor, max(lengths)
    assert len(SpeechDataset(manifest, root, WhisperInputs(processor, CONTEXT, longest), trains=True)) == 6
    with pytest.raises(
        ValueError, match=rf"{lengths.count(longest)} utterances have references of more than .* {longest - 1} tokens"
    ):
        SpeechDataset(manifest, root, WhisperInputs(processor, CONTEXT, longest - 1), trains=True)
