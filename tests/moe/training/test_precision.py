"""Half precision by wish and capability; frozen matrices held in it compute what autocast would have computed of them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from moe.routing.options import RoutingOptions
from moe.routing.weights import RoutingWeights
from moe.systems.whisper_moe.model import WhisperMoE
from moe.training.precision import DTYPES, PrecisionOptions, computing, hold_frozen, precision
from tests.toys.models import ALL_LINEARS, adapter_options, gradients, inputs, toy_mixture

MEL, N_FRAMES, LABELS = inputs()
MIXED = torch.tensor([[0.6, 0.4, 0.0, 0.0], [0.0, 0.3, 0.0, 0.7], [0.0, 0.0, 1.0, 0.0]])  # (3, E)
HALVES = ["bf16", "fp16"]


def mixture(**routing) -> WhisperMoE:
    """With adapters on every kind of layer, and no dropout: two models would draw it differently."""
    return toy_mixture(adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(**routing), dropout=0.0)


@pytest.mark.parametrize("name", HALVES)
def test_held_in_half_the_losses_and_gradients_are_autocasts_own(name: str) -> None:
    """Much nearer to autocast's than autocast's are to those of single precision: nothing else is rounded."""
    single, autocast, held = mixture(), mixture(), mixture()
    table = autocast.base.model.decoder.embed_tokens.weight
    table.data = table.data.to(DTYPES[name]).float()  # the one thing that is rounded by being held
    held.use_precision(name)
    with torch.autocast("cpu", DTYPES[name]):
        expected = autocast(MEL, N_FRAMES, LABELS)["loss"]
    found, exact = (model(MEL, N_FRAMES, LABELS)["loss"] for model in (held, single))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    ours, theirs, true = (flat(gradients(model, loss)) for model, loss in ((held, found), (autocast, expected), (single, exact)))
    assert (ours - theirs).norm() < 0.3 * (theirs - true).norm()


def flat(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for _, part in sorted(parts.items())])


@pytest.mark.parametrize("mixing", ["delta", "loss"])
@pytest.mark.parametrize("name", HALVES)
def test_half_precision_is_near_single(name: str, mixing: str) -> None:
    single, half = mixture(mixing=mixing), mixture(mixing=mixing).use_precision(name)
    losses = [model(MEL, N_FRAMES, LABELS, routing_weights=MIXED)["loss"] for model in (single, half)]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.03, atol=0.03)
    expected, found = (gradients(model, loss) for model, loss in zip((single, half), losses, strict=True))
    assert found.keys() == expected.keys() and all(gradient.dtype == torch.float32 for gradient in found.values())
    assert torch.cosine_similarity(flat(expected), flat(found), dim=0) > (0.99 if name == "bf16" else 0.999)


@pytest.mark.parametrize("name", HALVES)
def test_frozen_matrices_take_half_the_room_and_what_trains_none_less(name: str) -> None:
    model = mixture().use_precision(name)
    trainable = model.trainable_parameters()
    assert trainable and all(parameter.dtype == torch.float32 for parameter in trainable.values())
    halved = {key for key, parameter in model.base.named_parameters() if parameter.dtype == DTYPES[name]}
    left = [key for key, parameter in model.base.named_parameters() if key not in halved and not parameter.requires_grad]
    assert all("norm" in key or "embed_positions" in key for key in left)
    assert model.base.proj_out.weight is model.base.model.decoder.embed_tokens.weight
    assert {parameter.dtype for parameter in model.use_precision("fp32").parameters()} == {torch.float32}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("gate_layer", ["0", "1", "last"])
def test_the_gate_decides_in_single_precision(name: str, gate_layer: str) -> None:
    model = mixture(gate_layer=gate_layer).use_precision(name)
    routed = model.route(MEL, N_FRAMES)
    assert routed.gate_logits.dtype == torch.float32
    expected = mixture(gate_layer=gate_layer).route(MEL, N_FRAMES)
    torch.testing.assert_close(routed.gate_logits, expected.gate_logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("mixing", ["delta", "loss"])
def test_a_mixed_batch_in_half_precision_decodes_as_one_by_one(mixing: str, beams: int) -> None:
    """Not every token: in half precision two may be equally probable, and then kernels decide. Another's experts change far more."""
    model, options = mixture(mixing=mixing).use_precision("bf16"), {"num_beams": beams, "max_length": 10, "min_length": 10}
    together = model.generate(model.route(MEL, N_FRAMES, None, MIXED), **options)
    rows = [slice(row, row + 1) for row in range(3)]
    alone = [model.generate(model.route(MEL[row], N_FRAMES[row], None, MIXED[row]), **options) for row in rows]
    exchanged = model.generate(model.route(MEL, N_FRAMES, None, MIXED.roll(1, 0)), **options)
    same, other = ((together == tokens).float().mean() for tokens in (torch.cat(alone), exchanged))
    assert same > 0.7 > other


