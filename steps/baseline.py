"""Entry point `baseline`: what the mixture has to beat. Writes the artifact `model`, in the mixture's own format.

`zero_shot` is the base model as it is. `single_lora` is one LoRA with as many trainable parameters as a mixture (`asr_run_id`), trained
on the same data for the same number of utterances. Example:
    mlflow run . --env-manager local -e baseline -P system=single_lora -P prepare_run_id=ID -P pretrain_run_id=ID -P asr_run_id=ID
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.plots.training import training_curves
from moe.experts.joint_training import JointOptions, TrainedMixture, train_jointly
from moe.experts.routed_lora import AdapterOptions, matched_rank
from moe.options import names_of, option
from moe.routing.curriculum import CurriculumOptions
from moe.routing.options import RoutingOptions
from moe.system import read_record
from moe.systems.whisper.base_model import BaseModel
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.folder import BASE, LORA, WhisperShape, new_record
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.system import WhisperSystem
from moe.training.loop import TrainingPlan, seed_everything, updates_per_epoch
from steps.inputs.corpus import Prepared, read_prepared
from steps.inputs.training import log_system, plan_of, read_base, training_facts, training_inputs
from steps.options.step_options import ExportOptions, MixtureStepOptions, PlotOptions, SeedOptions
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun

UNDIVIDED: dict[str, Any] = {"adapter_rank": None, "shared_share": AdapterOptions.shared_share}  # one adapter has no shares


@dataclasses.dataclass(frozen=True)
class StepOptions(ExportOptions, MixtureStepOptions):
    """Make a baseline."""

    system: str = option(BASE, "which baseline", choices=(BASE, LORA))
    asr_run_id: str | None = option(None, "mixture whose trainable parameters and utterances single_lora gets")
    asr_batch_size: int = option(16, "utterances per batch", low=1)
    expert_learning_rate: float = option(3e-3, "learning rate of all adapters", above=0)

    def faults(self) -> list[str]:
        """Faults between fields."""
        if self.system == LORA and self.asr_run_id is None:
            return ["asr_run_id is missing: single_lora is as large as a mixture"]
        return []

    def idle(self) -> dict[str, str]:
        """All but the runs it reads, the seed that names it and the audio context it decodes in."""
        used = {"system", "prepare_run_id", "pretrain_run_id", *names_of(SeedOptions, AudioContextOptions, PlotOptions)}
        return dict.fromkeys(names_of(type(self), but=used), "system=zero_shot trains nothing") if self.system == BASE else {}


def run(options: StepOptions) -> str:
    """Make the baseline, log the model and return the run id."""
    with runs.step_run("baseline", options, f"baseline · {options.system} · seed {options.seed}") as step:
        if options.system == BASE:
            _zero_shot(step, options, read_prepared(options.prepare_run_id))
        else:
            _single_lora(step, options)
    return step.run_id


def _zero_shot(step: StepRun, options: StepOptions, prepared: Prepared) -> None:
    base, base_dir = read_base(options.pretrain_run_id, prepared.language)
    adapters = dataclasses.replace(options.part(AdapterOptions), shared_expert=False, shared_r=None, **UNDIVIDED)
    system = _system(options, prepared, base, base_dir, adapters)
    n_total = sum(parameter.numel() for parameter in base.model.parameters())
    log_system(step, system, {"synthetic": bool(prepared.note), "n_trainable": 0, "n_total": n_total}, options)
    step.log_metrics({"n_trainable": 0, "n_total": n_total})
    step.describe(f"## Baseline: the base model as it is{_label(prepared)}\n{n_total:,} parameters, none trained here.")


def _single_lora(step: StepRun, options: StepOptions) -> None:
    mixture = read_record(artifacts.upstream(options.asr_run_id, artifacts.MODEL)).facts
    plan = plan_of(options, 1, options.asr_batch_size, options.expert_learning_rate)
    given = training_inputs(step, options, options.asr_percent, plan)
    base, base_dir = read_base(options.pretrain_run_id, given.prepared.language)
    n_updates = updates_for(mixture["n_utterances_seen"], len(given.train), plan)
    seed_everything(options.seed)
    rank = matched_rank(base.model, options.part(AdapterOptions), mixture["n_trainable"])
    adapters = dataclasses.replace(options.part(AdapterOptions), shared_expert=True, shared_r=rank, **UNDIVIDED)
    system = _system(options, given.prepared, base, base_dir, adapters)
    trained = train_jointly(
        system,
        given.train_set(system.inputs),
        given.dev_set(system.inputs),
        JointOptions(asr_learning_rate=options.expert_learning_rate, asr_patience=n_updates),  # never early: the same utterances
        CurriculumOptions(),
        dataclasses.replace(given.training, plan=dataclasses.replace(plan, max_updates=n_updates)),
    )
    facts = training_facts(system, trained.summary, options.seed)
    log_system(step, system, {"synthetic": bool(given.prepared.note), **facts}, options)
    _report(step, options, given.prepared, trained, facts, mixture, rank)


def updates_for(n_seen: int, n_utterances: int, plan: TrainingPlan) -> int:
    """Updates in which a run over `n_utterances` sees `n_seen`: whole epochs, whose last batch may be short, and the rest."""
    n_epochs, rest = divmod(n_seen, n_utterances)
    return max(1, n_epochs * updates_per_epoch(plan, n_utterances) + (updates_per_epoch(plan, rest) if rest else 0))


def _system(options: StepOptions, prepared: Prepared, base: BaseModel, base_dir: Path, adapters: AdapterOptions) -> WhisperSystem:
    """The base with these adapters, untrained."""
    shape = WhisperShape(0, adapters, options.part(RoutingOptions), options.part(AudioContextOptions))
    record = new_record(options.system, shape, prepared.language, prepared.normaliser, {})
    model = WhisperMoE(base.model, 0, adapters, shape.routing)
    return WhisperSystem(model, base, base_dir, record, {"adapters": options.expert_learning_rate})


def _report(
    step: StepRun,
    options: StepOptions,
    prepared: Prepared,
    trained: TrainedMixture,
    info: Mapping[str, float],
    mixture: Mapping[str, float],
    rank: int,
) -> None:
    history = pd.DataFrame(trained.history)
    step.log_metrics(
        {"dev/wer_kept": trained.wer} | {name: value for name, value in info.items() if name not in ("synthetic", "seed")}
    )
    step.log_table(history, "tables/history.json")
    if len(history) and not options.no_plot:
        panels = {"dev WER": ["wer"], "dev loss": ["loss"]}
        step.log_figure(
            training_curves(history, panels, "One LoRA", best=trained.epoch, note=prepared.note), "plots/training.png"
        )
    step.describe(
        f"## Baseline: one LoRA as large as the mixture{_label(prepared)}\nRank {rank}, {info['n_trainable']:,} trainable "
        f"parameters against the mixture's {mixture['n_trainable']:,}; {info['n_utterances_seen']:,} utterances seen against "
        f"{mixture['n_utterances_seen']:,}, same data, same batch size. {trained.kept} is kept by dev WER, {100 * trained.wer:.1f} % "
        f"(at the start {100 * trained.start_wer:.1f} %)."
    )


def _label(prepared: Prepared) -> str:
    return ", on SYNTHETIC speech" if prepared.note else ""


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
