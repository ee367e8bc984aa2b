"""A mixture, or one LoRA, as an ordinary Whisper: merged, or as PEFT adapters that stand alone."""

from collections.abc import Sequence
from pathlib import Path

import torch

from moe.experts.adapter_folders import SHARED, expert_name
from moe.experts.merging import merge_into, save_one_adapter
from moe.files import write_whole_dir
from moe.systems.whisper.base_model import load_base, save_base, use_language
from moe.systems.whisper_moe.folder import BASE_DIR
from moe.systems.whisper_moe.model import WhisperMoE


def linear_fault(model: WhisperMoE, experts: Sequence[float]) -> str | None:
    """Why a fixed mixture is not one model; None where it is."""
    if len(experts) != model.n_experts:
        return f"{len(experts)} weights: the model has {model.n_experts} experts"
    if model.routing_options.mixing == "loss" and sum(weight > 0 for weight in experts) > 1:
        return "mixing=loss mixes what the experts say, not their weights: export one expert"
    return None


def save_merged(model: WhisperMoE, base_dir: Path, language: str, folder: Path, experts: Sequence[float]) -> None:
    """Write an ordinary Whisper folder of 32-bit floats: the base with the shared adapter and a fixed mixture of the experts (E,) in it.

    Raises:
        ValueError: a mixture that is not one model.
    """
    if fault := linear_fault(model, experts):
        raise ValueError(fault)
    bare = load_base(str(base_dir))
    if language:
        use_language(bare, language)
    if model.is_adapted:
        merge_into(bare.model, model.base, experts)
    with write_whole_dir(folder) as aside:
        save_base(bare, aside, torch.float32)


def save_adapters_alone(model: WhisperMoE, base_dir: Path, folder: Path) -> list[str]:
    """Write the base and, as PEFT folders beside it, the shared adapter and each expert with the shared adapter in it; their names.

    Raises:
        ValueError: the model has no adapters.
    """
    if not model.is_adapted:
        raise ValueError("the base model as it is has no adapters: export it as transformers")
    base_name = str((folder / BASE_DIR).absolute())
    mixtures = {SHARED: (0.0,) * model.n_experts} if model.adapter_options.shared_rank else {}
    mixtures |= {expert_name(expert): _one_hot(expert, model.n_experts) for expert in range(model.n_experts)}
    with write_whole_dir(folder) as aside:
        save_base(load_base(str(base_dir)), aside / BASE_DIR)
        for name, experts in mixtures.items():
            save_one_adapter(model.base, experts, aside / name, base_name)
    return list(mixtures)


def _one_hot(expert: int, n_experts: int) -> tuple[float, ...]:
    return tuple(float(each == expert) for each in range(n_experts))
