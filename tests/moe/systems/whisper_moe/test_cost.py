"""The cost model counts what torch counts: operations, parameters and what is kept for backward."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig

from moe.experts.routed_lora import AdapterOptions
from moe.routing.options import RoutingOptions
from moe.systems.whisper_moe import calibration, cost
from moe.systems.whisper_moe.calibration import Calibration, Mixture, calibrate, rough
from moe.systems.whisper_moe.cost import Batch, n_frozen, n_trainable, update_cost

CONFIG = WhisperConfig(
    d_model=64, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=256,
    decoder_ffn_dim=256, max_source_positions=200, max_target_positions=64, vocab_size=300, pad_token_id=298, bos_token_id=298,
    eos_token_id=298, decoder_start_token_id=299, suppress_tokens=None, begin_suppress_tokens=None,
)  # fmt: skip
BATCH = Batch(3, 200, 12)
MIXTURES = {
    "default": (AdapterOptions(), RoutingOptions(), 6),
    "one LoRA": (AdapterOptions(shared_r=16), RoutingOptions(), 0),
    "gate in the middle": (AdapterOptions(), RoutingOptions(gate_layer="2"), 6),
    "losses": (AdapterOptions(), RoutingOptions(mixing="loss"), 6),
    "soft": (AdapterOptions(), RoutingOptions(top_k=6), 6),
    "queries and values": (AdapterOptions(lora_targets="q_proj,v_proj"), RoutingOptions(), 4),
    "queries and values, soft": (AdapterOptions(lora_targets="q_proj,v_proj"), RoutingOptions(top_k=6), 6),
    "encoder": (AdapterOptions(lora_part="encoder"), RoutingOptions(), 6),
    "decoder": (AdapterOptions(lora_part="decoder"), RoutingOptions(), 6),
}
DECODER = 0.45  # a decoder's adapters alone ask for no gradient of the audio: what is said of them is an upper bound


@pytest.fixture(params=MIXTURES, scope="module")
def mixture(request):
    torch.manual_seed(0)
    return Mixture(CONFIG, *MIXTURES[request.param])


def loss_of(model, mixture):
    mel, n_frames = torch.randn(BATCH.size, 80, BATCH.n_frames), torch.full((BATCH.size,), BATCH.n_frames)
    labels = torch.randint(0, 290, (BATCH.size, BATCH.n_labels))
    embedding = torch.randn(BATCH.size, 128) if mixture.n_experts else None
    return model(mel, n_frames, labels, embedding)["loss"]


def added_product(y, a, b, *more, **also):
    """Operations of the product that `addmm_` adds in place, which torch's counter leaves out: shapes (N, n) and (n, out)."""
    return 2 * a[0] * a[1] * b[1]


def test_operations_are_those_that_torch_counts(mixture, monkeypatch):
    monkeypatch.setattr(cost, "ATTENTION_BACKWARD", 2.0)  # with MATH, which torch can count, no scores are made again
    model = mixture.build("cpu", "fp32")
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_product})
    with sdpa_kernel(SDPBackend.MATH):
        with counter:
            loss = loss_of(model, mixture)
        forward = counter.get_total_flops()
        with counter:
            loss.backward()
    expected = mixture.cost(BATCH, "fp32")
    head = 2 * BATCH.size * BATCH.n_labels * 64 * 300 * mixture.adapted.copies  # its gradient is made with the loss
    assert expected.forward + head == pytest.approx(forward, rel=0.02)
    # without flash attention the lowest adapted layer asks for no gradient of its keys, in a toy of few layers 6 % of all
    rel = DECODER if mixture.adapters.lora_part == "decoder" else 0.1
    assert expected.backward - head == pytest.approx(counter.get_total_flops(), rel=rel)


def test_parameters_are_counted_one_by_one(mixture):
    model = mixture.build("cpu", "fp32")
    trained = sum(value.numel() for name, value in model.named_parameters() if value.requires_grad and "gate." not in name)
    frozen = sum(value.numel() for value in model.base.parameters() if not value.requires_grad)
    absent = sum(value.numel() for name, value in model.base.named_parameters() if "lora_" in name and not value.requires_grad)
    assert n_trainable(CONFIG, mixture.adapted) == trained
    assert n_frozen(CONFIG) == frozen - absent


def test_what_is_kept_for_backward_is_what_autograd_saves(mixture):
    model = mixture.build("cpu", "fp32")
    own, kept = {value.untyped_storage().data_ptr() for value in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model, mixture)
    assert loss.requires_grad
    nothing = update_cost(CONFIG, mixture.adapted, Batch(0, 200, 12)).activations
    held = mixture.cost(BATCH, "fp32").activations - nothing
    rel = DECODER if mixture.adapters.lora_part == "decoder" else 0.25
    assert held == pytest.approx(sum(kept.values()), rel=rel)


def test_half_precision_halves_weights_and_checkpointing_trades_memory_for_operations():
    adapted = Mixture(CONFIG, *MIXTURES["default"]).adapted
    full, half, again = (
        update_cost(CONFIG, adapted, BATCH, half=half, checkpointing=checkpointing)
        for half, checkpointing in ((False, False), (True, False), (False, True))
    )
    assert half.weights == full.weights / 2 and half.trained == full.trained and half.flops == full.flops
    assert again.activations < full.activations and again.flops > full.flops


def test_a_line_through_two_depths_gives_any_other():
    """Made-up seconds that are linear in operations are found again, at the depth of the whole model."""
    mixture = Mixture(CONFIG, *MIXTURES["default"])
    costs = [mixture.shallow(n).cost(BATCH, "fp32") for n in (1, 3, 7)]
    seconds = [2.0 + 1e-9 * cost.flops for cost in costs]
    slope = (seconds[1] - seconds[0]) / (costs[1].flops - costs[0].flops)
    found = Calibration((seconds[0] - slope * costs[0].flops, slope), None, (0.1, 0.02))
    assert found.update_s(costs[2]) == pytest.approx(seconds[2])
    assert found.decoding_s(10, 4) == pytest.approx(1.8)


def test_a_device_is_measured_within_the_time_allowed():
    found = calibrate(Mixture(CONFIG, *MIXTURES["default"]), BATCH, "cpu", allowed_s=0.5)
    whole = Mixture(CONFIG, *MIXTURES["default"]).cost(BATCH, "fp32")
    assert found.n_bytes is None and found.update_s(whole) > 0 and found.decoding_s(5, 2) >= 0
    assert found.peak_bytes(whole) == whole.n_bytes


@pytest.mark.parametrize("size", [3, 500])
def test_a_rough_estimate_is_of_one_layer_and_few_utterances(size, monkeypatch):
    """A clock that counts what is computed, by operations, is extrapolated to the whole model without error."""
    mixture, asked = Mixture(CONFIG, *MIXTURES["default"]), []

    def measured(shallow, batch, *rest):
        asked.append((shallow.config.encoder_layers, batch.size))
        return calibration._Measured(1e-9 * shallow.cost(batch, "fp32").flops, 0.0, 1.0)

    monkeypatch.setattr(calibration, "_measured", measured)
    found, whole = rough(mixture, dataclasses.replace(BATCH, size=size), "cpu"), mixture.cost(BATCH, "fp32")
    assert found.update_s(whole) == pytest.approx(1e-9 * whole.flops) and found.n_bytes is None
    assert asked[0][0] == 1 and (asked[0][1] == 3 if size == 3 else 3 < asked[0][1] < 500)
    assert found.decoding_s(1, 1) == pytest.approx(1.0) and 0 < found.token_s[0] < found.token_s[1]
