"""What `main` refuses before anything has run, beside what each stage refuses by itself: faults that lie between two stages.

An option of a stage that the chain leaves out would be accepted and ignored, so it is refused; so is a layer that the base has not
got, and more experts to mix than there will be.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from moe.experts.joint_training import experts_faults
from moe.experts.rank_split import split_ranks
from moe.experts.routed_lora import ALL_LINEARS, AdapterOptions
from moe.files import read_json
from moe.options import NONE, listed, names_of, to_text
from moe.routing.curriculum import CurriculumOptions
from moe.routing.losses import BalanceOptions
from moe.routing.options import RoutingOptions
from moe.system import DecodingOptions
from moe.systems.table import beam_fault
from moe.systems.whisper.base_source import (
    SCRATCH,
    SmallShape,
    known_languages,
    language_fault,
    small_files,
)
from moe.systems.whisper.checkpoint_weights import CONFIG
from steps.chain.branches import FOUND
from steps.chain.options import CTC, MIXTURE, ChainOptions
from steps.chain.stages import idle_options, running, step_name
from steps.options.ask_options import AskOptions

EXPORT = "export_dir"
SIZES = (
    "gating_batch_size",
    "expert_batch_size",
    "asr_batch_size",
    "embedding_batch_size",
)  # of the machine: option files name them for every chain


def idle_faults(
    options: ChainOptions,
    started: Sequence[tuple[ModuleType, Mapping[str, Any]]],
    left_out: Mapping[ModuleType, str],
    kept: Sequence[str],
) -> list[str]:
    """Options that are not as by default and that no stage would use.

    Args:
        options: of the chain.
        started: each stage that runs, and what the chain itself gives it; once for each way in which it is started.
        left_out: each stage that does not run, and the option that says so.
        kept: names that are in use all the same.
    """
    used, reasons = {*kept, *SIZES}, dict[str, list[str]]()
    for stage, given in started:
        idle = idle_options(stage, options, given)
        idle |= {name: f"none of systems={options.systems} takes it" for name in names_of(AskOptions) if name in given}
        used |= set(_names(stage)) - set(idle)
        for name, why in idle.items():
            reasons.setdefault(name, []).append(why)
    for stage, why in left_out.items():
        for name in _names(stage):
            reasons.setdefault(name, []).append(f"{why} runs no {stage.__name__.rpartition('.')[2]}")
    changed = [name for name in names_of(type(options)) if name in reasons and name not in used and options.is_changed(name)]
    return [f"{name}={to_text(getattr(options, name))}: {', and '.join(dict.fromkeys(reasons[name]))}" for name in changed]


def layer_faults(gate_layer: str, name: str, base: str) -> list[str]:
    """A gate layer above the last of a base that is new or whose config is on this machine."""
    folder = None if base == SCRATCH else small_files(base)
    if not gate_layer.isdigit() or (folder is None and base != SCRATCH):
        return []
    n_layers = SmallShape().encoder_layers if folder is None else read_json(folder / CONFIG).get("encoder_layers", 0)
    return [f"gate_layer={gate_layer}: {name}={base} has layers 0 to {n_layers}"] if int(gate_layer) > n_layers else []


def language_faults(language: str, name: str, base: str) -> list[str]:
    """A language that a base has no token for, where its files are on this machine; it may be partial, or an adapter."""
    known = None if base == SCRATCH else known_languages(base)  # no hub is asked for scratch
    fault = None if known is None else language_fault(language, known)
    return [f"{fault}: {name}={base}"] if fault else []


def target_faults(lora_targets: str) -> list[str]:
    """Layers that no Whisper has."""
    targets = listed(lora_targets)
    unknown = [each for each in targets if not any(name.endswith(each) for name in listed(ALL_LINEARS))]
    fault = f"lora_targets={lora_targets}: a Whisper's layers have {ALL_LINEARS.replace(',', ', ')}"
    return [fault] if unknown or not targets else []


def rank_faults(options: AdapterOptions, n_experts: int | str) -> list[str]:
    """A total rank that so many experts cannot share; not known beforehand where their number is chosen or found."""
    try:
        if not isinstance(n_experts, str):
            split_ranks(options, n_experts)
    except ValueError as error:
        return [str(error)]
    return []


def top_k_faults(options: ChainOptions, n_experts: int | str) -> list[str]:
    """More experts to mix than there will be; not known beforehand where their number is chosen or found."""
    asked = {name: getattr(options, name) for name in ("top_k", "decoding_top_k")}
    if isinstance(n_experts, str):
        return []
    return [
        f"{name}={k}: num_experts={n_experts} has no more to mix" for name, k in asked.items() if k is not None and k > n_experts
    ]


def backoff_faults(options: ChainOptions) -> list[str]:
    """A mixture that is to back off, and has nothing to back off to."""
    if MIXTURE in options.system_names and vars(options)["backoff"] and not vars(options)["shared_expert"]:
        return [f"backoff={vars(options)['backoff']:g}: shared_expert=false leaves no shared adapter to back off to"]
    return []


def routing_faults(options: ChainOptions, n_experts: int | str) -> list[str]:
    """What joint training would refuse of so many experts; not known beforehand where the clusters say how many there are."""
    if isinstance(n_experts, str) or (n_experts > 1 and vars(options)["clustering_algorithm"] in FOUND):
        return []
    try:
        parts = options.part(RoutingOptions), options.part(CurriculumOptions), options.part(BalanceOptions)
    except ValueError:
        return []  # said of the stage itself
    return experts_faults(n_experts, *parts)


def cluster_faults(options: ChainOptions, n_experts: int | str) -> list[str]:
    """Other experts of a CTC than there will be clusters; not known beforehand where their number is chosen or found."""
    n_asked = vars(options).get("ctc_experts", 1)
    if CTC not in options.system_names or n_asked in (1, n_experts) or isinstance(n_experts, str):
        return []
    return [f"ctc_experts={n_asked}: num_experts={n_experts} makes {n_experts} clusters; give as many"]


def export_faults(options: ChainOptions) -> list[str]:
    """One folder or repository for the models of several runs."""
    writers = [
        step_name(stage)
        for stage, given in running(options)
        if EXPORT in _names(stage) and EXPORT not in given and EXPORT not in idle_options(stage, options, given)
    ]
    asked = [name for name in (EXPORT, "push_to_hub") if getattr(options, name)] if len(writers) > 1 else []
    return [
        f"{name}={to_text(getattr(options, name))}: {' and '.join(writers)} would write there; name one trained system in systems"
        for name in asked
    ]


def beam_faults(options: ChainOptions) -> list[str]:
    """Beams of a system without the extra that searches them."""
    beam_size = options.part(DecodingOptions).beam_size
    return [fault for name in options.system_names if (fault := beam_fault(name, beam_size))]


def together_faults(options: ChainOptions) -> list[str]:
    """Several systems at a time, each of which would start several processes or hand its work to a cluster."""
    asked = {name: value for name in ("num_processes", "cluster") if (value := vars(options)[name]) not in (1, NONE)}
    if options.systems_together == 1 or not asked:
        return []
    others = " and ".join(f"{name}={value}" for name, value in asked.items())
    return [f"systems_together={options.systems_together}: the work is divided already, by {others}; leave one of them out"]


def _names(stage: ModuleType) -> list[str]:
    return [name for name in names_of(stage.StepOptions) if not name.endswith(("_run_id", "_run_ids"))]
