"""Entry point `baseline`: what the mixture has to beat. Writes the artifact `model`, in the mixture's own format.

`zero_shot` is the base model as it is. `single_lora` is one LoRA with as many trainable parameters as a mixture (`asr_run_id`), trained
on the same data for the same number of utterances. Example:
    mlflow run . --env-manager local -e baseline -P system=single_lora -P prepare_run_id=ID -P pretrain_run_id=ID -P asr_run_id=ID
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.report import percent
from moe.experts.joint_training import JointOptions, TrainedMixture, train_jointly
from moe.experts.routed_lora import AdapterOptions, matched_rank
from moe.experts.stacking import TrainingsOptions, adapter_tensors, stack, stacked_options
from moe.options import names_of, option
from moe.recognition.decoding import decode
from moe.routing.curriculum import CurriculumOptions
from moe.routing.options import RoutingOptions
from moe.system import DecodingOptions, read_record
from moe.systems.whisper.base_model import BaseModel
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.folder import BASE, LORA, WhisperShape, new_record
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.system import WhisperSystem
from moe.text.error_rates import word_error_rate
from moe.training.loop import Training, seed_everything, together
from moe.training.plan import TrainingPlan, updates_per_epoch
from steps.inputs.corpus import Prepared, read_prepared
from steps.inputs.training import TrainingInputs, log_system, plan_of, read_base, training_facts, training_inputs
from steps.options.step_options import ExportOptions, MixtureStepOptions, PlotOptions, SeedOptions
from steps.reports.training import log_curves, log_kept
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun

UNDIVIDED: dict[str, Any] = {"adapter_rank": None, "shared_share": AdapterOptions.shared_share}  # one adapter has no shares


@dataclasses.dataclass(frozen=True)
class StepOptions(ExportOptions, TrainingsOptions, MixtureStepOptions):
    """Make a baseline."""

    system: str = option(BASE, "which baseline", choices=(BASE, LORA))
    asr_run_id: str | None = option(None, "mixture whose trainable parameters and utterances single_lora gets")
    lora_epochs: float | None = option(
        None, "without a mixture: passes of single_lora over the training subset, in whole or in part, at adapter_rank", above=0
    )
    asr_batch_size: int = option(16, "utterances per batch", low=1)
    expert_learning_rate: float = option(1e-3, "learning rate of all adapters", above=0)

    def faults(self) -> list[str]:
        """Faults between fields."""
        own = [f"{name}={getattr(self, name)}" for name in ("adapter_rank", "lora_epochs") if getattr(self, name) is not None]
        if self.system == LORA and self.asr_run_id is None and len(own) < 2:
            return ["asr_run_id is missing: single_lora is as large as a mixture; or set adapter_rank and lora_epochs"]
        if self.asr_run_id is not None and self.lora_epochs is not None:
            return [f"lora_epochs={self.lora_epochs:g}: asr_run_id says how many utterances are seen"]
        return []

    def idle(self) -> dict[str, str]:
        """Of zero_shot all but the runs it reads, the seed that names it and the audio context; of single_lora what divides a rank or routes."""
        used = {"system", "prepare_run_id", "pretrain_run_id", *names_of(SeedOptions, AudioContextOptions, PlotOptions)}
        if self.system == BASE:
            return dict.fromkeys(names_of(type(self), but=used), "system=zero_shot trains nothing")
        found = dict.fromkeys(
            (*names_of(RoutingOptions), "shared_expert", "shared_r", "shared_share"), "system=single_lora has one adapter"
        )
        return found if self.asr_run_id is None else found | {"adapter_rank": "asr_run_id says how large single_lora is"}


def run(options: StepOptions) -> str:
    """Make the baseline, log the model and return the run id."""
    return runs.in_run("baseline", options, _work, f"baseline · {options.system} · seed {options.seed}")


def _work(step: StepRun, options: StepOptions) -> None:
    if options.system == BASE:
        _zero_shot(step, options, read_prepared(options.prepare_run_id))
    else:
        _single_lora(step, options)


def _zero_shot(step: StepRun, options: StepOptions, prepared: Prepared) -> None:
    base, base_dir = read_base(options.pretrain_run_id, prepared.language)
    adapters = dataclasses.replace(options.part(AdapterOptions), shared_expert=False, shared_r=None, **UNDIVIDED)
    system = _system(options, prepared, base, base_dir, adapters)
    n_total = sum(parameter.numel() for parameter in base.model.parameters())
    log_system(step, system, {"synthetic": bool(prepared.note), "n_trainable": 0, "n_total": n_total})
    step.log_metrics({"n_trainable": 0, "n_total": n_total})
    step.add_to_name(prepared.name)
    step.describe(f"The base model as it is{_label(prepared)}: {n_total:,} parameters, none trained here.")


def _single_lora(step: StepRun, options: StepOptions) -> None:
    plan = plan_of(options, 1, options.asr_batch_size, options.expert_learning_rate)
    given = training_inputs(step, options, options.asr_percent, plan)
    budget = _budget(options, given)
    trained, members = [], []
    for number, seed in enumerate(options.seeds(options.seed)):
        seed_everything(seed)
        system = _new_lora(options, given.prepared, budget.adapters)
        trained.append(_train(system, options, given, budget.n_updates, given.training.of(number, seed)))
        members.append(adapter_tensors(system.model.base))
    if options.trainings > 1:
        system = _new_lora(options, given.prepared, stacked_options(budget.adapters, options.trainings))
        stack(system.model.base, members)
    kept = _together(system, given, trained)
    facts = training_facts(system, kept.summary, options.seed)
    log_system(step, system, {"synthetic": bool(given.prepared.note), **facts}, options)
    _report(step, options, given.prepared, kept, facts, budget, system)


@dataclasses.dataclass(frozen=True)
class Budget:
    """What each training of one LoRA gets: its shape and its updates; in words, where that is from."""

    adapters: AdapterOptions
    n_updates: int
    said: str


def _budget(options: StepOptions, given: TrainingInputs) -> Budget:
    """A mixture's size and utterances, or those of the options; divided among the trainings."""
    n, plan = options.trainings, given.training.plan
    if options.asr_run_id is None:
        rank, n_seen = options.adapter_rank or 1, round((options.lora_epochs or 1) * len(given.train))
        said = f"Asked for: rank {rank}, {options.lora_epochs:g} epochs of {len(given.train)} utterances."
    else:
        mixture = read_record(artifacts.upstream(options.asr_run_id, artifacts.MODEL)).facts
        base, _ = read_base(options.pretrain_run_id, given.prepared.language)
        rank, n_seen = (
            matched_rank(base.model, options.part(AdapterOptions), mixture["n_trainable"]),
            mixture["n_utterances_seen"],
        )
        said = f"As large as the mixture: {mixture['n_trainable']:,} trainable parameters, {n_seen:,} utterances seen, same data and batches."
    adapters = dataclasses.replace(
        options.part(AdapterOptions), shared_expert=True, shared_r=max(1, round(rank / n)), **UNDIVIDED
    )
    return Budget(adapters, updates_for(round(n_seen / n), len(given.train), plan), said)


