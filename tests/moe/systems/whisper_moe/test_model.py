"""The mixture as one module: what it equals, what it trains, and that the gate always sees the same."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moe.experts.routed_lora import RoutedLinear, routed_layers
from moe.routing.curriculum import Phase
from moe.routing.doubt import doubt
from moe.routing.losses import BalanceOptions, kl_balance
from moe.routing.options import RoutingOptions
from moe.routing.weights import RoutingWeights, one_hot
from moe.systems.whisper.encoder import pooled_embedding
from moe.systems.whisper_moe.model import WhisperMoE
from tests.toys.models import (
    ALL_LINEARS,
    HALF,
    N_EXPERTS,
    SHAPE,
    adapter_options,
    bare_model,
    gradients,
    inputs,
    one_by_one,
    toy_base,
    toy_mixture,
)

MEL, N_FRAMES, LABELS = inputs()
MIXED = torch.tensor([[0.6, 0.4, 0.0, 0.0], [0.0, 0.3, 0.0, 0.7], [0.0, 0.0, 1.0, 0.0]])  # (3, E)
LAYERS = ("0", "1", "2", "last")
N_TOKENS = 14


def decoder_logits(model: torch.nn.Module, run: Callable[[], object]) -> Tensor:
    """What the token head makes of the decoder's states while `run` runs."""
    said = []
    with model.model.decoder.register_forward_hook(lambda module, args, output: said.append(model.proj_out(output[0]))):
        run()
    return torch.cat([logits.flatten(0, 1) for logits in said])


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((got - expected).norm() <= tolerance * expected.norm().clamp_min(1e-3))


# --- what it equals


@torch.no_grad()
def test_zero_experts_are_the_base() -> None:
    model, bare = toy_mixture(n_experts=0, adapters=adapter_options(shared_expert=False)), bare_model()
    ours = decoder_logits(model.base, lambda: model(MEL, N_FRAMES, LABELS))
    theirs = decoder_logits(bare, lambda: bare(input_features=MEL, labels=LABELS))
    assert close(ours, theirs) and not routed_layers(model.base)
    bare.generation_config.max_length = None
    assert torch.equal(model.generate(model.route(MEL, N_FRAMES), max_length=N_TOKENS), bare.generate(MEL, max_length=N_TOKENS))


@torch.no_grad()
def test_outside_a_routed_pass_the_base_is_untouched() -> None:
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS))
    model(MEL, N_FRAMES, LABELS)
    model.generate(model.route(MEL, N_FRAMES), max_length=8)
    tokens = LABELS.clamp_min(0)
    ours, theirs = (base(input_features=MEL, decoder_input_ids=tokens).logits for base in (model.base, bare_model()))
    assert torch.equal(ours, theirs)


@torch.no_grad()
def test_the_loss_of_an_utterance_is_transformers_own() -> None:
    model, bare = toy_mixture(n_experts=0, adapters=adapter_options(shared_expert=False)), bare_model()
    losses = model(MEL, N_FRAMES, LABELS)["utterance_loss"]
    for row in range(3):
        expected = bare(input_features=MEL[row : row + 1], labels=LABELS[row : row + 1]).loss
        assert losses[row].item() == pytest.approx(expected.item(), abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("mixing", ["delta", "loss"])
@pytest.mark.parametrize("gate_layer", LAYERS)
def test_a_mixed_batch_is_its_utterances_one_by_one(mixing: str, gate_layer: str) -> None:
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(gate_layer=gate_layer, mixing=mixing))
    together = model(MEL, N_FRAMES, LABELS)["utterance_loss"]
    alone = [model(MEL[row : row + 1], N_FRAMES[row : row + 1], LABELS[row : row + 1])["loss"] for row in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), atol=HALF, rtol=HALF)
    assert together.std() > 0.01


