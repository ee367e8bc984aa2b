"""Entry point `pretrain`: the base model. Reads a `prepare` run and a checkpoint; writes the artifact `base`.

The base is taken, `whisper_model` (a complete model: nothing is trained), or made, `init_from` (a partial checkpoint: what is missing
is trained, then all; or `scratch`). Example:
    mlflow run . --env-manager local -e pretrain -P prepare_run_id=ID -P init_from=scratch -P tokenizer=bpe
"""

import dataclasses
import tempfile
from pathlib import Path

import pandas as pd

from analysis.plots.training import training_curves
from moe.audio.augmentation import AugmentationOptions
from moe.files import file_digest, folder_digest, write_json
from moe.options import Options, listed, names_of, option
from moe.systems.whisper.adapted_base import model_below
from moe.systems.whisper.base_model import (
    BaseModel,
    complete_base,
    load_base,
    new_base,
    read_training_record,
    save_base,
    use_language,
)
from moe.systems.whisper.base_source import SCRATCH, SmallShape, is_complete, partial_fault, resolve, whole_fault
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper.phonemes import align
from moe.systems.whisper.pretraining import Pretrained, PretrainingOptions, pretrain, pretraining_plan
from moe.systems.whisper.tokens import CHECKPOINT, TOKENIZERS, train_tokenizer
from moe.systems.whisper_moe.zero_shot import base_wer
from moe.training import processes
from moe.training.checkpoints import CheckpointOptions
from moe.training.dataset import SpeechDataset
from moe.training.loop import Training, seed_everything, together
from moe.training.plan import ComputeOptions
from moe.training.precision import precision
from moe.training.sharding import ShardingOptions
from steps.inputs.corpus import Prepared, read_prepared
from steps.inputs.training import checkpoints_of, compute_arguments, reporter
from steps.options.step_options import PlotOptions, ReportOptions, model_folder_faults
from steps.registry.exports import copy_out
from steps.tracking import artifacts, runs
from steps.tracking.artifacts import NONE_GIVEN
from steps.tracking.step_run import StepRun

ALIGNMENTS = "alignments.parquet"
SHIPPED = "base/synthetic-en"
LICENCE = "LICENSE"


@dataclasses.dataclass(frozen=True)
class BaseOptions(Options):
    """Which base model."""

    group = "pretrain"

    whisper_model: str = option(
        SHIPPED, "the base model as it is: v2, v3, another hub name, or the folder of a complete model", common=True
    )
    init_from: str | None = option(
        None, "make the base instead, from a checkpoint folder, whole or partial, a hub name, or scratch", common=True
    )

    @property
    def source(self) -> str:
        """What the base comes from."""
        return self.init_from or self.whisper_model

    @property
    def is_path(self) -> bool:
        """Whether the source looks like a folder of this machine rather than a name on a hub."""
        return self.source.startswith((".", "/", "~")) or self.source == SHIPPED

    @property
    def is_taken(self) -> bool:
        """Whether the base is complete and nothing of it is trained."""
        return self.source != SCRATCH and is_complete(self.source)


