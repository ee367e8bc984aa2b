"""Experts and the shared adapter on disk: each an ordinary PEFT LoRA folder, readable by PEFT alone.

A rank that differs from the slot's is an error, as is anything that is not plain LoRA: nothing is padded, dropped or guessed.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe.experts.routed_lora import RoutedLinear, routed_layers
from moe.files import write_whole_dir

SHARED = "shared"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
UNSUPPORTED = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")


def expert_name(expert: int) -> str:
    """Folder name of an expert."""
    return f"expert_{expert}"


def slots(model: nn.Module, adapter: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name of each adapted layer with the adapter's A (r, in) and B (out, r), as views of the parameters."""
    for name, layer in routed_layers(model):
        yield name, *_pair(layer, adapter)


def save_adapter(model: nn.Module, adapter: str, folder: Path, base_name: str = "") -> None:
    """Write `shared` or `expert_<e>` as a PEFT folder."""
    first = routed_layers(model)[0][1]
    config = {"use_rslora": first.rank_stabilised, "lora_dropout": first.dropout.p, "base_model_name_or_path": base_name}
    write_lora(folder, {name: (a, b) for name, a, b in slots(model, adapter)}, _scale(first, adapter), **config)


def load_adapter(model: nn.Module, adapter: str, folder: Path) -> None:
    """Read a PEFT LoRA folder into a slot of the same rank and scale.

    Raises:
        ValueError: as `read_lora`.
    """
    scale = _scale(routed_layers(model)[0][1], adapter)
    read_lora(folder, {name: (a, b) for name, a, b in slots(model, adapter)}, scale, f"slot {adapter}")


def write_lora(folder: Path, adapters: Mapping[str, tuple[Tensor, Tensor]], scale: float, **config: Any) -> None:
    """Write A (r, in) and B (out, r) by layer as a PEFT folder.

    Args:
        scale: of B A x. config: further fields of PEFT's LoraConfig.
    """
    r = len(next(iter(adapters.values()))[0])
    alpha: Any = scale * _divisor(r, config.get("use_rslora", False))  # PEFT takes fractions too
    targets = list(adapters)  # full names: PEFT makes exactly these layers again
    written = LoraConfig(r=r, lora_alpha=alpha, bias="none", target_modules=targets, inference_mode=True, **config)
    with write_whole_dir(folder) as aside:
        written.save_pretrained(str(aside))
        state = {key: each.detach().cpu().clone().contiguous() for key, each in _by_key(adapters).items()}
        save_file(state, str(aside / WEIGHTS), metadata={"format": "pt"})


@torch.no_grad()
def read_lora(folder: Path, adapters: Mapping[str, tuple[Tensor, Tensor]], scale: float, into: str) -> None:
    """Copy a PEFT LoRA folder into A (r, in) and B (out, r) by layer.

    Args:
        scale: that the folder must say. into: what they are, for a message.

    Raises:
        ValueError: no adapter there, not plain LoRA, other layers, another rank or another scale than these have.
    """
    config, state = _read(Path(folder))
    expected = _by_key(adapters)
    faults = _config_faults(config) + _state_faults(state, expected)
    found = config.get("lora_alpha", 0) / _divisor(config.get("r", 1), config.get("use_rslora", False))
    if not faults and abs(found - scale) > 1e-6:
        faults.append(f"its scale is {found:g}, the slot's is {scale:g}")
    if faults:
        raise ValueError(f"adapter {folder} does not fit {into}: {'; '.join(faults[:4])}")
    for key, slot in expected.items():
        slot.copy_(state[key])


def map_adapters(model: nn.Module, function: Callable[[str], None]) -> None:
    """Call `function` with the name of every adapter a model holds: the shared one, then the experts."""
    layer = routed_layers(model)[0][1]
    for adapter in adapter_names(layer):
        function(adapter)


@torch.no_grad()
def experts_from_shared(model: nn.Module) -> None:
    """Every expert becomes a copy of the shared adapter (sparse upcycling: Komatsuzaki et al. 2022, arXiv:2212.05055).

    An expert takes the shared A and half of the shared B, and the shared adapter keeps the other half: routing weights sum to 1,
    so the model computes what it computed before.

    Raises:
        ValueError: there is no shared adapter, or it has another rank than the experts.
    """
    for name, layer in routed_layers(model):
        if layer.shared_A.shape[0] != layer.r:
            raise ValueError(
                f"{name}: experts of rank {layer.r} cannot start from a shared adapter of rank {layer.shared_A.shape[0]}"
            )
        layer.shared_B.mul_(0.5)
        layer.lora_A.copy_(layer.shared_A.expand_as(layer.lora_A))
        layer.lora_B.copy_(layer.shared_B.expand_as(layer.lora_B))


def adapter_names(layer: RoutedLinear) -> list[str]:
    """Names of the adapters a routed layer holds."""
    shared = [SHARED] if layer.shared_A.shape[0] else []
    return shared + [expert_name(expert) for expert in range(layer.n_experts)]


def _pair(layer: RoutedLinear, adapter: str) -> tuple[Tensor, Tensor]:
    if adapter == SHARED:
        return layer.shared_A, layer.shared_B
    expert = int(adapter.rpartition("_")[2])
    return layer.lora_A[expert], layer.lora_B[expert]


def _scale(layer: RoutedLinear, adapter: str) -> float:
    return layer.shared_scaling if adapter == SHARED else layer.scaling


def _divisor(rank: int, is_stabilised: bool) -> float:
    """What PEFT divides alpha by."""
    return math.sqrt(rank) if is_stabilised else rank


def _by_key(adapters: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Matrices by the names that PEFT gives them."""
    pairs = [(name, matrix, each) for name, pair in adapters.items() for matrix, each in zip("AB", pair, strict=True)]
    return {f"base_model.model.{name}.lora_{matrix}.weight": each for name, matrix, each in pairs}


def _read(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"adapter {folder}: {' and '.join(missing)} missing")
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")), load_file(folder / WEIGHTS)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"adapter {folder} is damaged: {error}") from error


def _config_faults(config: dict) -> list[str]:
    faults = [f"{key}={config[key]!r} is not supported" for key in UNSUPPORTED if config.get(key)]
    if config.get("peft_type") != "LORA":
        faults.append(f"peft_type is {config.get('peft_type')!r}, not LORA")
    if config.get("bias", "none") != "none":
        faults.append(f"bias={config['bias']!r} is not supported")
    return faults


def _state_faults(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    faults = [f"no weights for {key}" for key in expected if key not in state]
    faults += [f"weights without a slot: {key}" for key in state if key not in expected]
    faults += [
        f"{key} is {tuple(state[key].shape)}, the slot is {tuple(slot.shape)}"
        for key, slot in expected.items()
        if key in state and state[key].shape != slot.shape
    ]
    return faults
