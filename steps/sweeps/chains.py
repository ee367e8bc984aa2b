"""The chain of a trial: what the sweep decides of its options, what may be varied, and what is left as given."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from moe.options import names_of
from steps import baseline, compare, prepare, pretrain, register, synthesize
from steps.chain.options import CTC, DOMAIN, LORA, MIXTURE, STEER, ChainOptions
from steps.chain.stages import STAGES, TRAINING, running, used_names
from steps.options.step_options import ExportOptions, PlotOptions, ReportOptions

SELECTED_BY = {
    STEER: "steer_select",
    CTC: "selection",
    DOMAIN: "selection",
}  # what an epoch is kept by; the others keep it by WER
SCORED = ("eval_share", "stage_floor", "data_percent", "asr_percent", "steer_percent", *SELECTED_BY.values())
NOT_PASSED_ON = ("options_file", "run_name")


def step_of(system: str) -> str:
    """The step that trains a system."""
    return next(stage.step for stage in TRAINING if stage.name == system)


def selected_metric(system: str, values: Mapping[str, Any]) -> str:
    """The dev metric by which a system keeps its epoch, among options by name."""
    return f"dev/{values[SELECTED_BY[system]] if system in SELECTED_BY else 'wer'}"


def decided(system: str, options: ChainOptions) -> dict[str, Any]:
    """What a sweep over a system says of every chain: it ends with the training, and the corpus is the same for every seed."""
    systems = f"{MIXTURE},{LORA}" if system == LORA else system
    corpus_seed = options.seed if options.corpus_seed is None else options.corpus_seed
    return {"systems": systems, "until": step_of(system), "corpus_seed": corpus_seed}


def not_varied(system: str, options: ChainOptions) -> dict[str, str]:
    """The options that a sweep over a system does not vary, each with the reason."""
    trains = [module for module, _ in running(_unchecked(options, decided(system, options)))]
    read = names_of(*(module.StepOptions for module in trains if system != LORA or module in (pretrain, baseline)))
    found = {name: f"no training of {system} reads it" for name in names_of(type(options), but=read)}
    found |= dict.fromkeys(names_of(synthesize.StepOptions, prepare.StepOptions), "every trial has the same dev set")
    found |= dict.fromkeys(SCORED, "it says what of dev is scored, or by what an epoch is kept")
    same = [*ChainOptions.__annotations__, *names_of(PlotOptions, ExportOptions, ReportOptions)]
    return found | dict.fromkeys(same, "every trial has the same") | {"seed": "set seeds"}


def chain_values(system: str, options: ChainOptions, values: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The options of a trial's chain, by name.

    Args:
        values: of the options that are varied; one that does nothing beside the others is left as given.
        names: of the options of `main`; those that compare or register alone reads are the sweep's own, and left out.
    """
    left = {*own_names(compare, register), *NOT_PASSED_ON}
    given = {name: getattr(options, name) for name in names if name not in left} | decided(system, options)
    used = used_names(_unchecked(options, given | dict(values)))
    return given | {name: value for name, value in values.items() if name in used}


def own_names(*modules: ModuleType) -> set[str]:
    """Options that these stages alone have."""
    others = names_of(ChainOptions, *(module.StepOptions for module in STAGES if module not in modules))
    return set(names_of(*(module.StepOptions for module in modules), but=others))


def _unchecked(options: ChainOptions, values: Mapping[str, Any]) -> ChainOptions:
    return type(options).unchecked({**vars(options), **values})