@pytest.mark.parametrize("mixing", ["delta", "loss"])
@pytest.mark.parametrize("beams", [1, 3])
def test_tokens_of_a_mixed_batch_are_those_of_one_by_one_decoding(mixing: str, beams: int) -> None:
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(mixing=mixing))
    options = {"num_beams": beams, "max_length": N_TOKENS}
    together = model.generate(model.route(MEL, N_FRAMES, None, MIXED), **options)
    rows = [slice(row, row + 1) for row in range(3)]
    alone = one_by_one(
        lambda row: model.generate(model.route(MEL[rows[row]], N_FRAMES[rows[row]], None, MIXED[rows[row]]), **options),
        3,
        model.base.config.pad_token_id,
    )
    assert torch.equal(together, F.pad(alone, (0, together.shape[1] - alone.shape[1]), value=model.base.config.pad_token_id))
    other = model.generate(model.route(MEL, N_FRAMES, None, MIXED.roll(1, 0)), **options)
    assert together.shape != other.shape or not torch.equal(together, other)  # the routing decides the words


@pytest.mark.parametrize("beams", [1, 3])
def test_decoding_is_peft_style_one_adapter_at_a_time(beams: int) -> None:
    """Oracle: each utterance decoded alone by a plain model into whose weights its expert was merged."""
    adapters = adapter_options(ALL_LINEARS, shared_expert=False)
    model, experts = toy_mixture(adapters=adapters), torch.tensor([2, 0, 3])
    weights = one_hot(experts, N_EXPERTS).weights
    options = {"num_beams": beams, "max_length": N_TOKENS}
    together = model.generate(model.route(MEL, N_FRAMES, None, weights), **options)
    for row, expert in enumerate(experts.tolist()):
        merged = bare_model()
        merged.generation_config.max_length = None
        for name, layer in routed_layers(model.base):
            merged.get_submodule(name).weight.data += layer.scaling * layer.lora_B[expert].data @ layer.lora_A[expert].data
        alone = merged.generate(MEL[row : row + 1], **options)[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()


# --- mixing=loss


@torch.no_grad()
def test_mixed_losses_are_the_weighted_sum_of_each_experts_loss() -> None:
    model = toy_mixture(routing=RoutingOptions(mixing="loss"))
    got = model(MEL, N_FRAMES, LABELS, routing_weights=MIXED)["utterance_loss"]
    expected = torch.zeros(3)
    for expert in range(N_EXPERTS):
        only = one_hot(torch.full((3,), expert), N_EXPERTS).weights
        expected += MIXED[:, expert] * model(MEL, N_FRAMES, LABELS, routing_weights=only)["utterance_loss"]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    delta = toy_mixture(routing=RoutingOptions(mixing="delta"))(MEL, N_FRAMES, LABELS, routing_weights=MIXED)["utterance_loss"]
    assert (got - delta).abs().max() > 1e-3


@torch.no_grad()
def test_decoding_mixed_losses_is_greedy_over_the_mixture_of_token_distributions() -> None:
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(mixing="loss"))
    got = model.generate(model.route(MEL, N_FRAMES, None, MIXED), max_length=N_TOKENS)
    prompt = torch.tensor([model.base.generation_config.decoder_start_token_id, *LABELS[1, :3]])
    for row in range(3):
        tokens = prompt[None]
        for _ in range(got.shape[1]):
            mixture = torch.zeros(model.base.config.vocab_size)
            for expert in MIXED[row].nonzero().flatten():
                with model.routing.use(one_hot(expert[None], N_EXPERTS)):
                    logits = model.base(input_features=MEL[row : row + 1], decoder_input_ids=tokens).logits[0, -1]
                mixture += MIXED[row, expert] * torch.softmax(logits, -1)
            tokens = torch.cat([tokens, mixture.argmax()[None, None]], 1)
            if tokens[0, -1] == model.base.config.eos_token_id:
                break
        said = tokens[0, len(prompt) :]
        assert got[row, : len(said)].tolist() == said.tolist()


