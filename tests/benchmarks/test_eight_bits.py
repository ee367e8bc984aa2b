"""Matrices in 8 bits say nearly what they said, row by row, and leave adapters alone."""

import pytest
import torch
from torch import nn

from benchmarks.speed.eight_bits import EightBits, hold_in_eight_bits
from moe.experts.routed_lora import routed_layers
from tests.toys.models import ALL_LINEARS, N_EXPERTS, adapter_options, toy_mixture

pytestmark = pytest.mark.skipif("onednn" not in torch.backends.quantized.supported_engines, reason="torch without oneDNN")


@torch.no_grad()
def test_a_product_is_off_by_what_rounding_to_eight_bits_allows():
    """A factor rounded to steps of s is off by at most s/2, so a sum of n products by n·s/2 times the other's largest, once for each."""
    linear, x = nn.Linear(24, 70), torch.randn(9, 24) * torch.logspace(-2, 2, 9)[:, None]
    steps = x.abs().amax(1, keepdim=True) * linear.weight.abs().amax(1) / 127  # (9, 70)
    assert ((EightBits(linear)(x) - linear(x)).abs() <= 1.01 * 24 * steps).all()


@torch.no_grad()
def test_a_row_does_not_depend_on_those_beside_it():
    eight, x = EightBits(nn.Linear(24, 70)), torch.randn(9, 24)
    torch.testing.assert_close(eight(torch.cat([x, 100 * x]))[:9], eight(x))


def test_adapters_stay_in_single_precision():
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS), n_experts=N_EXPERTS).eval()
    hold_in_eight_bits(model.base)
    layers = [layer for _, layer in routed_layers(model)]
    assert layers and all(isinstance(layer.base_layer, EightBits) for layer in layers)
    assert all(matrix.dtype == torch.float32 for layer in layers for matrix in (layer.lora_A, layer.lora_B, layer.shared_A))
    mel = torch.randn(2, model.base.config.num_mel_bins, 60)
    with torch.no_grad():
        assert model.encode(model.route(mel, torch.tensor([60, 60]))).states.dtype == torch.float32
