"""The training loop: what an update is made of, that it repeats, and that stages are told everything once."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from moe.audio.augmentation import AugmentationOptions
from moe.experts.routed_lora import AdapterOptions
from moe.routing.losses import BalanceOptions
from moe.systems.whisper_moe.model import WhisperMoE
from moe.training import plan as training_plan
from moe.training.loop import fit
from moe.training.plan import ComputeOptions, updates_per_epoch
from moe.training.precision import precision
from tests.toys.models import FULL
from tests.toys.training import (
    Diary,
    changed,
    dataset,
    one_hot_rows,
    plan,
    toy_base,
    toy_mixture,
    training,
    weights,
    write_corpus,
)

N = 8
UNBALANCED = BalanceOptions(balance="none")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("toy")
    return write_corpus(root, N), root


@pytest.fixture
def every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_plan, "LOG_EVERY", 1)


def mixture_and_data(corpus, dropout: float = 0.0, **options):
    manifest, root = corpus
    base = toy_base()
    model = toy_mixture(
        base, balance=UNBALANCED, adapters=AdapterOptions(lora_r=2, shared_r=None, lora_alpha=4.0, lora_dropout=dropout)
    )
    return model, dataset(manifest, root, extras={"routing_weights": one_hot_rows(len(manifest))}, **options)


def trained(corpus, **changes) -> tuple[WhisperMoE, Diary]:
    model, data = mixture_and_data(corpus, context=FULL)
    diary = Diary()
    fit(model, data, training(plan(**changes)), diary)
    return model, diary


def test_small_batches_accumulated_are_one_large_batch(corpus, every_update) -> None:
    """Stack pitfall (measurements §0): the Trainer multiplied Whisper's loss by the number of accumulated batches."""
    once, large = trained(corpus, batch_size=8, accumulation=1, epochs=1)
    four, small = trained(corpus, batch_size=2, accumulation=4, epochs=1)  # encoded in the whole window, so padding is the same
    assert [update for update, _ in small.logged] == [1]
    assert small.values("loss") == pytest.approx(large.values("loss"), rel=1e-3)  # the Trainer logs four decimals
    assert small.values("gradient_norm") == pytest.approx(large.values("gradient_norm"), rel=1e-3)
    for name, value in weights(once).items():
        torch.testing.assert_close(dict(four.named_parameters())[name], value, atol=2e-3, rtol=0)


def test_without_the_models_word_the_loss_would_be_multiplied(corpus, every_update) -> None:
    """Shows that the test above can fail: a forward that takes any keyword, as Whisper's does, and does not say so."""

    class Careless(torch.nn.Module):
        def __init__(self, model: WhisperMoE) -> None:
            super().__init__()
            self.model = model

        def forward(self, num_items_in_batch=None, **batch):
            return self.model(**batch)

    model, data = mixture_and_data(corpus)
    diary = Diary()
    fit(Careless(model), data, training(plan(batch_size=2, accumulation=4, epochs=1)), diary)
    _, right = trained(corpus, batch_size=2, accumulation=4, epochs=1)
    assert diary.values("loss")[0] > 3 * right.values("loss")[0]


def test_the_same_seed_gives_the_same_bits_whatever_the_workers(corpus, every_update) -> None:
    """Design 11; augmentation and dropout on, since those are what draws."""
    results = []
    for seed, num_workers in ((3, 0), (3, 1), (3, 0), (4, 0)):
        model, data = mixture_and_data(corpus, dropout=0.2, augmentation=AugmentationOptions(), seed=seed)
        diary = Diary()
        fit(model, data, training(plan(seed=seed, num_workers=num_workers)), diary)
        results.append((weights(model), diary.logged))
    (first, logged), (with_worker, logged_with_worker), (again, logged_again), (other, _) = results
    for repeated in (with_worker, again):
        assert all(torch.equal(first[name], repeated[name]) for name in first)
    assert logged == logged_with_worker == logged_again
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_only_what_requires_gradient_changes(corpus) -> None:
    model, data = mixture_and_data(corpus)
    before, trainable = weights(model), set(model.trainable_parameters())
    fit(model, data, training(plan()), Diary())
    after = changed(before, model)
    assert after and after <= trainable and not any("base_layer" in name for name in after)