def test_mixed_losses_teach_the_gate_and_both_experts() -> None:
    model = toy_mixture(routing=RoutingOptions(mixing="loss"), balance=BalanceOptions(balance="none"))
    found = gradients(model, model(MEL, N_FRAMES, LABELS)["loss"])
    assert found["gate.output.weight"].abs().max() > 0
    used = model.route(MEL, N_FRAMES).weights.weights.detach().sum(0) > 0
    for name, _ in routed_layers(model.base):
        got = found[f"base.{name}.lora_A"].abs().sum((1, 2)) > 0
        assert torch.equal(got, used)


# --- what trains


@pytest.mark.parametrize("gate_layer", LAYERS)
@pytest.mark.parametrize("mixing", ["delta", "loss"])
def test_after_one_update_on_a_mixed_batch_every_expert_with_an_utterance_has_changed(gate_layer: str, mixing: str) -> None:
    """Pitfall 1: only the expert activated last was trained, and the optimizer held the first alone."""
    model = toy_mixture(
        adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(gate_layer=gate_layer, mixing=mixing)
    ).train()
    trainable = model.trainable_parameters()
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2, weight_decay=0.0)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for _, layer in routed_layers(model.base):
        assert {id(matrix) for matrix in (layer.lora_A, layer.lora_B, layer.shared_A, layer.shared_B)} <= held
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(MEL, N_FRAMES, LABELS, routing_weights=torch.eye(4)[[3, 0, 2]])["loss"].backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        if name.endswith(("lora_A", "lora_B")):
            changed = (parameter != before[name]).flatten(1).any(1)
            assert changed.tolist() == [True, False, True, True], name
        elif name.endswith(("shared_A", "shared_B")):
            assert not torch.equal(parameter, before[name]), name
        elif not name.startswith("gate."):
            assert torch.equal(parameter, before[name]), name


def test_joint_training_teaches_the_gate_through_the_transcription() -> None:
    model = toy_mixture(balance=BalanceOptions(balance="none")).train()
    found = gradients(model, model(MEL, N_FRAMES, LABELS)["loss"])
    assert found["gate.output.weight"].abs().max() > 0
    assert not any(
        name.startswith("base.") and "lora" not in name and "shared" not in name for name in model.trainable_parameters()
    )


@pytest.mark.parametrize("scaling", ["renormalised", "certainty", "probability"])
def test_at_top_1_the_transcription_teaches_the_gate_only_where_its_answer_scales_the_experts(scaling: str) -> None:
    model = toy_mixture(routing=RoutingOptions(top_k=1, gate_scaling=scaling), balance=BalanceOptions(balance="none")).train()
    found = gradients(model, model(MEL, N_FRAMES, LABELS)["loss"]).get("gate.output.weight")
    learns = found is not None and bool(found.abs().max() > 0)
    assert learns is (scaling != "renormalised")


@torch.no_grad()
@pytest.mark.parametrize("scaling", ["certainty", "probability"])
def test_the_gates_answer_scales_its_expert_in_training_and_decoding_alike(scaling: str) -> None:
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(top_k=1, gate_scaling=scaling))
    routed = model.route(MEL, N_FRAMES)
    scale = 1 - doubt(routed.probabilities) if scaling == "certainty" else routed.probabilities.max(-1).values
    torch.testing.assert_close(routed.weights.weights.sum(-1), scale)
    given = model(MEL, N_FRAMES, LABELS, routing_weights=routed.weights.weights)["utterance_loss"]
    torch.testing.assert_close(model(MEL, N_FRAMES, LABELS)["utterance_loss"], given)
    whole = model(MEL, N_FRAMES, LABELS, routing_weights=routed.weights.shares())["utterance_loss"]
    assert (given - whole).abs().max() > 1e-4


