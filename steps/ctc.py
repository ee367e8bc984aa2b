"""Entry point `ctc`: a Wav2Vec2-BERT CTC over characters, from random weights or from a checkpoint; writes the artifact `model`.

Reads a `prepare` run and, for experts, a `cluster` run. Examples:
    mlflow run . --env-manager local -e ctc -P prepare_run_id=ID -P ctc_epochs=20
    mlflow run . --env-manager local -e ctc -P prepare_run_id=ID -P cluster_run_id=ID -P ctc_train=lora -P ctc_experts=6
"""

import dataclasses
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.report import percent
from moe.audio.augmentation import AugmentationOptions
from moe.audio.sampling import SAMPLE_RATE
from moe.experts.joint_training import experts_faults
from moe.experts.routed_lora import LoraOptions
from moe.files import write_json
from moe.options import names_of, option
from moe.routing.curriculum import CurriculumOptions
from moe.routing.losses import BalanceOptions
from moe.systems.wav2vec2_ctc.building import LearningRates, build
from moe.systems.wav2vec2_ctc.folder import halve
from moe.systems.wav2vec2_ctc.frames import Frames
from moe.systems.wav2vec2_ctc.inputs import CTCInputs
from moe.systems.wav2vec2_ctc.language_model import LanguageModel
from moe.systems.wav2vec2_ctc.language_model_choice import chosen
from moe.systems.wav2vec2_ctc.mixture_system import CTCMixtureSystem
from moe.systems.wav2vec2_ctc.options import SCRATCH, SHIPPED, CTCExpertOptions, CTCModelOptions
from moe.systems.wav2vec2_ctc.system import CTCSystem
from moe.systems.wav2vec2_ctc.training import CTCTrainingOptions, TrainedCTC, parts_of_batch, train
from moe.systems.wav2vec2_ctc.vocabulary import Vocabulary, character_counts
from moe.training.dataset import SpeechDataset
from moe.training.loop import seed_everything
from steps.inputs.corpus import Prepared, read_prepared
from steps.inputs.ctc_routing import RoutingStart, read_clusters, start_routing
from steps.inputs.feasible import feasible
from steps.inputs.training import TrainingInputs, log_system, plan_of, training_facts, training_inputs
from steps.options.step_options import AudioOptions, ExportOptions, TrainingStepOptions
from steps.reports.mixture import log_experts, log_routing_by_epoch, routed_rows
from steps.reports.training import log_curves, log_kept
from steps.tracking import runs
from steps.tracking.step_run import StepRun

MASKS_ALONE = AugmentationOptions(n_masks=0, gain=0.0)  # the model masks frames; nothing else is changed
RATES, LORA_RATE, CHECKPOINT_RATE = {SCRATCH: 2e-3, SHIPPED: 5e-4}, 2e-3, 3e-5  # where none is asked for
CHARACTERS, UNKNOWN = "tables/characters.json", "tables/unknown_characters.json"


