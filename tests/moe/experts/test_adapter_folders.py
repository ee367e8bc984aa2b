"""An expert on disk is an ordinary PEFT adapter: PEFT itself is the oracle, in both directions."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from moe.experts.adapter_folders import (
    CONFIG,
    SHARED,
    WEIGHTS,
    adapter_names,
    expert_name,
    load_adapter,
    map_adapters,
    save_adapter,
    slots,
)
from moe.experts.routed_lora import routed_layers
from moe.routing.options import RoutingOptions
from moe.routing.weights import one_hot
from tests.toys.models import ALL_LINEARS, N_EXPERTS, QV, adapter_options, bare_model, inputs, logits_of, toy_mixture

TOLERANCE = 1e-5
MEL, N_FRAMES, LABELS = inputs()
TOKENS = LABELS.clamp_min(0)


def save_all(model, folder: Path) -> None:
    map_adapters(model.base, lambda adapter: save_adapter(model.base, adapter, folder / adapter))


def peft_logits(model: PeftModel, **options) -> torch.Tensor:
    with torch.no_grad():
        return model(input_features=MEL, decoder_input_ids=TOKENS, **options).logits


@pytest.mark.parametrize("targets", [QV, ALL_LINEARS], ids=["qv", "all linears"])
@pytest.mark.parametrize("gate_layer", ["0", "1", "last"])
def test_each_expert_is_what_peft_loads_from_its_folder(targets: str, gate_layer: str, tmp_path: Path) -> None:
    """The mixture's own part of an expert: no shared adapter beneath."""
    routing = RoutingOptions(gate_layer=gate_layer)
    model = toy_mixture(adapters=adapter_options(targets, shared_expert=False), routing=routing)
    save_all(model, tmp_path)
    bare = peft_logits(bare_model())
    for expert in range(N_EXPERTS):
        expected = peft_logits(PeftModel.from_pretrained(bare_model(), tmp_path / expert_name(expert)).eval())
        got = logits_of(model, MEL, TOKENS, one_hot(torch.full((3,), expert), N_EXPERTS))
        assert (got - expected).abs().max() <= TOLERANCE
        assert (got - bare).abs().max() > 0.1  # the adapter does something