@pytest.mark.parametrize("scaling", ["certainty", "probability"])
def test_what_a_gate_could_lower_by_doubt_cannot_weigh_losses(scaling: str) -> None:
    with pytest.raises(ValueError, match=f"gate_scaling={scaling} with mixing=loss"):
        RoutingOptions(gate_scaling=scaling, mixing="loss")


def test_sleeping_experts_neither_speak_nor_learn_and_the_shared_adapter_does_both() -> None:
    model = toy_mixture(dropout=0.0).train()
    weights = one_hot(torch.tensor([0, 1, 2]), N_EXPERTS).weights
    awake = model(MEL, N_FRAMES, LABELS, routing_weights=weights)["utterance_loss"]
    model.phase = Phase(1, experts=False)
    muted = model(MEL, N_FRAMES, LABELS, routing_weights=weights)
    found = gradients(model, muted["loss"])
    assert not any(gradient.abs().any() for name, gradient in found.items() if "lora_" in name)
    assert all(gradient.abs().any() for name, gradient in found.items() if name.endswith("shared_B"))
    torch.testing.assert_close(
        model.eval()(MEL, N_FRAMES, LABELS, routing_weights=weights)["utterance_loss"], awake
    )  # decoding wakes them
    for _, layer in routed_layers(model.base):
        layer.lora_B.data.zero_()
    alone = model(MEL, N_FRAMES, LABELS, routing_weights=weights)["utterance_loss"]
    torch.testing.assert_close(muted["utterance_loss"], alone)
    assert (alone - awake).abs().max() > 1e-3


def test_nothing_is_adapted_below_the_gate() -> None:
    for gate_layer, n_adapted in zip(LAYERS, (2, 1, 0, 2), strict=True):
        model = toy_mixture(routing=RoutingOptions(gate_layer=gate_layer))
        adapted = {name.split("layers.")[1][0] for name, _ in routed_layers(model.base) if "encoder.layers" in name}
        assert len(adapted) == n_adapted


def test_training_twice_from_one_seed_is_bit_identical() -> None:
    def trained() -> dict[str, Tensor]:
        model = toy_mixture(adapters=adapter_options(lora_dropout=0.1), balance=BalanceOptions(balance_coefficient=0.1)).train()
        model.phase = Phase(2, noise=0.5)
        optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2)
        torch.manual_seed(3)
        for _ in range(3):
            optimizer.zero_grad()
            model(MEL, N_FRAMES, LABELS)["loss"].backward()
            optimizer.step()
        return model.state_dict()

    first, second = trained(), trained()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


# --- gradient checkpointing


def checkpointed_pair(**options) -> tuple[WhisperMoE, WhisperMoE]:
    """The same mixture plain and checkpointed; without dropout, which two models would draw differently."""
    plain = toy_mixture(
        dropout=0.0, balance=BalanceOptions(balance="none"), **options
    ).train()  # only then layers are checkpointed
    saving = copy.deepcopy(plain)
    saving.enable_checkpointing()
    return plain, saving


