"""Entry point `main`: the whole chain as nested runs; every stage is given the ids of the runs it reads.

    synthesize → prepare → pretrain → embed → cluster → gate → experts → asr → baseline ×2 → evaluate ×3 → compare → register

Stages that would come out the same are reused, and one line says so and why. Example:
    mlflow run . --env-manager local
    mlflow run . --env-manager local -P corpus=folder -P dataset_root=PATH -P whisper_model=BASE -P until=evaluate
"""

import dataclasses
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import pandas as pd

from analysis.report import markdown_table, percent
from analysis.verdict import best_sentence, readable_table, size_sentence
from moe.corpora.preparation import PreparationOptions
from moe.experts.routed_lora import AdapterOptions
from moe.options import NONE, Options, names_of, to_text
from moe.systems.whisper.tokens import CHECKPOINT
from steps import asr, cluster, pretrain, steer
from steps.chain.branches import planned_alone
from steps.chain.chain import Chain
from steps.chain.checks import (
    backoff_faults,
    beam_faults,
    cluster_faults,
    export_faults,
    idle_faults,
    language_faults,
    layer_faults,
    rank_faults,
    routing_faults,
    target_faults,
    together_faults,
    top_k_faults,
)
from steps.chain.corpus_checks import corpus_faults, disk_faults, outline_of
from steps.chain.costs import opening_line
from steps.chain.domain_checks import domain_faults
from steps.chain.options import BASE, QUICK, SMALL, ChainOptions
from steps.chain.remote_checks import remote_faults
from steps.chain.screen import TESTS, WIDTH, evaluation_lines, opening, result_lines
from steps.chain.stages import (
    NAMES,
    STAGES,
    chosen_systems,
    left_out,
    makes_tokenizer,
    n_experts,
    planned,
    running,
    stage_options,
    used_names,
)
from steps.chain.steer_checks import steer_faults
from steps.inputs.corpus import corpus_name
from steps.options.help_text import owner
from steps.options.option_files import option_file_text
from steps.register import CHAMPION_TAG
from steps.registry.judging import ANY
from steps.tracking import artifacts, runs
from steps.tracking.experiments import say_result
from steps.tracking.lineage import run_link
from steps.tracking.step_run import StepRun
from steps.tracking.store import artifact_folder, connect

OPTIONS = "options.yaml"


def _union() -> list[tuple[str, Any, dataclasses.Field]]:
    """The options of all stages but the ids of runs, each name once; the chain's own fields come from ChainOptions."""
    own = {field.name for field in dataclasses.fields(ChainOptions)}
    found: dict[str, tuple[str, Any, dataclasses.Field]] = {}
    fields = [field for stage in STAGES for field in dataclasses.fields(stage.StepOptions)]
    for stage in STAGES:
        for field in dataclasses.fields(stage.StepOptions):
            if not field.name.endswith(("_run_id", "_run_ids")) and field.name not in own | {"system"}:
                copy: Any = dataclasses.field(
                    default=field.default,
                    metadata={**field.metadata, "choices": _all_choices(field, fields), "owner": owner(stage.StepOptions, field)},
                )
                found.setdefault(field.name, (field.name, field.type, copy))
    return list(found.values())


def _all_choices(field: dataclasses.Field, fields: list[dataclasses.Field]) -> tuple[str, ...] | None:
    """The words that any stage takes; each refuses those that are not its own."""
    words = [word for each in fields if each.name == field.name for word in each.metadata.get("choices") or ()]
    return tuple(dict.fromkeys(words)) or None


StageOptions: Any = dataclasses.make_dataclass("StageOptions", _union(), bases=(Options,), frozen=True)


@dataclasses.dataclass(frozen=True)
class StepOptions(ChainOptions, StageOptions):
    """Run the whole chain."""

    def used_parameters(self) -> dict[str, str]:
        """What the stages that run are given: no option of another stage, and the values that stand for `none`."""
        resolved = {"num_experts": n_experts(self), "corpus_seed": self.seed if self.corpus_seed is None else self.corpus_seed}
        used = used_names(self)
        return {name: to_text(resolved.get(name, getattr(self, name))) for name in self.as_parameters() if name in used}


@dataclasses.dataclass(frozen=True)
class ReusableOptions(StepOptions):
    """Run a chain that may be reused as a whole: what its stages read from outside the store counts too, and takes time to digest."""

    def data_digests(self) -> dict[str, str]:
        """Those of its stages."""
        found: dict[str, str] = {}
        for module, given in running(self):
            found |= getattr(stage_options(module, self, **given), "data_digests", dict)()
        return found


def run(options: StepOptions) -> str:
    """Run the chain and return its run id."""
    check_stages(options, remote_faults(options))
    print(opening(options), flush=True)
    if line := opening_line(options):
        print(line, flush=True)
    with runs.step_run("main", options, f"main · seed {options.seed}") as step:
        step.log_text(option_file_text(_as_file(options)), OPTIONS)
        chain = Chain(options)
        chain.run()
        _report(step, chain, corpus_name(options.corpus, options.dataset_root))
    return step.run_id


