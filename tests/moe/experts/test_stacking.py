"""Stacked trainings compute the mean of what each adds, in one pass, at the scale of one."""

import pytest
import torch

from moe.experts.routed_lora import AdapterOptions, routed_layers
from moe.experts.stacking import TrainingsOptions, adapter_tensors, stack, stacked_options
from tests.toys.training import toy_base, toy_mixture


@pytest.mark.parametrize("stabilised", [False, True], ids=["alpha/r", "alpha/√r"])
@pytest.mark.parametrize("shared_r", [None, 3])
def test_a_stack_adds_the_mean_of_what_its_trainings_add(stabilised: bool, shared_r: int | None) -> None:
    options = AdapterOptions(lora_r=2, lora_alpha=4, shared_r=shared_r, rank_stabilised=stabilised)
    models = [toy_mixture(toy_base(), adapters=options) for _ in range(3)]
    for number, model in enumerate(models):
        generator = torch.Generator().manual_seed(number)
        for parameter in model.trainable_parameters().values():
            parameter.data.normal_(0, 0.3, generator=generator)
    stacked = toy_mixture(toy_base(), adapters=stacked_options(options, 3))
    stack(stacked.base, [adapter_tensors(model.base) for model in models])
    for parts in zip(*(routed_layers(model.base) for model in (stacked, *models)), strict=True):
        (_, whole), *each = parts
        torch.testing.assert_close(added(whole), torch.stack([added(layer) for _, layer in each]).mean(0))
        assert (whole.scaling, whole.shared_scaling) == pytest.approx((each[0][1].scaling, each[0][1].shared_scaling))


def added(layer) -> torch.Tensor:
    """What the shared adapter and each expert add to the weight, (1 + E, out, in)."""
    experts = layer.scaling * layer.lora_B.data @ layer.lora_A.data
    return torch.cat([(layer.shared_scaling * layer.shared_B.data @ layer.shared_A.data)[None], experts])


def test_each_training_has_a_seed_of_its_own_and_neighbours_share_none() -> None:
    options = TrainingsOptions(trainings=3)
    assert options.seeds(7)[0] == 7 and not set(options.seeds(7)) & set(options.seeds(8))