def n_calls(model: WhisperMoE, run: Callable[[], object]) -> int:
    calls = []
    layers = [module for module in model.modules() if isinstance(module, RoutedLinear)]
    hooks = [layer.register_forward_pre_hook(lambda *args: calls.append(1)) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return len(calls) // len(layers)


@pytest.mark.parametrize("gate_layer", ["0", "1"])
@pytest.mark.parametrize("mixing", ["delta", "loss"])
def test_checkpointing_gives_the_same_gradients(gate_layer: str, mixing: str) -> None:
    plain, saving = checkpointed_pair(
        adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(gate_layer=gate_layer, mixing=mixing)
    )
    found = [gradients(model, model(MEL, N_FRAMES, LABELS)["loss"]) for model in (plain, saving)]
    assert found[0].keys() == found[1].keys() == plain.trainable_parameters().keys()
    assert all(close(found[1][name], value) for name, value in found[0].items())
    assert n_calls(saving, lambda: saving(MEL, N_FRAMES, LABELS)["loss"].backward()) == 2  # every adapted layer was recomputed
    assert n_calls(plain, lambda: plain(MEL, N_FRAMES, LABELS)["loss"].backward()) == 1


def test_two_forwards_with_other_routing_and_one_backward_are_the_sum() -> None:
    """Measurements §9.1: recomputed under the routing in force at backward, gradients were silently wrong by a factor."""
    plain, saving = checkpointed_pair()
    first, second = MIXED, MIXED.roll(1, 1)
    separate = [gradients(plain, plain(MEL, N_FRAMES, LABELS, routing_weights=weights)["loss"]) for weights in (first, second)]
    both = gradients(saving, sum(saving(MEL, N_FRAMES, LABELS, routing_weights=weights)["loss"] for weights in (first, second)))
    assert all(close(both[name], separate[0][name] + separate[1][name]) for name in both)


@pytest.mark.parametrize("later", [None, RoutingWeights(MIXED.roll(1, 1), 2), RoutingWeights(torch.eye(4)[[1, 1, 1]], 1)])
def test_routing_changed_between_forward_and_backward_does_not_matter(later: RoutingWeights | None) -> None:
    plain, saving = checkpointed_pair()
    expected = gradients(plain, plain(MEL, N_FRAMES, LABELS, routing_weights=MIXED)["loss"])
    loss = saving(MEL, N_FRAMES, LABELS, routing_weights=MIXED)["loss"]
    with saving.routing.use(later):
        found = gradients(saving, loss)
        assert saving.routing.weights is later  # and what was in force is in force again
    assert all(close(found[name], expected[name]) for name in expected)


def test_a_copy_of_a_checkpointed_model_restores_its_own_routing() -> None:
    plain, saving = checkpointed_pair()
    twin = copy.deepcopy(saving)
    expected = gradients(plain, plain(MEL, N_FRAMES, LABELS, routing_weights=MIXED)["loss"])
    found = gradients(twin, twin(MEL, N_FRAMES, LABELS, routing_weights=MIXED)["loss"])
    assert all(close(found[name], expected[name]) for name in expected)


# --- one routing space


def gate_inputs(model: WhisperMoE, run: Callable[[], object]) -> Tensor:
    """What the gate is shown while `run` runs."""
    shown = []
    with model.gate.register_forward_pre_hook(lambda module, args: shown.append(args[0].detach().clone())):
        run()
    return shown[0]


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
@pytest.mark.parametrize("gate_layer", LAYERS)
def test_the_gate_sees_the_same_vector_when_embedding_training_and_decoding(gate_layer: str, pooling: str) -> None:
    """Point 7 of DESIGN; the base has dropout, which may not reach the gate in training."""
    assert SHAPE.dropout > 0
    routing = RoutingOptions(gate_layer=gate_layer, pooling=pooling)
    bare = bare_model()
    with torch.inference_mode():
        embedded = pooled_embedding(bare.model.encoder, MEL, N_FRAMES, routing.layer, pooling)
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS), routing=routing)
    training = gate_inputs(model, lambda: model.train()(MEL, N_FRAMES, LABELS))
    again = gate_inputs(model, lambda: model(MEL, N_FRAMES, LABELS)["loss"].backward())
    decoding = gate_inputs(model, lambda: model.eval().generate(model.route(MEL, N_FRAMES), max_length=6))
    for seen in (training, again, decoding):
        torch.testing.assert_close(seen, embedded, atol=HALF, rtol=HALF)


@pytest.mark.parametrize("gate_layer", LAYERS)
def test_a_cached_embedding_routes_as_a_computed_one(gate_layer: str) -> None:
    routing = RoutingOptions(gate_layer=gate_layer)
    model = toy_mixture(routing=routing)
    with torch.inference_mode():
        cached = pooled_embedding(bare_model().model.encoder, MEL, N_FRAMES, routing.layer, routing.pooling)
        computed = model(MEL, N_FRAMES, LABELS)
        given = model(MEL, N_FRAMES, LABELS, embedding=cached)
    torch.testing.assert_close(given["probabilities"], computed["probabilities"], atol=HALF, rtol=HALF)
    torch.testing.assert_close(given["loss"], computed["loss"], atol=HALF, rtol=HALF)


