"""Systems side by side: which stages are one system's alone, and what one LoRA gets where it does not wait for the mixture.

One LoRA has the size, the data and the updates of the mixture. Both are planned before either is trained; a mixture whose training stops
early, or whose experts are merged, turns out otherwise, and then one LoRA is trained again.
"""

from types import ModuleType
from typing import Any

from moe.experts.routed_lora import AdapterOptions
from moe.system import read_record
from steps import baseline
from steps.chain.options import LORA
from steps.chain.stages import NAMES, PENDING, Stage, n_experts, stages_of, training_given
from steps.inputs.corpus import read_prepared
from steps.tracking import artifacts

FOUND = ("hdbscan", "by_etiology")  # clusters, of which num_experts is the most
SHARED = NAMES[: NAMES.index("experts")]  # steps that come before any system's own
PLANNED = Stage(LORA, baseline, ("prepare", "pretrain"), (LORA,), lambda options: lora_given(options))


def own_stages(options: Any, system: str) -> list[Stage]:
    """The training stages, up to `until`, that a system shares with none."""
    last = NAMES.index(options.until)
    found = [stage for stage in stages_of(options) if system in stage.systems and stage.step not in SHARED]
    return [stage for stage in ([PLANNED] if system == LORA else found) if NAMES.index(stage.step) <= last]


def branches(options: Any) -> list[str]:
    """The systems that can be trained side by side: none where there is only one."""
    free = [name for name in options.system_names if name != LORA or is_planned(options)]
    found = [name for name in free if own_stages(options, name)]
    return found if options.systems_together > 1 and len(found) > 1 else []


def planned_alone(options: Any) -> list[tuple[ModuleType, dict[str, Any]]]:
    """As `steps.chain.stages.planned`: what runs otherwise beside others than in turn."""
    if LORA not in branches(options):
        return []
    return [(PLANNED.module, training_given(PLANNED, options, dict.fromkeys(PLANNED.reads, PENDING)))]


def is_planned(options: Any) -> bool:
    """Whether the mixture's size and updates are known before it is trained."""
    return isinstance(n_experts(options), int) and options.clustering_algorithm not in FOUND and _epochs(options) > 0


def lora_given(options: Any) -> dict[str, Any]:
    """Options of one LoRA: the total rank, scale, data and epochs of the mixture as it is planned.

    Args:
        options: `steps.main.StepOptions`, whose fields are those of all stages; both trainings see the same subset.
    """
    plain, n = AdapterOptions(), n_experts(options)
    alpha = options.lora_alpha if options.rank_stabilised else options.lora_alpha / options.lora_r * plain.lora_r
    ranks = {
        "lora_r": plain.lora_r,
        "shared_r": plain.shared_r,
        "shared_share": plain.shared_share,
        "shared_expert": True,
        "lora_alpha": alpha,
    }
    size = {"adapter_rank": options.trainings * total_rank(options.part(AdapterOptions), n if isinstance(n, int) else 0)}
    return {"system": LORA, "asr_run_id": None, **ranks, **size, "lora_epochs": float(options.trainings * _epochs(options))}


def planned_epochs(options: Any, prepare_run_id: str) -> float:
    """Passes over the subset of joint training in which one LoRA sees as many utterances as the mixture's trainings do together."""
    prepared = read_prepared(prepare_run_id)
    n_expert, n_joint = (
        len(prepared.train(percent, options.data_percent, options.stage_floor, options.seed))
        for percent in (options.experts_percent, options.asr_percent)
    )
    of_experts = 0 if options.skip_pretraining else options.expert_epochs
    return options.trainings * (of_experts * n_expert + options.asr_epochs * n_joint) / n_joint


def not_as_planned(mixture_run_id: str, lora_run_id: str, rank: int) -> str:
    """What a mixture has where one LoRA of this total rank got something else, in words; empty where it turned out as planned."""
    mixture, lora = (read_record(artifacts.upstream(run_id, artifacts.MODEL)).facts for run_id in (mixture_run_id, lora_run_id))
    values = {
        "a total rank of {:,}": (round(rank * mixture["n_trainable"] / lora["n_trainable"]), rank),
        "seen {:,} utterances": (mixture["n_utterances_seen"], lora["n_utterances_seen"]),
    }
    return " and ".join(f"{said.format(got)}, not {planned:,}" for said, (got, planned) in values.items() if got != planned)


def total_rank(options: AdapterOptions, n_experts: int) -> int:
    """Rank of the shared adapter and of so many experts together, in each layer."""
    return options.adapter_rank or options.shared_rank + n_experts * options.lora_r


def _epochs(options: Any) -> int:
    return options.asr_epochs + (0 if options.skip_pretraining else options.expert_epochs)
