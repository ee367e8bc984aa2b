"""Both kernels of the mixture are the plain loop, in value and gradient; adapters are where and what they should be."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe.experts import routed_lora
from moe.experts.routed_lora import (
    PARTS,
    AdapterOptions,
    RoutedLinear,
    attach,
    dense_adapters,
    gather_adapters,
    matched_rank,
    routed_layers,
)
from moe.routing.weights import PROBABILITY, Routing, RoutingWeights, one_hot, top_k_weights
from tests.toys.models import ALL_LINEARS, N_EXPERTS, adapter_options, awaken, bare_model, gradients, inputs, toy_mixture


def plain_loop(x: Tensor, lora_a: Tensor, lora_b: Tensor, weights: Tensor) -> Tensor:
    """The oracle: utterance by utterance, expert by expert."""
    rows = []
    for row, shares in zip(x, weights, strict=True):
        rows.append(sum(share * (row @ a.T @ b.T) for share, a, b in zip(shares, lora_a, lora_b, strict=True)))
    return torch.stack(rows)


def dense(x, lora_a, lora_b, routed):
    a, b, weights = dense_adapters(lora_a, lora_b, routed.weights)
    return (x @ a.T * weights[:, None]) @ b


def gather(x, lora_a, lora_b, routed):
    a, b = gather_adapters(lora_a, lora_b, *routed.selected())
    return x @ a.transpose(1, 2) @ b


def loop(x, lora_a, lora_b, routed):
    return plain_loop(x, lora_a, lora_b, routed.weights)


def value_and_gradients(kernel, top_k: int) -> list[Tensor]:
    """Output of a kernel, and the gradients of x, A, B and the gate logits."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7, 12), (N_EXPERTS, 3, 12), (N_EXPERTS, 10, 3), (5, N_EXPERTS)]
    x, lora_a, lora_b, logits = (torch.randn(shape, generator=generator).requires_grad_(True) for shape in shapes)
    y = kernel(x, lora_a, lora_b, top_k_weights(logits, top_k, scaling=PROBABILITY)[0])
    (y * torch.randn(y.shape, generator=generator)).sum().backward()
    return [y.detach(), x.grad, lora_a.grad, lora_b.grad, logits.grad]


