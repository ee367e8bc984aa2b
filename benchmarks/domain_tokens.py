"""What a domain token does to a Whisper: where it alone decides the text, and on the demo, where the voice tells the domain anyway.

    python -m benchmarks.domain_tokens --corpus rule --row blocks --seed 0       one training, scored under every token
    python -m benchmarks.domain_tokens --corpus demo --row "two domains" --seed 0
    python -m benchmarks.domain_tokens --table true                              the table of all that was measured, with its tests

A row is one training. It is scored on the test split with the right token, a wrong one, none and the classifier's, and kept in
benchmarks/results/domain_tokens; a row that is there is not measured again, so rows may run side by side in processes of their own.
`rule`: typical voices, whose reference is the sentence with its articles or without them, either by chance, and only the token says which.
`demo`: the corpus of `main`.
"""

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.comparison import compare
from analysis.error_rates import count_errors
from analysis.report import markdown_table, percent
from analysis.systems import SystemScores
from benchmarks.speed.__main__ import RESULTS
from moe.audio.augmentation import AugmentationOptions
from moe.corpora.manifest import read_manifest, write_manifest
from moe.corpora.preparation import PreparationOptions, prepare
from moe.files import read_json, write_json, write_whole, write_whole_dir
from moe.options import Options, option
from moe.recognition.decoding import decode
from moe.synthesis.corpus import synthesize
from moe.synthesis.planning import SynthesisOptions
from moe.system import Ask, DecodingOptions
from moe.systems.domain_whisper.asks import AUTO, CORPUS, NONE, DomainAsk, WrongDomain
from moe.systems.domain_whisper.domains import DomainOptions, domains_of
from moe.systems.domain_whisper.folder import DomainShape
from moe.systems.domain_whisper.options import BalanceOptions, DomainTrainingOptions, LossOptions, TokenOptions
from moe.systems.domain_whisper.system import DomainSystem, build
from moe.systems.domain_whisper.training import balanced, train
from moe.systems.domain_whisper.unfreezing import UnfreezeOptions
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper.features import AudioContextOptions
from moe.text.normalisers import normalise
from moe.training.dataset import SpeechDataset
from moe.training.loop import Training, TrainingPlan, seed_everything
from moe.training.threads import settle_threads
from steps.options.command_line import parse
from steps.pretrain import SHIPPED

FOLDER = RESULTS / "domain_tokens"
ARTICLES = {"the", "a", "an"}
WITH, WITHOUT = "with-articles", "without-articles"
RULE, DEMO = "rule", "demo"
ASKS: dict[str, Ask] = {
    "right": DomainAsk(domain=CORPUS), "wrong": WrongDomain(), "none": DomainAsk(domain=NONE), "auto": DomainAsk(domain=AUTO),
}  # fmt: skip
SPEECH = {
    RULE: SynthesisOptions(
        styles="typical", n_train_speakers=20, n_dev_speakers=3, n_test_speakers=5, n_utterances=30, purpose="experiment"
    ),
    DEMO: SynthesisOptions(),
}


@dataclasses.dataclass(frozen=True)
class RowOptions(DomainOptions, UnfreezeOptions, DomainTrainingOptions):
    """One training."""


ROWS: dict[str, dict[str, dict[str, Any]]] = {
    RULE: {
        "blocks": {"domains": f"{WITH},{WITHOUT}", "domain_epochs": 3},
        "LoRA": {"domains": f"{WITH},{WITHOUT}", "domain_epochs": 3, "unfreeze": "lora"},
        "rows alone": {"domains": f"{WITH},{WITHOUT}", "domain_epochs": 6, "unfreeze": "none", "token_learning_rate": 0.05},
    },
    DEMO: {
        "two domains": {},
        "no tokens": {"token_dropout": 1.0},
        "each etiology": {"domains": "each"},
        "each etiology, no tokens": {"domains": "each", "token_dropout": 1.0},
        "last 2/2 blocks": {"unfreeze_encoder_blocks": 2, "unfreeze_decoder_blocks": 2},
        "last 2/2 blocks, no tokens": {"unfreeze_encoder_blocks": 2, "unfreeze_decoder_blocks": 2, "token_dropout": 1.0},
        "all": {"unfreeze": "all"},
        "LoRA of the same size": {"unfreeze": "lora"},
        "rows alone": {"unfreeze": "none", "token_learning_rate": 0.05},
        "rows ten times as fast": {"token_learning_rate": 1e-2},
        "rows a tenth as fast": {"token_learning_rate": 1e-4},
        "rows from their words": {"token_init": "words"},
        "rows from the mean": {"token_init": "mean"},
        "token dropout 0": {"token_dropout": 0.0},
        "token dropout 0.3": {"token_dropout": 0.3},
        "place of no timestamps": {"token_place": "no_timestamps"},
    },
}


