"""Averaged weights against averages worked out from every update's weights, and what hooks, training and model see of them."""

import dataclasses

import pytest
import torch

from moe.training.averaging import AveragingOptions, WeightAverage
from moe.training.hooks import TrainingHooks
from moe.training.loop import fit
from moe.training.trainer import ResumableTrainer
from tests.toys.training import Diary, dataset, plan, toy_base, toy_mixture, training, weights, write_corpus

EPOCHS, N, RESTART_AFTER = 3, 12, 1  # three updates of four utterances in an epoch


class Watching(TrainingHooks):
    """Keeps the weights that are judged."""

    def __init__(self, model: torch.nn.Module, restart_after: int | None = None) -> None:
        self.model, self.restart_after = model, restart_after
        self.judged: list[dict[str, torch.Tensor]] = []

    def epoch_ends(self, epoch: int, is_last: bool) -> bool:
        self.judged.append(weights(self.model))
        return False

    def epoch_ended(self, epoch: int) -> bool:
        return epoch == self.restart_after


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A function of the options: the hooks, the weights after every update, and the model after training."""
    manifest = write_corpus(tmp_path, N)

    def train(options: AveragingOptions, restart_after: int | None = None):
        model, after = toy_mixture(toy_base(), n_experts=0), []
        update_ends = ResumableTrainer.update_ends

        def kept(trainer) -> None:
            after.append(weights(model))
            update_ends(trainer)

        with monkeypatch.context() as patch:
            patch.setattr(ResumableTrainer, "update_ends", kept)
            hooks = Watching(model, restart_after)
            fit(model, dataset(manifest, tmp_path), training(plan(epochs=EPOCHS, averaging=options)), hooks)
        return hooks.judged, after, weights(model)

    return train


def mean_of(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]).double().mean(0).float() for name in rows[0]}


def exponential(rows: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """The recursion by hand; the first weights are the first average."""
    average = {name: value.double() for name, value in rows[0].items()}
    for n, row in enumerate(rows[1:], start=1):
        stays = min(decay, (1 + n) / (10 + n))
        average = {name: stays * average[name] + (1 - stays) * row[name].double() for name in row}
    return {name: value.float() for name, value in average.items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_without_averaging_the_last_weights_are_judged_and_left(trained) -> None:
    judged, after, left = trained(AveragingOptions())
    assert_same(judged[-1], after[-1])
    assert_same(left, after[-1])


def test_an_exponential_average_follows_its_recursion(trained) -> None:
    judged, after, left = trained(AveragingOptions("ema", ema_decay=0.3))
    for epoch in range(EPOCHS):
        assert_same(judged[epoch], exponential(after[: 3 * (epoch + 1)], 0.3))
    assert_same(left, judged[-1])


def test_the_last_epochs_are_averaged_over_their_updates(trained) -> None:
    judged, after, left = trained(AveragingOptions("last", average_epochs=2))
    for epoch, updates in enumerate([slice(0, 3), slice(0, 6), slice(3, 9)]):
        assert_same(judged[epoch], mean_of(after[updates]))
    assert_same(left, judged[-1])


def test_training_goes_on_from_its_own_weights(trained) -> None:
    _, plain, _ = trained(AveragingOptions())
    _, averaged, left = trained(AveragingOptions("last"))
    for one, other in zip(plain, averaged, strict=True):
        assert_same(one, other)
    assert any(not torch.equal(left[name], value) for name, value in averaged[-1].items()), "an average is not the last"


def test_weights_that_a_hook_sets_start_the_average_afresh(trained) -> None:
    judged, after, _ = trained(AveragingOptions("last", average_epochs=2), RESTART_AFTER)
    assert_same(judged[-1], mean_of(after[6:9]))


def test_only_what_trains_is_averaged_and_interruption_gives_back_its_own_weights() -> None:
    model = toy_mixture(toy_base(), n_experts=0)
    average = WeightAverage(AveragingOptions("ema", ema_decay=0.5), model)
    assert set(average.names) == set(model.trainable_parameters())
    average.update_ends(0)
    for parameter in model.trainable_parameters().values():
        parameter.data += 1
    average.update_ends(0)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), average.in_force():
        assert any(not torch.equal(before[name], value) for name, value in weights(model).items())
        raise KeyboardInterrupt
    assert_same(weights(model), before)


def test_a_state_restored_is_the_state() -> None:
    model = toy_mixture(toy_base(), n_experts=0)
    options = AveragingOptions("last", average_epochs=3)
    average, again = WeightAverage(options, model), WeightAverage(options, model)
    for epoch in (0, 0, 1):
        for parameter in model.trainable_parameters().values():
            parameter.data += 0.1
        average.update_ends(epoch)
    again.restore(*average.state())
    assert again.state()[0] == average.state()[0] == {"0": 2, "1": 1}
    for name, value in average.state()[1].items():
        assert torch.equal(again.state()[1][name], value)


def test_a_training_of_no_update_leaves_the_model_as_it_was(tmp_path) -> None:
    model = toy_mixture(toy_base(), n_experts=0)
    before = weights(model)
    WeightAverage(AveragingOptions("ema"), model).apply()
    assert_same(weights(model), before)


@pytest.mark.parametrize(
    "given", [{"ema_decay": 0.9}, {"averaging": "last", "ema_decay": 0.9}, {"averaging": "ema", "average_epochs": 3}]
)
def test_what_another_average_does_not_read_is_refused(given: dict) -> None:
    with pytest.raises(ValueError, match="needs averaging="):
        AveragingOptions(**given)


def test_hooks_without_an_opinion_get_the_average(tmp_path) -> None:
    model, manifest = toy_mixture(toy_base(), n_experts=0), write_corpus(tmp_path, N)
    around = training(plan(epochs=2, averaging=AveragingOptions("last", average_epochs=1)))
    fit(model, dataset(manifest, tmp_path), around, Diary())
    other = toy_mixture(toy_base(), n_experts=0)
    fit(other, dataset(manifest, tmp_path), dataclasses.replace(around, plan=plan(epochs=2)), Diary())
    assert any(not torch.equal(weights(model)[name], value) for name, value in weights(other).items())