def test_checkpointing_in_half_precision_gives_the_same_gradients() -> None:
    plain = mixture().use_precision("bf16").train()
    saving = copy.deepcopy(plain)
    saving.enable_checkpointing()
    weights = RoutingWeights(MIXED.roll(1, 1), 2)
    expected = gradients(plain, plain(MEL, N_FRAMES, LABELS, routing_weights=MIXED)["loss"])
    loss = saving(MEL, N_FRAMES, LABELS, routing_weights=MIXED)["loss"]
    with saving.routing.use(weights):  # what is in force at backward is not what was in force at forward
        found = gradients(saving, loss)
    assert found.keys() == expected.keys()
    assert all((found[key] - value).norm() <= 1e-5 * value.norm().clamp_min(1e-3) for key, value in expected.items())


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("mixing", ["delta", "loss"])
@pytest.mark.parametrize("name", ["fp32", "bf16"])
@pytest.mark.parametrize("gate_layer", ["0", "1", "last"])
def test_everything_that_trains_has_a_gradient_in_every_mode(top_k: int, mixing: str, name: str, gate_layer: str) -> None:
    """Else distributed training would wait for it: `ddp_find_unused_parameters` is off. All utterances go to the same experts here."""
    model = mixture(top_k=top_k, mixing=mixing, gate_layer=gate_layer).use_precision(name).train()
    rows = [0, 0, 0]
    found = gradients(model, model(MEL[rows], N_FRAMES[rows], LABELS[rows])["loss"])
    assert found.keys() == model.trainable_parameters().keys()
    given = gradients(model, model(MEL[rows], N_FRAMES[rows], LABELS[rows], routing_weights=MIXED[rows])["loss"])
    assert given.keys() == {key for key in model.trainable_parameters() if not key.startswith("gate.")}


def test_what_trains_is_not_touched_and_other_modules_neither() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2), nn.Embedding(3, 2)).requires_grad_(False)
    model[2].weight.requires_grad_(True)
    hold_frozen(model, "bf16")
    dtypes = [{parameter.dtype for parameter in module.parameters()} for module in model]
    assert dtypes == [{torch.bfloat16}, {torch.float32}, {torch.float32}, {torch.float32}]


def test_single_precision_leaves_the_surrounding_autocast_in_force() -> None:
    product = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), computing(torch.device("cpu"), "fp32"):
        assert (product @ product).dtype == torch.bfloat16
    with computing(torch.device("cpu"), "fp16"):
        assert (product @ product).dtype == torch.float16
    assert (product @ product).dtype == torch.float32


@pytest.mark.parametrize(
    ("cuda", "bf16", "options", "expected"),
    [
        (False, False, {}, "fp32"),
        (False, False, {"fp16": True}, "bf16"),
        (True, True, {}, "bf16"),
        (True, False, {}, "fp16"),
        (True, True, {"no_fp16": True}, "fp32"),
        (True, True, {"fp16": False}, "fp32"),
    ],
)
def test_precision_is_a_wish_and_a_capability(monkeypatch, cuda: bool, bf16: bool, options: dict, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert precision(PrecisionOptions(**options)) == expected


def test_contradictory_wishes_are_refused() -> None:
    with pytest.raises(ValueError, match="fp16=true and no_fp16=true"):
        PrecisionOptions(fp16=True, no_fp16=True)


@pytest.mark.parametrize(
    ("capabilities", "n_warnings"), [({"avx2": True}, 1), ({"amx_bf16": True}, 0), ({"avx512_bf16": True}, 0)]
)
def test_half_precision_without_instructions_for_it_is_warned_about(
    monkeypatch, caplog, capabilities: dict, n_warnings: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision(PrecisionOptions(fp16=True)) == "bf16"
    assert sum("no instructions for bf16" in record.message for record in caplog.records) == n_warnings
    caplog.clear()
    assert precision(PrecisionOptions()) == "fp32" and not caplog.records