@dataclasses.dataclass(frozen=True)
class StepOptions(
    BaseOptions,
    PretrainingOptions,
    AudioContextOptions,
    AugmentationOptions,
    ComputeOptions,
    ShardingOptions,
    CheckpointOptions,
    ReportOptions,
    PlotOptions,
):
    """Make or take the base model."""

    prepare_run_id: str = option("none", "run whose train split the base is trained on")
    tokenizer: str = option(
        CHECKPOINT, "the checkpoint's own, characters, or a byte-level BPE of the train split", choices=TOKENIZERS
    )
    pretrain_etiologies: str = option(
        "all", "only utterances of these etiologies train the base and show its progress, comma list"
    )
    n_merges: int = option(150, "merges of tokenizer=bpe", low=0)
    export_dir: str | None = option(None, "also write the base model to this folder")
    seed: int = option(42, "seed of everything drawn", low=0, common=True)

    not_in_fingerprint = frozenset({"num_workers"})

    def faults(self) -> list[str]:
        """What cannot be trained as asked."""
        found = model_folder_faults("export_dir", self.export_dir)
        if self.init_from is not None and self.whisper_model != SHIPPED:
            found.append(
                f"whisper_model={self.whisper_model} and init_from={self.init_from}: the base is taken or made, not both"
            )
        if self.init_from == SCRATCH and self.tokenizer == CHECKPOINT:
            found.append("tokenizer=checkpoint: init_from=scratch has no tokenizer of its own; use characters or bpe")
        if self.init_from == SCRATCH and not self.pretrain_updates:
            found.append("pretrain_updates=0: init_from=scratch has nothing but what is trained; at least 1")
        if self.init_from is not None and not self.is_taken and self.prepare_run_id in NONE_GIVEN:
            found.append(f"prepare_run_id is missing: init_from={self.init_from} is trained on its train split")
        return found + self._folder_faults()

    def _folder_faults(self) -> list[str]:
        name, folder = "init_from" if self.init_from else "whisper_model", Path(self.source)
        if self.is_path and not folder.is_dir():
            return [f"{name}={self.source}: no such folder"]
        if is_complete(self.source) or self.source == SCRATCH:
            return []
        if self.init_from is None:
            return [f"whisper_model={self.source}: {whole_fault(self.source)}"]
        fault = partial_fault(self.source, self.tokenizer != CHECKPOINT)
        found = [f"init_from={self.source}: {fault}"] if fault else []
        if not (self.pretrain_updates or self.missing_updates):
            found.append(f"pretrain_updates=0 and missing_updates=0: {self.source} is partial, what it lacks must be trained")
        return found

    def idle(self) -> dict[str, str]:
        """What only a base that is trained would use."""
        names = names_of(*(part for part in StepOptions.__bases__ if part not in (BaseOptions, PlotOptions)))
        names += ["tokenizer", "pretrain_etiologies", "n_merges"]
        return dict.fromkeys(names, f"the base {self.source} is complete and taken as it is") if self.is_taken else {}

    def data_digests(self) -> dict[str, str]:
        """Content of a local checkpoint, and of a local model that it is an adapter of."""
        folder = Path(self.source)
        if not folder.is_dir():
            return {}
        below = Path(model_below(self.source) or folder)
        digests = {"base": folder_digest(folder)}
        return digests | {"below": folder_digest(below)} if below.is_dir() and below != folder else digests


def run(options: StepOptions) -> str:
    """Make the base model, log it and return the run id."""
    name = f"pretrain · {'from scratch' if options.source == SCRATCH else Path(options.source).name}"
    return runs.in_run("pretrain", options, _work, name)


def _work(step: StepRun, options: StepOptions) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / artifacts.BASE
        if options.is_taken:
            _take(step, options, folder)
        else:
            _train(step, options, read_prepared(options.prepare_run_id, options), folder)
        step.log_folder(folder, artifacts.BASE)
        copy_out(folder, options.export_dir)


def _take(step: StepRun, options: StepOptions, folder: Path) -> None:
    """A complete checkpoint: there is nothing to train."""
    base = load_base(options.source)
    if options.prepare_run_id not in NONE_GIVEN:
        use_language(base, read_prepared(options.prepare_run_id).language)
    save_base(base, folder)
    record = read_training_record(Path(resolve(options.source)))
    write_json(folder / "training.json", record or {"taken_from": options.source})
    licence = Path(options.source) / LICENCE
    if licence.exists():
        (folder / LICENCE).write_bytes(licence.read_bytes())
    n_parameters = sum(parameter.numel() for parameter in base.model.parameters())
    step.log_metrics({"n_total": n_parameters, "n_trained": 0})
    synthetic = " It was trained on SYNTHETIC speech only." if record.get("synthetic") else ""
    step.describe(
        f"`{options.source}` is a complete checkpoint of {n_parameters / 1e6:.2f} M parameters: nothing was trained.{synthetic}"
    )


def _train(step: StepRun, options: StepOptions, prepared: Prepared, folder: Path) -> None:
    seed_everything(options.seed)
    base = _initial(options, prepared)
    train, dev = _chosen(prepared, "train", options), _held_out(prepared, options)
    prepared.refuse_missing(train, dev, shards_together=options.shards_together)
    prepared.log_input(step, train, "training")
    prepared.log_input(step, dev, "validation")
    extras, n_phonemes = _phonemes(prepared, train, base, options)
    context, root = options.part(AudioContextOptions), prepared.root
    inputs = WhisperInputs(base.processor, context, base.model.config.max_target_positions)
    memory = options.example_memory
    train_set = SpeechDataset(train, root, inputs, options.part(AugmentationOptions), options.seed, extras, True, memory)
    dev_set = SpeechDataset(dev, root, inputs, memory=memory)
    plan = pretraining_plan(options, options.seed, options.num_workers, precision(options))
    given = compute_arguments(options) | {"strategy": options.strategy}
    plan = dataclasses.replace(plan, accumulation=options.gradient_accumulation_steps, **given)
    training = Training(plan, reporter(step, options), checkpoints_of(step, options), options.eval_every_n_epochs)
    pretrained = pretrain(base, train_set, lambda: base_wer(base, dev_set, context), options, training, n_phonemes)
    if processes.number() == 0:  # transformers writes the weights in the first process alone
        save_base(pretrained.base, folder)
        _record(step, options, prepared, pretrained, folder)


