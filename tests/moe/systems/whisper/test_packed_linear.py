"""A matrix laid out once says what the Linear says."""

import pytest
import torch
from torch import nn

from moe.experts.routed_lora import RoutedLinear
from moe.routing.weights import Routing
from moe.systems.whisper.packed_linear import packed
from tests.toys.models import adapter_options


@pytest.mark.parametrize("has_bias", (False, True))
@pytest.mark.parametrize("shape", ((1, 24), (8, 24), (2, 5, 24)))
@torch.no_grad()
def test_the_product_is_that_of_the_linear(shape, has_bias):
    linear = nn.Linear(24, 70, bias=has_bias)
    x = torch.randn(shape)
    torch.testing.assert_close(packed(linear)(x), linear(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_half_precision_is_that_of_autocast():
    linear, x = nn.Linear(24, 70, bias=False).bfloat16(), torch.randn(8, 24)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = packed(linear)(x), linear(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_what_is_more_than_a_matrix_stays_as_it_is():
    routed = RoutedLinear(nn.Linear(24, 70), Routing(), 2, adapter_options())
    assert packed(routed) is routed


def test_a_matrix_that_autocast_would_round_is_left_to_it():
    linear = nn.Linear(24, 70)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(linear) is linear