@dataclasses.dataclass(frozen=True)
class StepOptions(CTCTrainingOptions, CTCModelOptions, CTCExpertOptions, ExportOptions, AudioOptions, TrainingStepOptions):
    """Train a Wav2Vec2-BERT CTC."""

    cluster_run_id: str | None = option(
        None, "run that made the clusters of ctc_experts, of Whisper's embeddings (none: one expert)"
    )
    max_quarantined: float = option(0.05, "share of the corpus that may be quarantined before the step fails", low=0, high=1)

    def faults(self) -> list[str]:
        """What is to train and is not there, and experts that nothing chooses among."""
        found = []
        if self.ctc_train == "adapter" and not self.add_adapter:
            found.append("ctc_train=adapter: there is none; set add_adapter=true")
        if self.ctc_train != "all" and self.ctc_model == SCRATCH:
            found.append(f"ctc_train={self.ctc_train}: ctc_model={SCRATCH} has nothing to keep; set ctc_train=all")
        if self.ctc_train == "lora" and self.ctc_experts == 1 and not self.shared_expert:
            found.append("ctc_train=lora: shared_expert=false leaves ctc_experts=1 no LoRA")
        if self.adapter_rank is not None and self.ctc_experts == 1:
            found.append(f"adapter_rank={self.adapter_rank}: ctc_experts=1 has one rank; set lora_r")
        return found + (self._expert_faults() if self.ctc_experts > 1 else [])

    def idle(self) -> dict[str, str]:
        """Updates of what is missing, where everything is; LoRA, experts and their clusters, where there are none."""
        found = {"head_updates": f"ctc_model={SCRATCH} has no tensors to keep"} if self.ctc_model == SCRATCH else {}
        if self.ctc_train != "lora":
            found |= dict.fromkeys([*names_of(LoraOptions), "ctc_lora_targets"], f"ctc_train={self.ctc_train} has no LoRA")
        if self.ctc_experts == 1:
            found |= dict.fromkeys(["cluster_run_id", "gate_learning_rate"], "ctc_experts=1 leaves nothing to route")
        elif self.top_k == 1 and not self.part(BalanceOptions).teaches_gate:
            found["gate_learning_rate"] = "top_k=1 gives the gate no gradient, and no balance is asked for"
        return found

    def _expert_faults(self) -> list[str]:
        asked = f"ctc_experts={self.ctc_experts}"
        found = experts_faults(self.ctc_experts, self.routing, CurriculumOptions(), self.part(BalanceOptions))
        if self.ctc_train != "lora":
            found.append(f"{asked}: experts are LoRA; set ctc_train=lora")
        if self.cluster_run_id is None:
            found.append(
                f"{asked}: needs as many clusters; set cluster_run_id, or name whisper_moe too among the systems of main"
            )
        if self.top_k > self.ctc_experts:
            found.append(f"top_k={self.top_k}: {asked} has no more to mix")
        return found

    @property
    def learning_rate(self) -> float:
        """The learning rate in use."""
        usual = RATES.get(str(self.ctc_model), CHECKPOINT_RATE)
        return self.ctc_learning_rate or (LORA_RATE if self.ctc_train == "lora" else usual)

    @property
    def augmentation(self) -> AugmentationOptions | None:
        """The frames that the model masks, drawn anew in every epoch."""
        return MASKS_ALONE if self.mask_time_prob or self.mask_feature_prob else None


def run(options: StepOptions) -> str:
    """Train the CTC, log the model and return the run id."""
    return runs.in_run("ctc", options, _work, f"ctc · {options.ctc_train} · seed {options.seed}")


def _work(step: StepRun, options: StepOptions) -> None:
    prepared = read_prepared(options.prepare_run_id)
    options = resolved(options, prepared)
    labels = read_clusters(str(options.cluster_run_id), options.ctc_experts) if options.ctc_experts > 1 else None
    vocabulary = Vocabulary.of(prepared.rows("train")["reference"], options.min_character_count)
    _log_characters(step, prepared, vocabulary)
    seed_everything(options.seed)
    experts = options.part(CTCExpertOptions) if options.ctc_train == "lora" else None
    rates = LearningRates(options.learning_rate, options.gate_learning_rate)
    system = build(options.part(CTCModelOptions), vocabulary, prepared.language, prepared.label_normaliser, rates, experts)
    given = _feasible(step, options, system.inputs)
    start = None
    if labels is not None and isinstance(system, CTCMixtureSystem):
        start = start_routing(system, given, labels, options.seed)
    train_set = given.train_set(system.inputs, start.extras(options.alignment_coefficient > 0) if start else None)
    dev_set = given.dev_set(system.inputs, {"embedding": start.dev} if start else None)
    trained = train(system, train_set, dev_set, options.part(CTCTrainingOptions), given.training)
    if options.ctc_lm_order:
        _add_language_model(step, options, given, system, dev_set)
    facts = training_facts(system, trained.summary, options.seed, trained.earlier)
    log_system(step, system, {"synthetic": bool(prepared.note), **facts}, options)
    if options.export_dir:
        _finish_export(Path(options.export_dir), options, system, trained)
    _report(step, options, given, system, trained, facts)
    if start is not None and isinstance(system, CTCMixtureSystem):
        _report_routing(step, given, system, trained, start, options.share_audio)


def resolved(options: StepOptions, prepared: Prepared) -> StepOptions:
    """The options with the model and the learning rate that stand for `none` on this corpus."""
    return dataclasses.replace(options, ctc_model=options.chosen_model(bool(prepared.note) and prepared.language == "en"))


