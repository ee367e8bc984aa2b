"""The chain as a table: which step runs, the runs that it reads, and the systems that need it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from moe.options import Options, names_of
from moe.systems.steer_moe.options import LLM, SHIPPED_DECODER, WHISPER
from moe.systems.table import SYSTEMS
from moe.systems.whisper.base_source import SCRATCH
from moe.systems.whisper.tokens import CHECKPOINT
from steps import (
    asr,
    baseline,
    cluster,
    compare,
    ctc,
    decoder,
    domain,
    embed,
    evaluate,
    experts,
    gate,
    prepare,
    pretrain,
    register,
    steer,
    synthesize,
)
from steps.chain.options import BASE, CTC, DOMAIN, LORA, MIXTURE, STEER, ChainOptions
from steps.options.ask_options import STEP_NAMES, AskOptions
from steps.options.step_options import SYNTHETIC, default_experts

Given = Callable[[ChainOptions], dict[str, Any]]
PENDING = "pending"  # stands for the id of a run that does not exist yet, when options are checked before any work


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of the chain.

    Attributes:
        name: of its run among those of the chain.
        reads: stages whose run ids it is given, as `<step>_run_id`; those that did not run are left out.
        systems: the systems that need it.
        given: options that the chain decides.
    """

    name: str
    module: ModuleType
    reads: tuple[str, ...] = ()
    systems: tuple[str, ...] = tuple(SYSTEMS)
    given: Given = lambda options: {}

    @property
    def step(self) -> str:
        """Name of its step, as in MLproject."""
        return step_name(self.module)


def step_name(module: ModuleType) -> str:
    """Name of a step, as in MLproject."""
    return module.__name__.rpartition(".")[2]


def n_experts(options: ChainOptions) -> int | str:
    """Experts to cluster for; auto where the clusters are to say."""
    return options.num_experts or default_experts(options.corpus == SYNTHETIC)


def makes_decoder(options: ChainOptions) -> bool:
    """Whether a language model is made: where the base is made too, and no other is named."""
    return options.init_from is not None and getattr(options, "llm", SHIPPED_DECODER) == SHIPPED_DECODER


def makes_tokenizer(options: ChainOptions) -> bool:
    """Whether the base gets a new tokenizer, which has the corpus's language."""
    return not options.is_taken and vars(options).get("tokenizer", CHECKPOINT) != CHECKPOINT


BUDGET = (MIXTURE, LORA)  # one LoRA gets the mixture's size and updates, so it needs the mixture
TRAINING = (
    Stage("synthesize", synthesize),
    Stage("prepare", prepare, ("synthesize",)),
    Stage("pretrain", pretrain, ("prepare",), (MIXTURE, LORA, BASE, STEER, DOMAIN)),
    Stage("embed", embed, ("prepare", "pretrain"), BUDGET),
    Stage("cluster", cluster, ("prepare", "embed"), BUDGET, lambda options: {"num_experts": n_experts(options)}),
    Stage("gate", gate, ("embed", "cluster"), BUDGET),
    Stage("experts", experts, ("prepare", "pretrain", "cluster"), BUDGET),
    Stage(MIXTURE, asr, ("prepare", "pretrain", "embed", "cluster", "gate", "experts"), BUDGET,
          lambda options: {"num_experts": options.num_experts if options.skip_pretraining else None}),
    Stage(BASE, baseline, ("prepare", "pretrain"), (BASE,), lambda options: {"system": BASE}),
    Stage(LORA, baseline, ("prepare", "pretrain", MIXTURE), (LORA,), lambda options: {"system": LORA}),
    Stage("decoder", decoder, ("prepare", "pretrain"), (STEER,),
          lambda options: {"init_from": SCRATCH if makes_decoder(options) else None, "export_dir": None}),
    Stage(STEER, steer, ("prepare", "pretrain", "decoder"), (STEER,)),
    Stage(CTC, ctc, ("prepare", "cluster"), (CTC,)),
    Stage(DOMAIN, domain, ("prepare", "pretrain"), (DOMAIN,)),
)  # fmt: skip
LAST = (evaluate, compare, register)
STAGES = tuple(dict.fromkeys([*(stage.module for stage in TRAINING), *LAST]))
NAMES = tuple(map(step_name, STAGES))
MIXTURE_ONLY = (embed, cluster, gate, experts)
EVALUATED = (BASE, LORA, MIXTURE, STEER, CTC, DOMAIN)  # order of the comparison: what the others are measured against comes first


def chosen_systems(options: ChainOptions) -> list[str]:
    """The systems to train, evaluate and compare, in the order of a comparison."""
    return sorted(options.system_names, key=lambda name: EVALUATED.index(name) if name in EVALUATED else len(EVALUATED))