def _train(
    system: WhisperSystem, options: StepOptions, given: TrainingInputs, n_updates: int, training: Training
) -> TrainedMixture:
    plan = dataclasses.replace(training.plan, max_updates=n_updates)
    return train_jointly(
        system,
        given.train_set(system.inputs),
        given.dev_set(system.inputs),
        JointOptions(asr_learning_rate=options.expert_learning_rate, asr_patience=n_updates),  # never early: the same utterances
        CurriculumOptions(),
        dataclasses.replace(training, plan=plan),
    )


def _together(system: WhisperSystem, given: TrainingInputs, trained: Sequence[TrainedMixture]) -> TrainedMixture:
    """What several trainings did, as one, and the WER of their stack on dev."""
    if len(trained) == 1:
        return trained[0]
    system.model.use_precision(given.training.plan.precision)
    dev_set = given.dev_set(system.inputs)
    texts = [each.text for each in decode(system, dev_set, DecodingOptions())]
    history = tuple({"training": number, **row} for number, each in enumerate(trained) for row in each.history)
    wer, summary = word_error_rate(dev_set.references, texts), together([each.summary for each in trained])
    return dataclasses.replace(trained[0], summary=summary, epoch=None, rate=wer, history=history, loads=())


def updates_for(n_seen: int, n_utterances: int, plan: TrainingPlan) -> int:
    """Updates in which a run over `n_utterances` sees `n_seen`: whole epochs, whose last batch may be short, and the rest."""
    n_epochs, rest = divmod(n_seen, n_utterances)
    return max(1, n_epochs * updates_per_epoch(plan, n_utterances) + (updates_per_epoch(plan, rest) if rest else 0))


def _new_lora(options: StepOptions, prepared: Prepared, adapters: AdapterOptions) -> WhisperSystem:
    """One LoRA that is not trained."""
    return _system(options, prepared, *read_base(options.pretrain_run_id, prepared.language), adapters)


def _system(options: StepOptions, prepared: Prepared, base: BaseModel, base_dir: Path, adapters: AdapterOptions) -> WhisperSystem:
    """The base with these adapters, untrained."""
    shape = WhisperShape(0, adapters, options.part(RoutingOptions), options.part(AudioContextOptions))
    record = new_record(options.system, shape, prepared.language, prepared.label_normaliser, {})
    model = WhisperMoE(base.model, 0, adapters, shape.routing)
    return WhisperSystem(model, base, base_dir, record, {"adapters": options.expert_learning_rate})


def _report(
    step: StepRun,
    options: StepOptions,
    prepared: Prepared,
    trained: TrainedMixture,
    info: Mapping[str, float],
    budget: Budget,
    system: WhisperSystem,
) -> None:
    history = pd.DataFrame(trained.history)
    one = options.trainings == 1
    log_kept(step, "wer", trained, system, info)
    step.log_table(history, "tables/history.json")
    if not options.no_plot and one:
        log_curves(step, "wer", trained, {"dev WER": ["wer"], "dev loss": ["loss"]}, system, prepared.note)
    step.add_to_name(prepared.name, f"dev WER {percent(trained.rate)}")
    step.describe(
        f"Dev WER {100 * trained.rate:.1f} %, {100 * trained.start_rate:.1f} % at the start{_label(prepared)}.\n\n"
        f"One LoRA of rank {budget.adapters.shared_r}"
        f"{'' if one else f', the mean of {options.trainings} trainings'}; {info['n_trainable']:,} trainable parameters, "
        f"{info['n_utterances_seen']:,} utterances seen. {budget.said} {trained.kept if one else 'An epoch of each'} is kept by dev WER."
    )


def _label(prepared: Prepared) -> str:
    return ", on SYNTHETIC speech" if prepared.note else ""


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