def _feasible(step: StepRun, options: StepOptions, inputs: CTCInputs) -> TrainingInputs:
    """What is trained on, without the utterances whose loss is infinite, in batches that memory holds; dev is decoded whole."""
    plan = plan_of(options, options.ctc_epochs, options.ctc_batch_size, options.learning_rate)
    whole = training_inputs(step, options, 100.0, plan)
    given = feasible(step, whole, inputs, options.max_quarantined, _more_outputs(options, inputs.frames), ["train"])
    most_frames = max(inputs.length(round(seconds * SAMPLE_RATE)) for seconds in given.train["duration_s"])
    n_parts = parts_of_batch(options.part(CTCTrainingOptions), most_frames, options.num_processes)
    plan = dataclasses.replace(plan, n_parts=n_parts)
    return dataclasses.replace(given, training=dataclasses.replace(given.training, plan=plan))


def _more_outputs(options: StepOptions, frames: Frames) -> str | None:
    """What to change for more outputs a second; None where nothing gives more. A checkpoint's frames are as long as they are."""
    if options.add_adapter:
        return "set add_adapter=false" + (" and another ctc_train" if options.ctc_train == "adapter" else "")
    shorter = f"ctc_frame_ms below {1000 * frames.output_s:g}" if frames.stack > 1 else None
    if options.ctc_model == SCRATCH:
        return f"set {shorter}" if shorter else None
    other = f"name another ctc_model than {options.ctc_model}, with shorter frames"
    return f"{other}, or set ctc_model={SCRATCH} and {shorter}" if shorter and options.ctc_train == "all" else other


def _finish_export(folder: Path, options: StepOptions, system: CTCSystem, trained: TrainedCTC) -> None:
    """Half the size, and how it was made beside it: what a shipped model needs."""
    halve(folder)
    kept = {name: text for name, text in options.as_parameters().items() if not name.endswith("_run_id") and name != "export_dir"}
    record = {**system.record.facts, f"dev_{options.selection}": trained.rate, "options": kept}
    write_json(folder / "training.json", record)


def _add_language_model(
    step: StepRun, options: StepOptions, given: TrainingInputs, system: CTCSystem, dev_set: SpeechDataset
) -> None:
    """A language model of the train transcripts, weighed on dev."""
    texts = [system.vocabulary.encode(reference) for reference in given.train["reference"]]
    model = LanguageModel.of(texts, options.ctc_lm_order, len(system.vocabulary))
    system.language_model, tried = chosen(system, dev_set, model, options.selection, options.lm_weight, options.lm_score)
    step.log_table(tried, "tables/language_model.json")
    best = {"lm_weight": system.language_model.weight, "lm_score": system.language_model.score}
    step.log_metrics({**best, f"dev/{options.selection}_beams": float(tried[options.selection].min())})


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
    log_kept(step, rate, trained, system, facts)
    step.log_table(history, "tables/history.json")
    if not options.no_plot:
        panels = {f"dev {rate.upper()}": [rate], "dev loss": ["loss"], "blank outputs": ["blank_share"]}
        log_curves(step, rate, trained, panels, system, note)
    step.add_to_name(given.prepared.name, f"dev {rate.upper()} {percent(trained.rate)}")
    step.describe(_description(options, given, system, trained, facts))


def _report_routing(
    step: StepRun, given: TrainingInputs, system: CTCMixtureSystem, trained: TrainedCTC, start: RoutingStart, share_audio: bool
) -> None:
    """Load over the epochs, and what each expert is for on the dev utterances that are scored."""
    if step.plots:
        log_routing_by_epoch(step, pd.DataFrame(trained.history), given.prepared.note)
    log_experts(
        step, routed_rows(system.gate, given.dev, start.dev, system.top_k, given.prepared.root), given.prepared, share_audio
    )


def _description(
    options: StepOptions, given: TrainingInputs, system: CTCSystem, trained: TrainedCTC, facts: Mapping[str, float]
) -> str:
    rate, missing = options.selection.upper(), ""
    if options.ctc_model != SCRATCH and system.missing:
        missing = f" The checkpoint lacked {', '.join(system.missing)}."
    return (
        f"Dev {rate} {100 * trained.rate:.1f} %, {100 * trained.start_rate:.1f} % at the start"
        f"{', SYNTHETIC speech' if given.prepared.note else ''}.\n\nWav2Vec2-BERT CTC: `ctc_model={options.ctc_model}`, "
        f"{len(system.vocabulary)} tokens, an output every {1000 * system.module.frames.output_s:g} ms; {facts['n_trainable']:,} trainable of "
        f"{facts['n_total']:,} parameters.{missing} {facts['n_utterances_seen']:,} utterances seen. {trained.kept} is kept by dev {rate}."
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
