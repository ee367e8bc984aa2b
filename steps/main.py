"""Entry point `main`: the whole chain as nested runs, every stage told the ids of the runs it reads.

    synthesize → prepare → pretrain → embed → cluster → gate → experts → asr → baseline ×2 → evaluate ×3 → compare → register

Stages that would come out the same are reused, and one line says so and why. Example:
    mlflow run . --env-manager local
    mlflow run . --env-manager local -P corpus=folder -P dataset_root=PATH -P whisper_model=BASE -P until=evaluate
"""

import dataclasses
from types import ModuleType
from typing import Any, Self

import pandas as pd

from analysis.report import markdown_table
from analysis.verdict import readable_table
from moe.corpora.formats.table import FORMATS
from moe.options import NONE, Options, option
from steps import asr, cluster, compare, evaluate, prepare, pretrain, register
from steps.chain.checks import augmentation_faults, idle_faults, layer_faults, top_k_faults
from steps.chain.stages import NAMES, STAGES, Chain, corpus_seed, left_out, n_experts, stage_options
from steps.options.help_text import owner
from steps.options.option_files import option_file_text
from steps.options.step_options import SYNTHETIC, PlotOptions, SkipPretrainingOptions
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun

OPTIONS, QUICK = "options.yaml", "quick"
PENDING = "pending"  # stands for the id of a run that does not exist yet, when options are checked before any work
SMALL = {
    "n_train_speakers": 3, "n_dev_speakers": 1, "n_test_speakers": 2, "n_utterances": 8, "n_dev_utterances": 4, "n_test_utterances": 5,
    "expert_epochs": 1, "asr_epochs": 1, "gating_epochs": 20, "max_samples": 240,
}  # fmt: skip
SMALL_BASE = {"pretrain_updates": 20, "missing_updates": 10}  # where one is made


@dataclasses.dataclass(frozen=True)
class ChainOptions(pretrain.BaseOptions, SkipPretrainingOptions, PlotOptions):
    """What `main` takes beside every option of its stages."""

    mode: str = option("full", "quick is a smoke test: few utterances, one epoch; what you set yourself is kept", choices=(QUICK, "full"), common=True)
    corpus: str = option(SYNTHETIC, "format of the corpus", choices=tuple(FORMATS), common=True)
    options_file: str | None = option(None, "YAML or JSON file of options, e.g. presets/a100-40gb.yaml; what you set yourself wins", common=True)
    corpus_seed: int | None = option(None, "seed of synthesize and prepare, to train several seeds on one corpus (none: seed)", low=0)
    until: str = option("register", "the last stage to run", choices=NAMES, common=True)
    force: str = option(NONE, "run this stage though it could be reused, and with `all` every stage", choices=(NONE, "all", *NAMES), common=True)

    @classmethod
    def asked(cls, **given: Any) -> Self:
        """`mode=quick` fills in the small numbers of a smoke test."""
        return super().asked(**(_quick(given) if given.get("mode") == QUICK else {}) | given)


def _quick(given: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(pretrain.BaseOptions)} & set(given)
    base = pretrain.BaseOptions(**{name: given[name] for name in names})
    return SMALL if base.is_taken else SMALL | SMALL_BASE


def _union() -> list[tuple[str, Any, dataclasses.Field]]:
    """The options of all stages but the ids of runs, each name once; the chain's own fields come from ChainOptions."""
    own = {field.name for field in dataclasses.fields(ChainOptions)}
    found: dict[str, tuple[str, Any, dataclasses.Field]] = {}
    for stage in STAGES:
        for field in dataclasses.fields(stage.StepOptions):
            if not field.name.endswith(("_run_id", "_run_ids")) and field.name not in own | {"system"}:
                copy = dataclasses.field(default=field.default, metadata={**field.metadata, "owner": owner(stage.StepOptions, field)})
                found.setdefault(field.name, (field.name, field.type, copy))
    return list(found.values())


StepOptions = dataclasses.make_dataclass("StepOptions", _union(), bases=(ChainOptions,), frozen=True)
StepOptions.__module__, StepOptions.__doc__ = __name__, "Run the whole chain."


def run(options: Options) -> str:
    """Run the chain and return its run id."""
    check_stages(options)
    with runs.step_run("main", options, f"main · seed {options.seed} · {options.corpus}") as step:
        step.log_text(option_file_text(_as_file(options)), OPTIONS)
        chain = Chain(options)
        chain.run()
        _report(step, chain)
    return step.run_id


def _as_file(options: Options) -> dict[str, Any]:
    """Every option in use: under `mlflow run` the run's parameters cannot show what came from an option file."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name != "options_file"}
    return {name: NONE if value is None else value for name, value in values.items()}


def check_stages(options: Options) -> None:
    """Build the options of every stage, so that a fault anywhere shows before anything has run.

    Raises:
        ValueError: all faults of all stages, each once.
    """
    faults: dict[str, None] = {}
    for stage in [stage for stage in STAGES if stage not in left_out(options)]:
        try:
            stage_options(stage, options, **_pending(stage, options))
        except ValueError as error:
            faults |= dict.fromkeys(str(error).split("; "))
    faults |= dict.fromkeys(_faults_between(options))
    if faults:
        raise ValueError("; ".join(faults))


def _faults_between(options: Options) -> list[str]:
    """Faults that no stage can see by itself."""
    made_small = [name for name, value in SMALL.items() if options.mode == QUICK and getattr(options, name) == value]
    own = [field.name for field in dataclasses.fields(ChainOptions)]
    found = idle_faults(options, left_out(options), STAGES, [*own, *made_small])
    base = "init_from" if options.init_from else "whisper_model"
    found += layer_faults(options.gate_layer, base, getattr(options, base))
    return found + top_k_faults(options, n_experts(options)) + augmentation_faults(options)


def _pending(stage: ModuleType, options: Options) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(stage.StepOptions) if field.name.endswith("_run_id")}
    if stage is asr and options.skip_pretraining:
        return {"prepare_run_id": PENDING, "pretrain_run_id": PENDING, "num_experts": options.num_experts}
    if stage is prepare and options.corpus != SYNTHETIC:
        names = set()
    if stage is evaluate:
        names = {"prepare_run_id", "asr_run_id"}
    ids = {name: PENDING for name in names} | corpus_seed(stage, options)
    if stage in (cluster, asr):
        ids["num_experts"] = n_experts(options) if stage is cluster else None
    return ids | ({"evaluate_run_ids": f"{PENDING},{PENDING}2"} if stage in (compare, register) else {})


def _report(step: StepRun, chain: Chain) -> None:
    """Put the result where the chain's own run shows it, and on the screen."""
    stages = "\n".join(f"- {name}: `{run_id}`" for name, run_id in chain.run_ids.items())
    result = ""
    if "compare" in chain.run_ids:
        table = pd.read_parquet(artifacts.upstream(chain.run_ids["compare"], artifacts.COMPARISON))
        report = artifacts.upstream(chain.run_ids["compare"], "comparison.md").read_text(encoding="utf-8")
        step.log_text(report, "comparison.md")
        step.log_metrics({f"wer/{row.system}": row.wer for row in table.itertuples()})
        result = markdown_table(readable_table(table))
        print(f"\n{report.split('## By group')[0]}\n", flush=True)
    step.describe(f"## The chain\n{result}\n{stages}")


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