def test_the_learning_rate_rises_stays_and_falls(corpus, every_update) -> None:
    _, diary = trained(corpus, epochs=10, batch_size=4, warmup_share=0.2, decay_share=0.4)  # 20 updates: 4, 8, 8
    rates = np.array(diary.values("learning_rate"))
    top = rates.argmax()
    assert len(rates) == 20 and rates.max() == pytest.approx(1e-2)
    assert (np.diff(rates[:4]) > 0).all() and rates[0] < 0.6e-2
    assert rates[top : top + 7] == pytest.approx(1e-2)
    assert (np.diff(rates[13:]) < 0).all() and 0 <= rates[-1] < 0.3e-2


def test_a_loss_that_is_not_a_number_is_seen(corpus, every_update) -> None:
    """Stack pitfall: one NaN label, and all logged losses stayed finite while all weights became NaN."""
    model, data = mixture_and_data(corpus)
    with torch.no_grad():
        model.base.model.decoder.layer_norm.weight[0] = math.nan
    diary = Diary()
    fit(model, data, training(plan(epochs=1)), diary)
    assert all(math.isnan(loss) for loss in diary.values("loss")) and diary.values("loss")


def test_a_run_shorter_than_the_logging_interval_shows_its_loss(corpus) -> None:
    _, diary = trained(corpus, epochs=1)
    assert len(diary.values("loss")) == 1


@pytest.mark.parametrize(
    ("changes", "epochs", "n_updates"),
    [
        ({"epochs": 3}, [0, 1, 2], 6),
        ({"epochs": 2, "batch_size": 3, "accumulation": 2}, [0, 1], 4),
        ({"epochs": 1, "max_updates": 5}, [0, 1, 2], 5),
        ({"epochs": 1, "max_updates": 3}, [0, 1], 3),
        ({"epochs": 9, "batch_size": 2, "max_updates": 1}, [0], 1),
        ({"epochs": 0}, [], 0),
    ],
)
def test_every_epoch_is_told_once(corpus, changes, epochs, n_updates) -> None:
    """Pitfall 3: the epoch was not passed on. An epoch that `max_updates` cuts short counts as one too."""
    model, data = mixture_and_data(corpus)
    diary = Diary()
    summary = fit(model, data, training(plan(**changes)), diary)
    assert diary.begun == epochs and diary.ended == epochs
    assert summary.n_updates == n_updates


def test_a_stage_may_end_the_training(corpus) -> None:
    model, data = mixture_and_data(corpus)
    diary = Diary(stop_after=1)
    summary = fit(model, data, training(plan(epochs=5)), diary)
    assert diary.ended == [0, 1] and (summary.n_epochs, summary.n_updates, summary.n_utterances) == (2, 4, 2 * N)


def test_each_epoch_serves_everyone_once_in_an_order_of_its_own(corpus) -> None:
    model, data = mixture_and_data(corpus)
    served: list[list[str]] = []

    class Listening(Diary):
        def epoch_begins(self, epoch: int) -> None:
            served.append([])

    forward = model.forward
    model.forward = lambda **batch: (served[-1].extend(batch["utterance_ids"]), forward(**batch))[1]
    fit(model, data, training(plan(epochs=3, batch_size=2)), Listening())
    assert all(sorted(epoch) == [row["utterance_id"] for row in data.rows] for epoch in served)
    assert len({tuple(epoch) for epoch in served}) == 3


def test_updates_per_epoch_by_hand() -> None:
    table = [(8, 4, 1, 2), (9, 4, 1, 3), (9, 4, 2, 2), (1, 16, 8, 1), (16, 4, 4, 1)]
    for n, batch_size, accumulation, expected in table:
        assert updates_per_epoch(plan(batch_size=batch_size, accumulation=accumulation), n) == expected


def test_half_precision_is_a_wish_and_a_capability(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision(ComputeOptions()) == "fp32" and precision(ComputeOptions(fp16=True)) == "bf16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert precision(ComputeOptions()) == "fp16" and precision(ComputeOptions(no_fp16=True)) == "fp32"
    with pytest.raises(ValueError, match="fp16=true and no_fp16=true contradict"):
        ComputeOptions(fp16=True, no_fp16=True)


def test_nothing_is_left_on_disk(corpus, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained(corpus, epochs=1)
    assert list(tmp_path.iterdir()) == []