def test_a_mixed_batch_is_pefts_adapter_names(tmp_path: Path) -> None:
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS, shared_expert=False))
    save_all(model, tmp_path)
    peft = PeftModel.from_pretrained(bare_model(), tmp_path / "expert_0", adapter_name="expert_0").eval()
    for expert in range(1, N_EXPERTS):
        peft.load_adapter(tmp_path / expert_name(expert), adapter_name=expert_name(expert))
    order = [2, 0, 3]
    expected = peft_logits(peft, adapter_names=[expert_name(expert) for expert in order])
    got = logits_of(model, MEL, TOKENS, one_hot(torch.tensor(order), N_EXPERTS))
    assert (got - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("stabilised", [False, True], ids=["alpha/r", "alpha/√r"])
@pytest.mark.parametrize("targets", [QV, ALL_LINEARS])
def test_shared_adapter_and_expert_are_both_of_pefts_active_together(targets: str, stabilised: bool, tmp_path: Path) -> None:
    model = toy_mixture(adapters=adapter_options(targets, shared_r=6, rank_stabilised=stabilised))
    save_all(model, tmp_path)
    peft = PeftModel.from_pretrained(bare_model(), tmp_path / SHARED, adapter_name=SHARED).eval()
    shared_alone = peft_logits(peft)
    assert (logits_of(model, MEL, TOKENS, None) - shared_alone).abs().max() <= TOLERANCE
    peft.load_adapter(tmp_path / "expert_1", adapter_name="expert_1")
    peft.base_model.set_adapter([SHARED, "expert_1"])
    got = logits_of(model, MEL, TOKENS, one_hot(torch.ones(3, dtype=torch.long), N_EXPERTS))
    assert (got - peft_logits(peft)).abs().max() <= TOLERANCE and (got - shared_alone).abs().max() > 0.1


def test_a_folder_that_peft_wrote_fills_a_slot_and_comes_back(tmp_path: Path) -> None:
    peft = get_peft_model(
        bare_model(), LoraConfig(r=4, lora_alpha=8, target_modules=QV.split(","), init_lora_weights=False)
    ).eval()
    peft.save_pretrained(tmp_path / "theirs")
    model = toy_mixture(adapters=adapter_options(shared_expert=False))
    load_adapter(model.base, "expert_2", tmp_path / "theirs")
    got = logits_of(model, MEL, TOKENS, one_hot(torch.full((3,), 2), N_EXPERTS))
    assert (got - peft_logits(peft)).abs().max() <= TOLERANCE
    save_adapter(model.base, "expert_2", tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)


def test_one_expert_is_a_plain_lora_in_gradient_too(tmp_path: Path) -> None:
    """One expert with all the weight trains exactly as PEFT's single LoRA does."""
    model = toy_mixture(n_experts=1, adapters=adapter_options(ALL_LINEARS, shared_expert=False))
    save_adapter(model.base, "expert_0", tmp_path / "one")
    peft = PeftModel.from_pretrained(bare_model(), tmp_path / "one", is_trainable=True).eval()
    logits = peft(input_features=MEL, decoder_input_ids=_inputs_of(model)).logits
    per_row = [F.cross_entropy(row[label != -100], label[label != -100]) for row, label in zip(logits, LABELS, strict=True)]
    torch.stack(per_row).mean().backward()
    loss = model(MEL, N_FRAMES, LABELS, routing_weights=torch.ones(3, 1))["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(torch.stack(per_row).mean().item(), abs=TOLERANCE)
    theirs = dict(peft.named_parameters())
    for name, layer in routed_layers(model.base):
        for matrix, ours in (("A", layer.lora_A.grad[0]), ("B", layer.lora_B.grad[0])):
            expected = theirs[f"base_model.model.{name}.lora_{matrix}.default.weight"].grad
            assert (ours - expected).norm() <= TOLERANCE * expected.norm().clamp_min(1)


def _inputs_of(model) -> torch.Tensor:
    start = torch.full((3, 1), model.base.config.decoder_start_token_id)
    return torch.cat([start, LABELS[:, :-1]], 1)


def test_slots_are_views_of_the_parameters() -> None:
    model = toy_mixture()
    for _, lora_a, lora_b in slots(model.base, "expert_3"):
        lora_a.data.zero_()
        lora_b.data.fill_(1.0)
    for _, layer in routed_layers(model.base):
        assert layer.lora_A[3].abs().sum() == 0 and (layer.lora_B[3] == 1).all()
        assert layer.lora_A[2].abs().sum() > 0


def test_every_adapter_is_visited_the_shared_one_first() -> None:
    names: list[str] = []
    map_adapters(toy_mixture(n_experts=2).base, names.append)
    assert names == [SHARED, "expert_0", "expert_1"]
    layer = routed_layers(toy_mixture(n_experts=2, adapters=adapter_options(shared_expert=False)).base)[0][1]
    assert adapter_names(layer) == ["expert_0", "expert_1"]


def saved_expert(folder: Path, **config) -> Path:
    """A good folder with some lines of its configuration changed."""
    save_adapter(toy_mixture().base, "expert_0", folder)
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("config", "fault"),
    [({"use_dora": True}, "use_dora"), ({"use_rslora": True}, "its scale is 4, the slot's is 2"), ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
     ({"bias": "all"}, "bias='all'"), ({"peft_type": "LOHA"}, "LOHA"), ({"modules_to_save": ["proj_out"]}, "modules_to_save"),
     ({"lora_alpha": 4.0}, "its scale is 1, the slot's is 2")],
)  # fmt: skip
def test_what_is_not_plain_lora_is_refused(config: dict, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit slot expert_1: .*" + fault):
        load_adapter(toy_mixture().base, "expert_1", saved_expert(tmp_path / "e", **config))


def test_another_rank_is_refused_and_the_slot_left_as_it_was(tmp_path: Path) -> None:
    save_adapter(toy_mixture(adapters=adapter_options(lora_r=2, lora_alpha=4.0)).base, "expert_0", tmp_path / "e")
    model = toy_mixture()
    before = [lora_a.clone() for _, lora_a, _ in slots(model.base, "expert_0")]
    with pytest.raises(ValueError, match=r"is \(2, 32\), the slot is \(4, 32\)"):
        load_adapter(model.base, "expert_0", tmp_path / "e")
    assert all(torch.equal(old, new) for old, (_, new, _) in zip(before, slots(model.base, "expert_0"), strict=True))


def test_other_layers_are_refused(tmp_path: Path) -> None:
    save_adapter(toy_mixture(adapters=adapter_options("q_proj")).base, "expert_0", tmp_path / "few")
    with pytest.raises(ValueError, match="no weights for .*v_proj"):
        load_adapter(toy_mixture().base, "expert_0", tmp_path / "few")
    state = load_file(saved_expert(tmp_path / "many") / WEIGHTS)
    save_file(state | {"base_model.model.proj_out.lora_A.weight": torch.zeros(1)}, tmp_path / "many" / WEIGHTS)
    with pytest.raises(ValueError, match="weights without a slot: .*proj_out"):
        load_adapter(toy_mixture().base, "expert_0", tmp_path / "many")


@pytest.mark.parametrize("gone", [CONFIG, WEIGHTS, None])
def test_a_folder_without_an_adapter_is_refused_by_name(gone: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    if gone:
        (saved_expert(folder) / gone).unlink()
    with pytest.raises(ValueError, match=f"adapter {folder}.*{gone or CONFIG}"):
        load_adapter(toy_mixture().base, "expert_0", folder)


def test_a_damaged_folder_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved_expert(tmp_path / "e")
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"adapter {folder} is damaged"):
        load_adapter(toy_mixture().base, "expert_0", folder)