@dataclasses.dataclass(frozen=True)
class CommandOptions(Options):
    """Measure what domain tokens do."""

    corpus: str = option(DEMO, "corpus", choices=(RULE, DEMO))
    row: str = option("all", "row to measure, or all of the corpus; none makes the corpus alone")
    seed: int = option(0, "seed of the training", low=0)
    beam_size: int = option(1, "beams", low=1)
    table: bool = option(False, "write the table of what has been measured, and measure nothing")

    def faults(self) -> list[str]:
        """A row that there is not."""
        known = ["all", NONE, *ROWS[self.corpus]]
        return [] if self.row in known else [f"row={self.row}: of {self.corpus} there are {', '.join(known)}"]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus on disk, the same for every row."""

    manifest: pd.DataFrame
    root: str

    def part(self, split: str) -> pd.DataFrame:
        """The rows of a split."""
        return self.manifest[self.manifest["split"] == split].reset_index(drop=True)


def corpus_of(name: str) -> Corpus:
    """The corpus, made where it is not there yet."""
    folder = FOLDER / f"corpus_{name}"
    if not (folder / "manifest.parquet").exists():
        with write_whole_dir(folder) as aside:
            synthesize(SPEECH[name], aside / "speech")
            made = prepare(PreparationOptions(corpus="folder", seed=SPEECH[name].seed), aside / "speech")
            write_manifest(aside / "manifest.parquet", made.manifest if name == DEMO else _by_rule(made.manifest))
    return Corpus(read_manifest(folder / "manifest.parquet"), str(folder / "speech"))


def _by_rule(manifest: pd.DataFrame) -> pd.DataFrame:
    """Half of the utterances without articles in their reference; which, is drawn by their id, and no voice tells."""
    bare = [hashlib.sha256(name.encode()).digest()[0] % 2 == 1 for name in manifest["utterance_id"]]
    references = [without_articles(text) if strip else text for text, strip in zip(manifest["reference"], bare, strict=True)]
    return manifest.assign(reference=references, etiology=[WITHOUT if strip else WITH for strip in bare])


def without_articles(text: str) -> str:
    """A text without its articles."""
    return " ".join(word for word in text.split() if word not in ARTICLES)


def measure(corpus: str, row: str, seed: int, beam_size: int) -> None:
    """Train a row and keep its hypotheses under every token."""
    folder = FOLDER / f"{corpus}_{row.replace(' ', '_').replace('/', '_').replace(',', '')}_{seed}"
    if (folder / "facts.json").exists():
        return
    options, data = RowOptions(**ROWS[corpus][row]), corpus_of(corpus)
    started = time.process_time()
    system, facts = _trained(options, data, seed)
    facts["training_seconds"] = time.process_time() - started
    with write_whole_dir(folder) as aside:
        test = data.part("test")
        dataset = SpeechDataset(test, data.root, system.inputs, extras=system.from_manifest(test))
        for asked, ask in ASKS.items():
            found = decode(system, dataset, DecodingOptions(beam_size=beam_size), ask, title=f"{row}, {asked}")
            texts = [normalise(system.record.normaliser, each.text) for each in found]
            table = test[["utterance_id", "speaker", "etiology", "reference"]].assign(
                hypothesis=texts, domain=[each.details["domain"] for each in found]
            )
            count_errors(table).to_parquet(aside / f"{asked}.parquet")
        write_json(aside / "facts.json", {"corpus": corpus, "row": row, "seed": seed, **facts})


def _trained(options: RowOptions, data: Corpus, seed: int) -> tuple[DomainSystem, dict[str, Any]]:
    """The system of a row, and what its training took."""
    seed_everything(seed)
    rows, dev = data.part("train"), data.part("dev")
    domains, base = domains_of(options.part(DomainOptions), rows["etiology"]), load_base(SHIPPED, options.dropout)
    shape = DomainShape(
        domains, options.token_place, options.domain_confidence, options.part(UnfreezeOptions), AudioContextOptions()
    )
    rates = (options.domain_learning_rate, options.token_learning_rate)
    system = build(base, Path(SHIPPED), shape, "en", "basic", options.part(TokenOptions), options.part(LossOptions), rates)
    again = balanced(domains.numbers(rows["etiology"].tolist()), domains.is_target, options.part(BalanceOptions), seed)
    repeated = rows.iloc[again].reset_index(drop=True)
    plain = AugmentationOptions(n_masks=0, gain=0.0)
    trained = train(
        system,
        SpeechDataset(repeated, data.root, system.inputs, plain, seed, system.from_manifest(repeated), trains=True),
        SpeechDataset(dev, data.root, system.inputs, extras=system.from_manifest(dev)),
        SpeechDataset(rows, data.root, system.inputs),
        options.part(DomainTrainingOptions),
        Training(TrainingPlan(options.domain_epochs, options.domain_batch_size, options.domain_learning_rate, seed), _printed),
    )
    groups = {group.name: group.n_parameters for group in system.parameter_groups()}
    accuracy = trained.classifier.metrics["dev/accuracy"]
    return system, {
        "n_trainable": sum(groups.values()),
        "epoch": trained.epoch,
        "classifier": accuracy,
        "history": trained.history,
    }


def _printed(number: int, values: dict[str, float]) -> None:
    if any(name.startswith("dev/") for name in values):
        print(number, {name: round(value, 4) for name, value in values.items() if name.count("/") == 1}, flush=True)


def scores(corpus: str) -> list[SystemScores]:
    """Every row under every token and seed that has been measured, as `compare` takes them."""
    found = []
    for path in sorted(FOLDER.glob(f"{corpus}_*/facts.json")):
        facts = read_json(path)
        for asked in ASKS:
            table = pd.read_parquet(path.with_name(f"{asked}.parquet"))
            metadata = {"seed": facts["seed"], "n_trainable": facts["n_trainable"], "training_seconds": facts["training_seconds"]}
            found.append(
                SystemScores(
                    f"{facts['row']}: {asked}", path.parent.name, "domain_whisper", "candidate", table, metadata=metadata
                )
            )
    return found


def write_table() -> str:
    """Error rates of everything measured, by row and token, and the pairs that the questions are about."""
    parts, found = ["# Domain tokens"], {}
    for corpus in (RULE, DEMO):
        systems = scores(corpus)
        if not systems:
            continue
        rates = pd.DataFrame(map(_rates, systems))
        found[corpus] = rates.to_dict("records")
        table = rates.groupby(["row", "token"], sort=False).agg(
            seeds=("seed", "size"), wer=("wer", "mean"), lowest=("wer", "min"), highest=("wer", "max"), normal=("normal", "mean"),
            target_cer=("target_cer", "mean"), n_trainable=("n_trainable", "first"), minutes=("minutes", "mean"),
        ).reset_index()  # fmt: skip
        for name in ("wer", "lowest", "highest", "normal", "target_cer"):
            table[name] = table[name].map(percent)
        parts += [f"## {corpus}", markdown_table(table)]
        if corpus == RULE:
            parts += [markdown_table(_against_the_other_text(systems))]
        elif len({system.name for system in systems}) > 1:
            found["tests"] = _tests(systems).to_dict("records")
            parts += [markdown_table(_tests(systems))]
    text = "\n\n".join(parts) + "\n"
    for path, content in ((RESULTS / "domain_tokens.md", text),):
        with write_whole(path) as aside:
            aside.write_text(content, encoding="utf-8")
    write_json(RESULTS / "domain_tokens.json", found)
    return text


def _rates(system: SystemScores) -> dict[str, Any]:
    """Of one row, token and seed."""
    row, _, token = system.name.rpartition(": ")
    table, normal = system.hypotheses, system.hypotheses["etiology"].isin(["typical", "normal"])
    return {
        "row": row,
        "token": token,
        "seed": system.metadata["seed"],
        "wer": _rate(table, "word"),
        "normal": _rate(table[normal], "word"),
        "target_cer": _rate(table[~normal], "char"),
        "n_trainable": system.metadata["n_trainable"],
        "minutes": round(system.metadata["training_seconds"] / 60, 1),
    }


def _rate(table: pd.DataFrame, unit: str) -> float:
    return float(table[f"{unit}_errors"].sum() / max(1, table[f"n_{unit}s"].sum()))


def _against_the_other_text(systems: list[SystemScores]) -> pd.DataFrame:
    """WER against the text that the token asks for, and against the other."""
    rows = []
    for system in systems:
        row, _, token = system.name.rpartition(": ")
        if token not in ("right", "wrong"):
            continue
        for domain, part in system.hypotheses.groupby("domain"):
            text = "wanted" if token == "right" else "the other"
            rows.append({"row": row, "token": domain, "text": text, "WER": percent(_rate(part, "word")), "utterances": len(part)})
    return pd.DataFrame(rows)


def _tests(systems: list[SystemScores]) -> pd.DataFrame:
    """Paired tests of the tokens of a row, and of each row against the same training without tokens."""
    names = {system.name for system in systems}
    bases = {row: f"{row}: right" for row in {name.rpartition(": ")[0] for name in names}}
    rows = []
    for row, base in bases.items():
        plain = next((f"{other}: none" for other in (f"{row}, no tokens", "no tokens") if f"{other}: none" in names), None)
        others = [name for name in (f"{row}: wrong", f"{row}: none", f"{row}: auto", plain) if name in names and name != base]
        seeds = {system.metadata["seed"] for system in systems if system.name == base}
        for other in others:
            shared = seeds & {system.metadata["seed"] for system in systems if system.name == other}
            pair = [system for system in systems if system.name in (base, other) and system.metadata["seed"] in shared]
            tests = compare(pair, base=other, group_columns=["etiology"], plots=False).tests.iloc[0].to_dict()
            rows.append({"system": base, "against": other, "seeds": len(shared), **tests})
    return pd.DataFrame(rows)


def command() -> None:
    """Command line."""
    options = parse(CommandOptions)
    print(settle_threads(), flush=True)
    if options.table:
        print(write_table())
        return
    corpus_of(options.corpus)
    names = list(ROWS[options.corpus]) if options.row == "all" else [] if options.row == NONE else [options.row]
    for name in names:
        measure(options.corpus, name, options.seed, options.beam_size)


if __name__ == "__main__":
    command()
