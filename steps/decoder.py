"""Entry point `decoder`: the causal language model that writes for SteerMoE. Writes the artifact `decoder`.

It is taken, `llm` (any that transformers loads: a folder, or a hub name), or made, `init_from=scratch`: a small one over the tokens of
a base (`pretrain_run_id`), from the train split's texts (`prepare_run_id`) or from sentences of the grammar. Example:
    mlflow run . --env-manager local -e decoder -P prepare_run_id=ID -P pretrain_run_id=ID -P init_from=scratch -P decoder_units=letters
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe.files import folder_digest
from moe.options import Options, names_of, option
from moe.synthesis.grammar import grammars, is_held_out
from moe.systems.steer_moe.decoder import PROMPT, DecoderRecord, decoder_fault, save_decoder, take_decoder
from moe.systems.steer_moe.decoder_training import DecoderOptions, LossLog, Reader, Sentences, new_decoder, plain_tokenizer
from moe.systems.steer_moe.options import SHIPPED_DECODER, PromptTextOptions
from moe.systems.steer_moe.pseudo_audio import Units, spell
from moe.systems.steer_moe.sequence import surroundings
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper.base_source import SCRATCH
from moe.text.error_rates import word_error_rate
from moe.training.checkpoints import CheckpointOptions
from moe.training.loop import Training, TrainingSummary, fit, seed_everything
from moe.training.plan import TrainingPlan
from moe.training.sharding import ShardingOptions
from steps.inputs.corpus import SYNTHETIC_NOTE, read_prepared
from steps.inputs.training import checkpoints_of, reporter
from steps.options.step_options import ReportOptions, RunOptions, SeedOptions, model_folder_faults
from steps.pretrain import LICENCE, SHIPPED
from steps.registry.exports import copy_out
from steps.tracking import artifacts, runs
from steps.tracking.artifacts import NONE_GIVEN
from steps.tracking.step_run import StepRun

N_SENTENCES, N_HELD_OUT = 20_000, 200  # of the grammar
MOST_TOKENS = 64  # that are written of a held-out sentence


@dataclasses.dataclass(frozen=True)
class DecoderSourceOptions(Options):
    """Which language model writes."""

    group = "decoder"

    llm: str = option(SHIPPED_DECODER, "the language model of SteerMoE: the folder or hub name of any causal one")
    copy_decoder_mb: float = option(
        1024.0, "a larger one is not copied into the model: its name, revision and digest are kept", low=0
    )


@dataclasses.dataclass(frozen=True)
class StepOptions(
    DecoderSourceOptions,
    DecoderOptions,
    PromptTextOptions,
    ShardingOptions,
    CheckpointOptions,
    ReportOptions,
    SeedOptions,
    RunOptions,
):
    """Make or take the language model."""

    prepare_run_id: str = option("none", "run whose train texts a new one learns (none: sentences of the grammar)")
    pretrain_run_id: str = option("none", "run whose base gives a new one its tokens (none: the shipped base)")
    init_from: str | None = option(None, "scratch: make the language model instead of taking llm", choices=(SCRATCH,))
    export_dir: str | None = option(None, "also write the language model to this folder")

    def faults(self) -> list[str]:
        """What can be neither taken nor made."""
        found = model_folder_faults("export_dir", self.export_dir)
        if self.init_from is None:
            fault = decoder_fault(self.llm)
            return found + ([f"llm={self.llm}: {fault}"] if fault else [])
        if self.llm != SHIPPED_DECODER:
            found.append(f"llm={self.llm} and init_from={self.init_from}: the language model is taken or made, not both")
        return found

    def idle(self) -> dict[str, str]:
        """What only a language model that is made would use."""
        names = names_of(DecoderOptions, PromptTextOptions, ShardingOptions, CheckpointOptions, ReportOptions)
        names += ["prepare_run_id", "pretrain_run_id"]
        if self.init_from:
            return {"copy_decoder_mb": f"init_from={self.init_from}: a language model that is made is copied at any size"}
        return dict.fromkeys(names, f"the language model {self.llm} is taken as it is")

    def data_digests(self) -> dict[str, str]:
        """Content of a language model in a folder."""
        folder = Path(self.llm)
        return {"decoder": folder_digest(folder)} if self.init_from is None and folder.is_dir() else {}


@dataclasses.dataclass(frozen=True)
class Texts:
    """What a language model is made of: texts to learn, texts to be judged by, their language, and a word on where they are from."""

    train: Sequence[str]
    held_out: Sequence[str]
    language: str
    source: str
    is_synthetic: bool


def run(options: StepOptions) -> str:
    """Make or take the language model, log it and return the run id."""
    name = f"decoder · {'from scratch' if options.init_from else Path(options.llm).name}"
    return runs.in_run("decoder", options, _work, name)


def _work(step: StepRun, options: StepOptions) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / artifacts.DECODER
        if options.init_from:
            _make(step, options, folder)
        else:
            record = take_decoder(options.llm, folder, options.copy_decoder_mb)
            step.describe(_taken(record))
        step.log_folder(folder, artifacts.DECODER)
        copy_out(folder, options.export_dir)


def _make(step: StepRun, options: StepOptions, folder: Path) -> None:
    seed_everything(options.seed)
    given = options.pretrain_run_id
    base = load_base(SHIPPED if given in NONE_GIVEN else str(artifacts.upstream(given, artifacts.BASE)))
    language: Any = getattr(base.model.generation_config, "language", None)
    texts = _texts(options, language or "en")
    tokenizer, prompt = plain_tokenizer(base.processor.tokenizer), options.textual_prompt or PROMPT
    spelled = spell([*texts.train, *texts.held_out], options.decoder_units, texts.language)
    units, n_train = Units(tuple(sorted({name for row in spelled for name in row}))), len(texts.train)
    reader = Reader(new_decoder(tokenizer, len(units), options), len(tokenizer))
    numbers, around = [units.numbers(row) for row in spelled], surroundings(tokenizer, prompt, "none")
    common = (units, tokenizer, around, options.decoder_width, options.seed)
    summary = _train(step, options, reader, Sentences(texts.train, numbers[:n_train], *common))
    held_out = Sentences(texts.held_out, numbers[n_train:], *common, reads=True)
    wer = word_error_rate(texts.held_out, reader.write(held_out, tokenizer, MOST_TOKENS)) if len(units) else None
    facts = _facts(options, texts, reader, summary, wer) | {"units": list(units.names)}
    save_decoder(reader.decoder, tokenizer, folder, prompt, facts)
    licence = Path(LICENCE).read_text(encoding="utf-8") if texts.is_synthetic else f"Trained on {texts.source}\n"
    (folder / LICENCE).write_text(licence, encoding="utf-8")
    step.log_metrics(summary.throughput())
    _report(step, facts, options)


def _train(step: StepRun, options: StepOptions, reader: Reader, sentences: Sentences) -> TrainingSummary:
    rate, n_updates = options.llm_learning_rate, options.decoder_updates
    plan = TrainingPlan(1, options.decoder_batch_size, rate, options.seed, max_updates=n_updates, strategy=options.strategy)
    training = Training(plan, reporter(step, options), checkpoints_of(step, options))
    return fit(reader, sentences, training, LossLog(training.report))


def _texts(options: StepOptions, language: str) -> Texts:
    """The train and dev split's texts, or sentences of the grammar: those to learn are not held out of training corpora.

    Raises:
        ValueError: no corpus is named, and there is no grammar of the language.
    """
    if options.prepare_run_id not in NONE_GIVEN:
        prepared = read_prepared(options.prepare_run_id)
        train, dev = (list(dict.fromkeys(filter(None, prepared.rows(split)["reference"]))) for split in ("train", "dev"))
        source = f"the train split's texts of prepare run {prepared.run_id}"
        return Texts(train, dev, prepared.language, source, bool(prepared.note))
    if language not in grammars():
        raise ValueError(f"prepare_run_id=none: there is no grammar of language={language}; name a corpus")
    grammar, random = grammars()[language], np.random.default_rng(options.seed)
    train = grammar.distinct(random, N_SENTENCES, lambda sentence: not is_held_out(sentence))
    return Texts(train, grammar.distinct(random, N_HELD_OUT, is_held_out), language, "sentences of the grammar", True)


def _facts(options: StepOptions, texts: Texts, reader: Reader, summary: TrainingSummary, wer: float | None) -> dict[str, Any]:
    kept = names_of(DecoderOptions, SeedOptions)
    return {
        "synthetic": texts.is_synthetic,
        "texts": texts.source,
        "n_sentences": len(texts.train),
        "language": texts.language,
        "n_parameters": sum(parameter.numel() for parameter in reader.parameters()),
        "n_updates": summary.n_updates,
        "seconds": round(summary.seconds, 1),
        "held_out_wer": wer,
        "options": {name: text for name, text in options.as_parameters().items() if name in kept},
    }


def _report(step: StepRun, facts: dict[str, Any], options: StepOptions) -> None:
    numbers = {
        name: float(facts[name]) for name in ("n_parameters", "n_updates", "seconds", "held_out_wer") if facts[name] is not None
    }
    step.log_metrics(numbers)
    read = "It learnt to read no pseudo-audio."
    if facts["held_out_wer"] is not None:
        read = f"WER on the pseudo-audio ({options.decoder_units}) of held-out sentences: {100 * facts['held_out_wer']:.1f} %."
    step.describe(
        f"## Language model made here\n{facts['n_parameters']:,} parameters, {facts['n_updates']} updates on {facts['n_sentences']:,} "
        f"texts ({facts['texts']}) in {facts['seconds'] / 60:.1f} min. {read}"
        f"{' ' + SYNTHETIC_NOTE if facts['synthetic'] else ''}"
    )


def _taken(record: DecoderRecord) -> str:
    where = "Its files are copied." if record.is_copied else f"Not copied; revision {record.revision}, digest {record.digest}."
    return f"## Language model taken as it is\n`{record.name}`. {where}"


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
