"""Entry point `ctc`: a Wav2Vec2-BERT CTC over characters, from random weights or from a checkpoint; writes the artifact `model`.

Reads a `prepare` run. Example:
    mlflow run . --env-manager local -e ctc -P prepare_run_id=ID -P ctc_epochs=20
"""

import dataclasses
import unicodedata
from collections.abc import Mapping

import pandas as pd

from analysis.plots.training import training_curves
from moe.audio.augmentation import AugmentationOptions
from moe.options import option
from moe.systems.wav2vec2_ctc.inputs import CTCInputs
from moe.systems.wav2vec2_ctc.options import CTCModelOptions
from moe.systems.wav2vec2_ctc.system import CTCSystem, build
from moe.systems.wav2vec2_ctc.training import CTCTrainingOptions, TrainedCTC, infeasible, train
from moe.systems.wav2vec2_ctc.vocabulary import Vocabulary, character_counts
from moe.training.loop import seed_everything
from steps.inputs.corpus import Prepared, read_prepared
from steps.inputs.training import TrainingInputs, log_system, plan_of, training_facts, training_inputs
from steps.options.step_options import ExportOptions, TrainingStepOptions
from steps.tracking import runs
from steps.tracking.step_run import StepRun

MASKS_ALONE = AugmentationOptions(n_masks=0, gain=0.0)  # the model masks frames; nothing else is changed
CHARACTERS, UNKNOWN, INFEASIBLE = "tables/characters.json", "tables/unknown_characters.json", "tables/infeasible.json"


@dataclasses.dataclass(frozen=True)
class StepOptions(CTCTrainingOptions, CTCModelOptions, ExportOptions, TrainingStepOptions):
    """Train a Wav2Vec2-BERT CTC."""

    max_quarantined: float = option(0.05, "share of the corpus that may be quarantined before the step fails", low=0, high=1)

    def faults(self) -> list[str]:
        """An adapter that is to train and is not there."""
        if self.ctc_train == "adapter" and not self.add_adapter:
            return ["ctc_train=adapter: there is none; set add_adapter=true"]
        return []

    def idle(self) -> dict[str, str]:
        """Updates of what is missing, where everything is."""
        return {"head_updates": "ctc_model=scratch has no tensors to keep"} if self.is_scratch else {}

    @property
    def augmentation(self) -> AugmentationOptions | None:
        """The frames that the model masks, drawn anew in every epoch."""
        return MASKS_ALONE if self.mask_time_prob else None


def run(options: StepOptions) -> str:
    """Train the CTC, log the model and return the run id."""
    with runs.step_run("ctc", options, f"ctc · {options.ctc_model} · seed {options.seed}") as step:
        prepared = read_prepared(options.prepare_run_id)
        vocabulary = Vocabulary.of(prepared.rows("train")["reference"], options.min_character_count)
        _log_characters(step, prepared, vocabulary)
        seed_everything(options.seed)
        system = build(
            options.part(CTCModelOptions), vocabulary, prepared.language, prepared.normaliser, options.ctc_learning_rate
        )
        given = _feasible(step, options, system.inputs)
        train_set, dev_set = given.train_set(system.inputs), given.dev_set(system.inputs)
        trained = train(system, train_set, dev_set, options.part(CTCTrainingOptions), given.training)
        facts = training_facts(system, trained.summaries[-1], options.seed, trained.earlier)
        log_system(step, system, {"synthetic": bool(prepared.note), **facts}, options)
        _report(step, options, given, system, trained, facts)
    return step.run_id


def _feasible(step: StepRun, options: StepOptions, inputs: CTCInputs) -> TrainingInputs:
    """What is trained on, without the utterances whose loss is infinite: they are named in a table.

    Raises:
        ValueError: they are more than `max_quarantined` allows.
    """
    plan = plan_of(options, options.ctc_epochs, options.ctc_batch_size, options.ctc_learning_rate)
    given = training_inputs(step, options, 100.0, plan)
    left_out = infeasible(given.train, inputs)
    step.log_table(left_out, INFEASIBLE)
    step.log_metrics({"n_infeasible": len(left_out)})
    n_all = len(given.train)
    if len(left_out) > options.max_quarantined * n_all or len(left_out) == n_all:
        change = "set add_adapter=false" if options.add_adapter else "set a smaller ctc_frame_ms"
        raise ValueError(
            f"max_quarantined={options.max_quarantined:g}: {len(left_out)} of {n_all} train utterances {left_out['reason'][0]}, "
            f"e.g. {left_out['utterance_id'][:3].tolist()}; {change}, or raise max_quarantined"
        )
    kept = given.train[~given.train["utterance_id"].isin(left_out["utterance_id"])].reset_index(drop=True)
    return dataclasses.replace(given, train=kept)


def _log_characters(step: StepRun, prepared: Prepared, vocabulary: Vocabulary) -> None:
    """Every character of the train split with its count, and the utterances of train and dev that have unknown ones."""
    counts = character_counts(prepared.rows("train")["reference"])
    rows = [(each, unicodedata.name(each, ""), n, each in vocabulary.characters) for each, n in sorted(counts.items())]
    step.log_table(pd.DataFrame(rows, columns=["character", "name", "count", "known"]), CHARACTERS)
    unknown = [
        (split, row.utterance_id, "".join(strange))
        for split in ("train", "dev")
        for row in prepared.rows(split).itertuples()
        if (strange := vocabulary.unknown(row.reference))
    ]
    step.log_table(pd.DataFrame(unknown, columns=["split", "utterance_id", "characters"]), UNKNOWN)


def _report(
    step: StepRun, options: StepOptions, given: TrainingInputs, system: CTCSystem, trained: TrainedCTC, facts: Mapping[str, float]
) -> None:
    rate, note, history = options.selection, given.prepared.note, pd.DataFrame(trained.history)
    kept = {} if trained.epoch is None else {"best_epoch": trained.epoch}
    numbers = {name: value for name, value in facts.items() if name != "seed"}
    trains = {f"n_trainable/{group.name}": group.n_parameters for group in system.parameter_groups()}
    step.log_metrics({f"dev/{rate}_kept": trained.rate, **kept, **numbers, **trains})
    step.log_table(history, "tables/history.json")
    if not options.no_plot:
        panels = {f"dev {rate.upper()}": [rate], "dev loss": ["loss"], "blank outputs": ["blank_share"]}
        step.log_figure(
            training_curves(history, panels, system.record.title, best=trained.epoch, note=note), "plots/training.png"
        )
    step.describe(_description(options, given, system, trained, facts))


def _description(
    options: StepOptions, given: TrainingInputs, system: CTCSystem, trained: TrainedCTC, facts: Mapping[str, float]
) -> str:
    rate, missing = options.selection.upper(), ""
    if not options.is_scratch:
        missing = f" The checkpoint lacked {', '.join(system.missing)}."
    kept = "What training began with" if trained.epoch is None else f"Epoch {trained.epoch}"
    return (
        f"## Wav2Vec2-BERT CTC{', on SYNTHETIC speech' if given.prepared.note else ''}\n`ctc_model={options.ctc_model}`, "
        f"{len(system.vocabulary)} tokens, an output every {1000 * system.module.frames.output_s:g} ms; {facts['n_trainable']:,} trainable of "
        f"{facts['n_total']:,} parameters.{missing} {facts['n_utterances_seen']:,} utterances seen. {kept} is kept by dev {rate}, "
        f"{100 * trained.rate:.1f} % (at the start {100 * trained.start_rate:.1f} %)."
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