@pytest.mark.parametrize("top_k", [1, 2, N_EXPERTS])
@pytest.mark.parametrize("kernel", [dense, gather])
def test_kernels_are_the_plain_loop(kernel, top_k: int) -> None:
    for got, expected in zip(value_and_gradients(kernel, top_k), value_and_gradients(loop, top_k), strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm().clamp_min(1)


def test_a_linear_layer_by_hand() -> None:
    layer = RoutedLinear(nn.Linear(3, 2), Routing(), 2, AdapterOptions(lora_r=1, lora_alpha=4.0, shared_r=2))
    for matrix in (layer.lora_A, layer.lora_B, layer.shared_A, layer.shared_B):
        nn.init.normal_(matrix.data)
    x, w = torch.randn(1, 3), torch.tensor([[0.25, 0.75]])
    delta = x @ layer.shared_A.T @ layer.shared_B.T + plain_loop(x, layer.lora_A, layer.lora_B, w)
    with layer.routing.use(routed_lora.RoutingWeights(w, 2)):
        torch.testing.assert_close(layer(x), layer.base_layer(x) + 4.0 * delta)
    assert torch.equal(layer(x), layer.base_layer(x))  # routing off


@pytest.mark.parametrize("n_experts", [0, 3])
def test_the_shared_adapter_is_on_for_every_utterance(n_experts: int) -> None:
    layer = RoutedLinear(nn.Linear(6, 5), Routing(), n_experts, AdapterOptions(lora_r=2, shared_r=None, lora_alpha=2.0))
    nn.init.normal_(layer.shared_B.data)  # the experts' B stays zero
    x = torch.randn(3, 4, 6)
    expected = layer.base_layer(x) + F.linear(F.linear(x, layer.shared_A), layer.shared_B)
    for weights in [None] + [one_hot(torch.full((3,), expert), n_experts) for expert in range(n_experts)]:
        with layer.routing.use(weights):
            torch.testing.assert_close(layer(x), expected)


def test_without_a_shared_adapter_there_is_none() -> None:
    model = toy_mixture(adapters=adapter_options(shared_expert=False))
    assert all(layer.shared_A.numel() == 0 for _, layer in routed_layers(model.base))
    assert not any("shared" in name for name in model.trainable_parameters())


def test_beams_get_the_experts_of_their_utterance() -> None:
    layer = RoutedLinear(nn.Linear(6, 5), Routing(), 3, AdapterOptions(lora_r=2, shared_r=None))
    nn.init.normal_(layer.lora_B.data)
    x = torch.randn(2, 4, 6)
    with layer.routing.use(one_hot(torch.tensor([2, 0]), 3)):
        one = layer(x)
        torch.testing.assert_close(layer(x.repeat_interleave(3, 0)), one.repeat_interleave(3, 0))
        with pytest.raises(ValueError, match="2 utterances were routed, a layer sees 3 rows"):
            layer(torch.randn(3, 4, 6))


def test_new_adapters_change_nothing_and_can_learn() -> None:
    model, bare = bare_model(), bare_model()
    routing = attach(model, N_EXPERTS, adapter_options(ALL_LINEARS))
    mel, _, labels = inputs()
    with torch.no_grad(), routing.use(one_hot(torch.arange(3), N_EXPERTS)):
        got = model(input_features=mel, decoder_input_ids=labels.clamp_min(0)).logits
    with torch.no_grad():
        expected = bare(input_features=mel, decoder_input_ids=labels.clamp_min(0)).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for _, layer in routed_layers(model):
        assert layer.lora_B.abs().sum() == 0 and (layer.lora_A.abs().sum((1, 2)) > 0).all() and layer.shared_A.abs().sum() > 0


def test_gather_and_dense_give_the_whole_model_the_same_gradients(monkeypatch) -> None:
    mel, n_frames, labels = inputs()
    found = []
    for share in (0.0, 1.0):  # always dense, always gather
        monkeypatch.setattr(routed_lora, "DENSE_SHARE", share)
        model = toy_mixture(adapters=adapter_options(ALL_LINEARS))
        found.append(gradients(model, model(mel, n_frames, labels)["loss"]))
    assert found[0].keys() == found[1].keys() and any(name.startswith("gate.") for name in found[0])
    for name in found[0]:
        assert (found[0][name] - found[1][name]).norm() <= 1e-5 * found[0][name].norm().clamp_min(1e-3), name


def test_few_experts_are_gathered_and_many_are_dense(monkeypatch) -> None:
    called = []
    for name in ("dense_adapters", "gather_adapters"):
        kernel = getattr(routed_lora, name)
        monkeypatch.setattr(routed_lora, name, lambda *args, kernel=kernel, name=name: (called.append(name), kernel(*args))[1])
    layer = RoutedLinear(nn.Linear(3, 3), Routing(), 4, AdapterOptions(lora_r=1, shared_r=None))
    for top_k in (1, 2, 3, 4):
        with layer.routing.use(top_k_weights(torch.randn(2, 4), top_k)[0]):
            layer(torch.randn(2, 3))
    assert called == ["gather_adapters"] * 2 + ["dense_adapters"] * 2


def test_adapters_sit_on_the_targets_above_the_gate_only() -> None:
    model = bare_model()
    attach(model, 2, adapter_options("q_proj,fc1"), first_encoder_layer=1)
    names = {name for name, _ in routed_layers(model)}
    assert len(names) == 2 + 2 * 3  # one encoder layer, two decoder layers with self and cross attention
    assert not any("encoder.layers.0." in name for name in names)
    assert all(name.endswith(("q_proj", "fc1")) for name in names)


@pytest.mark.parametrize("part", PARTS)
def test_adapters_sit_in_the_part_that_is_asked_for_and_of_the_size_asked_for(part: str) -> None:
    options, model = adapter_options(lora_part=part), bare_model()
    attach(model, 0, options)
    names = [name for name, _ in routed_layers(model)]
    assert names and all(f"model.{part}.layers." in name for name in names)
    n = sum(layer.shared_A.numel() + layer.shared_B.numel() for _, layer in routed_layers(model))
    assert matched_rank(bare_model(), options, n) == options.shared_rank


@pytest.mark.parametrize("targets", ["q_proj,vproj", "nothing", " , "])
def test_a_target_that_is_no_layer_is_refused_before_anything_is_changed(targets: str) -> None:
    model = bare_model()
    with pytest.raises(ValueError, match="lora_targets=.*q_proj"):
        attach(model, 2, adapter_options(targets))
    assert not routed_layers(model)


def test_a_target_that_is_in_another_part_is_refused() -> None:
    for part in PARTS:  # the head is in neither
        with pytest.raises(ValueError, match=f"no Linear of the base model's {part} is called proj_out"):
            attach(bare_model(), 2, adapter_options("q_proj,proj_out", lora_part=part))
    assert attach(bare_model(), 2, adapter_options("q_proj,proj_out")) is not None


@pytest.mark.parametrize("targets", ["q_proj,v_proj", ALL_LINEARS])
def test_the_matched_rank_has_the_mixtures_size_counted(targets: str) -> None:
    mixture = toy_mixture(adapters=adapter_options(targets))
    n = sum(p.numel() for name, p in mixture.trainable_parameters().items() if not name.startswith("gate."))
    rank = matched_rank(bare_model(), adapter_options(targets), n)
    single = toy_mixture(n_experts=0, adapters=adapter_options(targets, lora_r=rank))
    assert sum(p.numel() for p in single.trainable_parameters().values()) == n  # rank 4 × (4 experts + shared): 20
    assert rank == 20


def test_under_autocast_the_adapters_compute_in_half_precision_and_agree() -> None:
    model = bare_model()
    routing = attach(model, 2, adapter_options())
    awaken(model)
    layer, x = routed_layers(model)[0][1], torch.randn(2, 5, 32)
    with routing.use(one_hot(torch.tensor([0, 1]), 2)):
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = layer(x)
    assert got.dtype == torch.bfloat16 and layer.lora_A.dtype == torch.float32
    torch.testing.assert_close(got.float(), expected, atol=0.1, rtol=0.05)


def test_a_frozen_half_precision_base_takes_float32_adapters() -> None:
    layer = RoutedLinear(nn.Linear(6, 4).bfloat16(), Routing(), 2, AdapterOptions(lora_r=2, shared_r=None))
    with layer.routing.use(one_hot(torch.tensor([0]), 2)):
        y = layer(torch.randn(1, 3, 6, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (4, 1, 6), (2, 2, 6)])
def test_a_decoding_step_adds_what_a_training_step_adds(shared: bool, shape: tuple[int, ...]) -> None:
    """Token by token experts and shared adapter are joined and kept; four rows are two utterances with two beams, and so are two positions."""
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
