"""What `main` refuses before anything has run, beside what each stage refuses by itself: faults that lie between two stages.

An option of a stage that the chain leaves out would be accepted and ignored, so it is refused; so is a layer that the base has not
got, and more experts to mix than there will be.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from moe.files import read_json
from moe.options import Options, to_text
from moe.systems.whisper.base_model import SCRATCH, SmallShape
from steps.options.step_options import idle_augmentation

SIZES = ("gating_batch_size", "expert_batch_size", "embedding_batch_size")  # of the machine: option files name them for every chain


def idle_faults(options: Options, left_out: Mapping[ModuleType, str], stages: Sequence[ModuleType], kept: Sequence[str]) -> list[str]:
    """Options that only stages left out of the chain have, and that are not as by default.

    Args:
        options: of the chain.
        left_out: each stage that will not run, and the option that says so.
        stages: all stages.
        kept: names that are in use all the same.
    """
    busy = {name for stage in stages if stage not in left_out for name in _names(stage)} | {*kept, *SIZES}
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return [
        f"{name}={to_text(getattr(options, name))}: {why} runs no {stage.__name__.rpartition('.')[2]}"
        for stage, why in left_out.items()
        for name in _names(stage)
        if name in defaults and name not in busy and getattr(options, name) != defaults[name]
    ]


def layer_faults(gate_layer: str, name: str, base: str) -> list[str]:
    """A gate layer above the last of a base that is new or lies in a folder; of a hub model it shows when that is loaded."""
    config = Path(base) / "config.json"
    if not gate_layer.isdigit() or not (base == SCRATCH or config.is_file()):
        return []
    n_layers = SmallShape().encoder_layers if base == SCRATCH else read_json(config).get("encoder_layers", 0)
    return [f"gate_layer={gate_layer}: {name}={base} has layers 0 to {n_layers}"] if int(gate_layer) > n_layers else []


def top_k_faults(options: Options, n_experts: int | str) -> list[str]:
    """More experts to mix than there will be; not known beforehand where their number is chosen or found."""
    asked = {name: getattr(options, name) for name in ("top_k", "decoding_top_k")}
    if isinstance(n_experts, str):
        return []
    return [f"{name}={k}: num_experts={n_experts} has no more to mix" for name, k in asked.items() if k is not None and k > n_experts]


def augmentation_faults(options: Options) -> list[str]:
    """Augmentation that nothing in the chain would use: a base that is made has it always, adapters with `augment`."""
    return [f"{fault}, or a base that is made (init_from)" for fault in idle_augmentation(options)] if options.is_taken else []


def _names(stage: ModuleType) -> list[str]:
    return [field.name for field in dataclasses.fields(stage.StepOptions) if not field.name.endswith(("_run_id", "_run_ids"))]
