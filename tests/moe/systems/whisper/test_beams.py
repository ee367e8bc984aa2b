"""Decoding does once what it need not repeat, and says the same."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache

from moe.experts.routed_lora import AdapterOptions, RoutedLinear
from moe.routing.weights import Routing, RoutingWeights, one_hot
from moe.systems.whisper.beams import beam_cache
from tests.toys.models import bare_model, inputs

MEL, _, _ = inputs()


@torch.no_grad()
def test_the_cache_holds_what_the_decoder_would_have_computed_for_every_beam() -> None:
    model = bare_model()
    states = model.model.encoder(MEL).last_hidden_state
    theirs = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    model(
        encoder_outputs=(states.repeat_interleave(3, 0),),
        decoder_input_ids=torch.ones(9, 1, dtype=torch.long),
        past_key_values=theirs,
    )
    ours = beam_cache(model, states, 3)
    for mine, wanted in zip(ours.cross_attention_cache.layers, theirs.cross_attention_cache.layers, strict=True):
        torch.testing.assert_close(mine.keys, wanted.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine.values, wanted.values, atol=1e-5, rtol=1e-5)
    assert ours.get_seq_length() == 0


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_from_the_cache_is_transformers_own(beams: int) -> None:
    model = bare_model()
    model.generation_config.max_length = None
    states = model.model.encoder(MEL)
    cache = beam_cache(model, states.last_hidden_state, beams)
    ours = model.generate(encoder_outputs=states, past_key_values=cache, num_beams=beams, max_length=14)
    assert ours.tolist() == model.generate(MEL, num_beams=beams, max_length=14).tolist()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (4, 1, 6)])
def test_a_decoding_step_adds_what_a_training_step_adds(shared: bool, shape: tuple[int, ...]) -> None:
    """Token by token experts and shared adapter are joined and kept; four rows are two utterances with two beams."""
    layer = RoutedLinear(nn.Linear(6, 5), Routing(), 4, AdapterOptions(lora_r=2, shared_r=None, shared_expert=shared))
    for matrix in (layer.lora_B, layer.shared_B):
        nn.init.normal_(matrix.data)
    x, y = torch.randn(2, *shape)
    with layer.routing.use(RoutingWeights(torch.tensor([[0.3, 0.0, 0.7, 0.0], [0.0, 0.5, 0.0, 0.5]]), 2)):
        expected = layer(x), layer(y)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected[0])
            torch.testing.assert_close(layer(y), expected[1])


@torch.no_grad()
def test_what_is_kept_ends_with_its_routing() -> None:
    layer = RoutedLinear(nn.Linear(6, 5), Routing(), 4, AdapterOptions(lora_r=2, shared_r=None))
    nn.init.normal_(layer.lora_B.data)
    x, said = torch.randn(2, 1, 6), []
    for expert in (0, 1):
        with layer.routing.use(one_hot(torch.full((2,), expert), 4)):
            said.append(layer(x))
            layer.lora_B.data += 1.0
    assert not torch.equal(said[0], said[1])
    with layer.routing.use(one_hot(torch.ones(2, dtype=torch.long), 4)):
        assert not torch.equal(layer(x), said[1])  # trained since