def test_what_is_above_the_gate_keeps_its_dropout_in_training() -> None:
    model = toy_mixture(routing=RoutingOptions(gate_layer="1")).train()
    losses = [model(MEL, N_FRAMES, LABELS, routing_weights=MIXED)["utterance_loss"] for _ in range(2)]
    assert not torch.equal(*losses)
    model = toy_mixture(routing=RoutingOptions(gate_layer="last")).train()
    model(MEL, N_FRAMES, LABELS)
    assert all(module.training for module in model.base.model.encoder.modules())  # the gate's own pass has put it back


def test_router_noise_is_for_training_only() -> None:
    model = toy_mixture()
    model.phase = Phase(2, noise=1.0)
    quiet = [model.route(MEL, N_FRAMES).gate_logits for _ in range(2)]
    noisy = [model.train().route(MEL, N_FRAMES).gate_logits for _ in range(2)]
    assert torch.equal(*quiet) and not torch.equal(*noisy)


# --- terms of the loss


def test_the_loss_is_transcription_plus_weighted_terms() -> None:
    options = BalanceOptions(balance_coefficient=0.5, balance_window=3, entropy_coefficient=0.25, alignment_coefficient=2.0)
    model = toy_mixture(balance=options, dropout=0.0).train()
    outputs = model(MEL, N_FRAMES, LABELS, cluster_weights=MIXED)
    p = outputs["probabilities"]
    expected = outputs["utterance_loss"].mean() + 0.5 * kl_balance(p.mean(0)) - 0.25 * (p * p.log()).sum(1).mean()
    expected = expected + 2.0 * (torch.special.xlogy(MIXED, MIXED) - MIXED * p.log()).sum(1).mean()
    torch.testing.assert_close(outputs["loss"], expected, atol=1e-5, rtol=1e-5)


def test_switch_balance_counts_the_chosen_experts_once() -> None:
    model = toy_mixture(balance=BalanceOptions(balance="switch", balance_coefficient=1.0, balance_window=3), dropout=0.0).train()
    outputs = model(MEL, N_FRAMES, LABELS)
    weights = model.route(MEL, N_FRAMES).weights.weights
    load = (weights > 0).float().mean(0) / 2
    expected = outputs["utterance_loss"].mean() + N_EXPERTS * (load * outputs["probabilities"].mean(0)).sum()
    torch.testing.assert_close(outputs["loss"], expected)


def test_evaluation_is_the_transcription_alone_and_moves_no_window() -> None:
    model = toy_mixture()
    outputs = model(MEL, N_FRAMES, LABELS)
    assert outputs["loss"] == outputs["utterance_loss"].mean() and model.window.n_seen == 0


# --- refused


def test_impossible_routing_is_refused_before_the_base_is_changed() -> None:
    base = toy_base().model
    with pytest.raises(ValueError, match="gate_layer=3: the encoder has layers 0"):
        WhisperMoE(base, 2, adapter_options(), RoutingOptions(gate_layer="3"))
    assert not routed_layers(base) and all(parameter.requires_grad for parameter in base.model.decoder.layers.parameters())
    with pytest.raises(ValueError, match="gate_layer='middle': must be a layer number or last"):
        RoutingOptions(gate_layer="middle")


def test_without_a_gate_routing_must_be_given() -> None:
    model = WhisperMoE(toy_base().model, 2, adapter_options(), RoutingOptions())
    with pytest.raises(ValueError, match="no gate: routing_weights must be given"):
        model.route(MEL, N_FRAMES)
    assert model(MEL, N_FRAMES, LABELS, routing_weights=torch.eye(2)[[0, 1, 0]])["loss"].isfinite()