def left_out(options: ChainOptions) -> dict[ModuleType, str]:
    """The steps that do not run, each with the option that says so."""
    systems = set(chosen_systems(options))
    needed = {stage.module for stage in TRAINING if systems & set(stage.systems)}
    stages = {stage.module: f"systems={options.systems}" for stage in TRAINING if stage.module not in needed}
    if len(systems) < 2:
        stages[compare] = f"systems={options.systems}"
    if options.corpus != SYNTHETIC:
        stages[synthesize] = f"corpus={options.corpus}"
    if getattr(options, "writer", LLM) == WHISPER:
        stages.setdefault(decoder, f"writer={WHISPER}")
    return stages | (dict.fromkeys(MIXTURE_ONLY, "skip_pretraining=true") if options.skip_pretraining else {})


def stages_of(options: ChainOptions) -> list[Stage]:
    """The training stages that run, in order."""
    skipped, systems = left_out(options), set(chosen_systems(options))
    return [stage for stage in TRAINING if stage.module not in skipped and systems & set(stage.systems)]


def stage_options(module: ModuleType, options: ChainOptions, **given: Any) -> Options:
    """The options of one step: those of `main` that it has and `given`, as far as they do something there."""
    left = {"run_name", *idle_options(module, options, given)}  # the name is that of the chain's own run
    values = {name: getattr(options, name) for name in names_of(module.StepOptions) if hasattr(options, name)} | given
    return module.StepOptions(**{name: value for name, value in values.items() if name not in left})


def idle_options(module: ModuleType, options: ChainOptions, given: Mapping[str, Any]) -> dict[str, str]:
    """Options that do nothing in a step, each with the reason."""
    return module.StepOptions.unchecked({**vars(options), **given}).all_idle()


def training_given(stage: Stage, options: ChainOptions, run_ids: Mapping[str, str]) -> dict[str, Any]:
    """What the chain gives a training stage beside the options of `main`."""
    seed = {"seed": options.corpus_seed} if options.corpus_seed is not None and stage.module in (synthesize, prepare) else {}
    is_passing = stage.module is pretrain and options.until != "pretrain"  # it is the systems that are exported then
    kept_here = {"export_dir": None} if is_passing else {}
    return ids_of(stage.reads, run_ids) | stage.given(options) | seed | kept_here


def evaluation_given(system: str, prepare_run_id: str, model_run_id: str) -> dict[str, Any]:
    """What the chain gives one evaluation: only what the system can be asked is asked of it."""
    taken = {STEP_NAMES.get(field.name, field.name) for field in dataclasses.fields(SYSTEMS[system].ask_type)}
    nothing = {field.name: field.default for field in dataclasses.fields(AskOptions) if field.name not in taken}
    return {**nothing, "prepare_run_id": prepare_run_id, "model_run_id": model_run_id}


def unasked(system: str, options: ChainOptions) -> dict[str, Any]:
    """What is asked of other systems only: how many experts, where a CTC has none."""
    return {"decoding_top_k": None} if system == CTC and vars(options).get("ctc_experts", 1) == 1 else {}


def planned(options: ChainOptions) -> list[tuple[ModuleType, dict[str, Any]]]:
    """Every run of the chain, and what the chain gives it; ids of runs that do not exist yet stand as `PENDING`."""
    stages = stages_of(options)
    ran = {stage.name: PENDING for stage in stages}
    found = [(stage.module, training_given(stage, options, ran)) for stage in stages]
    found += [
        (evaluate, evaluation_given(system, PENDING, PENDING) | unasked(system, options)) for system in chosen_systems(options)
    ]
    judges = [module for module in (compare, register) if module not in left_out(options)]
    return found + [(module, {"evaluate_run_ids": f"{PENDING},{PENDING}2"}) for module in judges]


def running(options: ChainOptions) -> list[tuple[ModuleType, dict[str, Any]]]:
    """Of `planned` the runs up to `until`."""
    last = NAMES.index(options.until)
    return [(module, given) for module, given in planned(options) if NAMES.index(step_name(module)) <= last]


def used_names(options: ChainOptions) -> set[str]:
    """Options that do something in a chain: its own, and those that are in use in a stage that it runs."""
    used = set(names_of(ChainOptions))
    for module, given in running(options):
        used |= set(names_of(module.StepOptions)) - set(idle_options(module, options, given))
    return used


def ids_of(reads: Sequence[str], run_ids: Mapping[str, str]) -> dict[str, str]:
    """Run ids by the option that names them, of those stages that ran."""
    modules = {stage.name: stage.step for stage in TRAINING}
    return {f"{modules[name]}_run_id": run_ids[name] for name in reads if name in run_ids}