def _initial(options: StepOptions, prepared: Prepared) -> BaseModel:
    tokenizer = None
    if options.tokenizer != CHECKPOINT:
        texts = prepared.rows("train")["reference"]
        tokenizer = train_tokenizer(texts, options.tokenizer, options.n_merges, prepared.language)
    if options.source == SCRATCH and tokenizer is not None:
        return new_base(tokenizer, SmallShape(), prepared.language)
    return use_language(complete_base(Path(options.source), tokenizer, prepared.language), prepared.language)


def _chosen(prepared: Prepared, split: str, options: StepOptions) -> pd.DataFrame:
    """The utterances of a split that the base may see.

    Raises:
        ValueError: an etiology that the split has not got.
    """
    rows = prepared.rows(split)
    if options.pretrain_etiologies == "all":
        return rows
    wanted = set(listed(options.pretrain_etiologies))
    unknown = sorted(wanted - set(rows["etiology"]))
    if unknown:
        raise ValueError(
            f"pretrain_etiologies={','.join(unknown)}: not in the {split} split, which has {', '.join(sorted(set(rows['etiology'])))}"
        )
    return rows[rows["etiology"].isin(wanted)].reset_index(drop=True)


def _held_out(prepared: Prepared, options: StepOptions) -> pd.DataFrame:
    """Dev utterances that show progress; never the test split."""
    dev = _chosen(prepared, "dev", options)
    return dev.sample(min(len(dev), options.pretrain_dev_utterances), random_state=options.seed).sort_values(
        "utterance_id", ignore_index=True
    )


def _phonemes(prepared: Prepared, train: pd.DataFrame, base: BaseModel, options: StepOptions) -> tuple[dict, int]:
    path = Path(str(prepared.root)) / ALIGNMENTS
    if not path.exists() or not (options.phoneme_weight or options.phoneme_weight_end):
        return {}, 0
    if options.speeds:
        raise ValueError(
            f"speed_factors={options.speed_factors}: the corpus has phoneme alignments, which fit no other speed; "
            f"phoneme_weight=0 and phoneme_weight_end=0 leave them unused"
        )
    alignments = align(train, pd.read_parquet(path), base.processor)
    return {"phonemes": alignments.frames}, len(alignments.phonemes)


def _record(step: StepRun, options: StepOptions, prepared: Prepared, pretrained: Pretrained, folder: Path) -> None:
    wer, seconds = pretrained.history[-1]["wer"], sum(summary.seconds for summary in pretrained.summaries)
    trained = sum(parameter.numel() for parameter in pretrained.base.model.parameters() if parameter.requires_grad)
    record = {
        "synthetic": bool(prepared.note),
        "init_from": options.source,
        "missing": list(pretrained.base.missing) if options.source != SCRATCH else "everything",
        "dev_wer": wer,
        "n_train_utterances": len(_chosen(prepared, "train", options)),
        "n_updates": sum(summary.n_updates for summary in pretrained.summaries),
        "seconds": round(seconds, 1),
        "options": {name: text for name, text in options.as_parameters().items() if name not in ("prepare_run_id", "export_dir")},
        "weights_sha256": file_digest(folder / "model.safetensors"),
    }
    write_json(folder / "training.json", record)
    (folder / LICENCE).write_text(
        Path(LICENCE).read_text(encoding="utf-8") if prepared.note else f"Derived from {options.source}\n"
    )
    history = pd.DataFrame(pretrained.history)
    if not options.no_plot:
        step.log_figure(training_curves(history, {"dev WER": ["wer"]}, "Pretraining", note=prepared.note), "plots/training.png")
    done = together(pretrained.summaries)
    n_bad = len(done.bad_updates)
    step.log_metrics(
        {"dev/wer_final": wer, "n_trained": trained, "n_bad_updates": n_bad, "seconds": seconds, **done.throughput()}
    )
    missing = (
        "everything"
        if options.source == SCRATCH
        else f"{len(pretrained.base.missing)} tensors ({', '.join(pretrained.base.missing[:4])})"
    )
    step.describe(
        f"Dev WER {100 * wer:.1f} %{', SYNTHETIC speech' if prepared.note else ''}.\n\nStarted from `{options.source}`; missing and newly "
        f"trained: {missing}. {record['n_updates']} updates on {record['n_train_utterances']} utterances took {seconds / 60:.1f} min."
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
