"""Routed adapters as one: added to the frozen weights, or as one PEFT adapter, for one fixed mixture of the experts.

Both are exact: the product of a routed layer is linear in its adapters (moe/experts/routed_lora.py), and the sum of two adapters is one
whose ranks stand side by side.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from moe.experts.adapter_folders import write_lora
from moe.experts.routed_lora import RoutedLinear, routed_layers


def one_adapter(layer: RoutedLinear, experts: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The shared adapter and the experts by their weights (E,) as one: A (r, in) and B (out, r), scales included; r = r₀ + k·rank."""
    chosen = [(expert, weight) for expert, weight in enumerate(experts) if weight]
    a = [layer.shared_A, *(layer.lora_A[expert] for expert, _ in chosen)]
    b = [layer.shared_scaling * layer.shared_B, *(layer.scaling * weight * layer.lora_B[expert] for expert, weight in chosen)]
    return torch.cat(a).detach().float(), torch.cat(b, 1).detach().float()


@torch.no_grad()
def merge_into(bare: nn.Module, model: nn.Module, experts: Sequence[float]) -> None:
    """Add the adapters of a routed model to the weights of the same model without adapters."""
    for name, layer in routed_layers(model):
        a, b = one_adapter(layer, experts)
        weight = bare.get_parameter(f"{name}.weight")
        weight.add_((b @ a).to(weight.dtype))


def save_one_adapter(model: nn.Module, experts: Sequence[float], folder: Path, base_name: str) -> None:
    """Write the adapters as one PEFT folder, which `peft.AutoPeftModel` loads together with the base that it names.

    The base's class stands in `auto_mapping`, and not a task: PEFT's tasks are of models that read text.
    """
    layers = routed_layers(model)
    adapters = {name: one_adapter(layer, experts) for name, layer in layers}
    kind = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    dropout = layers[0][1].dropout.p
    write_lora(folder, adapters, 1.0, lora_dropout=dropout, base_model_name_or_path=base_name, auto_mapping=kind)