def _as_file(options: StepOptions) -> dict[str, Any]:
    """Every option in use, in a form that `options_file` takes."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name != "options_file"}
    return {name: NONE if value is None else value for name, value in values.items()}


def check_stages(options: StepOptions, further: Sequence[str] = ()) -> None:
    """Build the options of every stage, so that a fault anywhere shows before anything has run.

    Args:
        further: faults that are known already.

    Raises:
        ValueError: all faults of all stages, each once.
    """
    faults: dict[str, None] = dict.fromkeys(further)
    for module, given in [*planned(options), *planned_alone(options)]:
        try:
            stage_options(module, options, **given)
        except ValueError as error:
            faults |= dict.fromkeys(str(error).split("; "))
    faults |= dict.fromkeys(_faults_between(options))
    if faults:
        raise ValueError("; ".join(faults))


def _faults_between(options: StepOptions) -> list[str]:
    """Faults that no stage can see by itself."""
    made_small = [name for name, value in SMALL.items() if options.mode == QUICK and getattr(options, name) == value]
    found = idle_faults(options, planned(options), left_out(options), [*names_of(ChainOptions), *made_small])
    base = "init_from" if options.init_from else "whisper_model"
    if pretrain not in left_out(options) and not makes_tokenizer(options):
        found += language_faults(options.language, base, options.source)
    found += layer_faults(options.gate_layer, base, options.source) + top_k_faults(options, n_experts(options))
    found += export_faults(options) + ([] if cluster in left_out(options) else cluster_faults(options, n_experts(options)))
    found += _adapter_faults(options) + ([] if steer in left_out(options) else steer_faults(options))
    return found + beam_faults(options) + together_faults(options) + _register_faults(options) + _corpus_faults(options)


def _corpus_faults(options: StepOptions) -> list[str]:
    """What the corpus is too long or too small for, and the disk too full."""
    skipped, n_wanted = left_out(options), n_experts(options)
    runs_to = NAMES.index(options.until)
    if pretrain in skipped or runs_to <= NAMES.index("pretrain"):
        return []
    clusters_speakers = runs_to >= NAMES.index("cluster") and cluster not in skipped and options.cluster_unit == "speaker"
    n_clusters = n_wanted if clusters_speakers and isinstance(n_wanted, int) else None
    seed = options.seed if options.corpus_seed is None else options.corpus_seed
    try:
        preparing = dataclasses.replace(options.part(PreparationOptions), seed=seed)
    except ValueError:
        return []  # said of the stage itself
    tokenizer = options.tokenizer if makes_tokenizer(options) else CHECKPOINT
    trains = any(name != BASE for name in options.system_names)
    known, found = outline_of(preparing), disk_faults(options.source, artifact_folder())
    if runs_to >= NAMES.index("domain"):
        found = domain_faults(options, known.train_etiologies if known else None) + found
    together = options.shards_together
    return (corpus_faults(preparing, known, options.source, n_clusters, tokenizer, trains, together) if known else []) + found


def _adapter_faults(options: StepOptions) -> list[str]:
    """Layers that are not there, routing that so few experts leave nothing to, and a total rank that cannot be divided among them."""
    if asr in left_out(options):
        return []
    found = target_faults(options.lora_targets) + routing_faults(options, n_experts(options)) + backoff_faults(options)
    if options.adapter_rank is None:
        return found
    try:
        return found + rank_faults(options.part(AdapterOptions), n_experts(options))
    except ValueError:
        return found  # said of the stage itself


def _register_faults(options: StepOptions) -> list[str]:
    """A system to register that is not trained."""
    systems = chosen_systems(options)
    if options.until != "register" or options.register_system in (ANY, *systems):
        return []
    return [
        f"register_system={options.register_system}: systems={options.systems} does not train it; set register_system=any or one of them"
    ]


def _report(step: StepRun, chain: Chain, corpus: str) -> None:
    """Put the result where the chain's own run shows it, and on the screen."""
    wer, client = _wer(chain), connect().client
    step.log_metrics({f"test/wer/{system}": value for system, value in wer.items()})
    said, table = [f"Ran up to `{chain.options.until}`."], ""
    if wer:
        first = chain.options.system_names[0]
        step.log_metrics({"test/wer": wer[first]})
        said = [f"Test WER of {', '.join(f'{system} {percent(value)}' for system, value in wer.items())}."]
        best = min(wer, key=wer.__getitem__)
        step.add_to_name(corpus, f"{percent(wer[best])} WER, {best}")
    if "compare" in chain.run_ids:
        rows = pd.read_parquet(artifacts.upstream(chain.run_ids["compare"], artifacts.COMPARISON))
        tests = pd.read_csv(artifacts.upstream(chain.run_ids["compare"], TESTS))
        report = artifacts.upstream(chain.run_ids["compare"], "comparison.md").read_text(encoding="utf-8")
        step.log_text(report, "comparison.md")
        said, table = [best_sentence(rows, tests)], markdown_table(readable_table(rows))
        say_result(client, connect().experiment_id, f"{corpus}: {said[0]}")
        print("\n".join(result_lines(chain.run_ids["compare"], chain.options)), flush=True)
    elif wer:
        print("\n".join(evaluation_lines([chain.run_ids[f"evaluate {system}"] for system in wer])), flush=True)
    if "register" in chain.run_ids:
        said.append(client.get_run(chain.run_ids["register"]).data.tags[CHAMPION_TAG])
        print(fill(said[-1], WIDTH, break_on_hyphens=False, break_long_words=False), flush=True)
    if "compare" in chain.run_ids:
        said.append(size_sentence(rows, tests))
        print(fill(said[-1], WIDTH, break_on_hyphens=False, break_long_words=False), flush=True)
    stages = "\n".join(f"- {run_link(run_id, name)} `{run_id}`" for name, run_id in chain.run_ids.items())
    step.describe("\n\n".join([*said, table, f"The runs of this chain, those that it reused too:\n\n{stages}"]))


def _wer(chain: Chain) -> dict[str, float]:
    """Test WER of every system that was evaluated."""
    client, run_ids = connect().client, chain.run_ids
    evaluated = {
        system: run_ids[f"evaluate {system}"] for system in chosen_systems(chain.options) if f"evaluate {system}" in run_ids
    }
    return {system: client.get_run(run_id).data.metrics["test/wer"] for system, run_id in evaluated.items()}


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
