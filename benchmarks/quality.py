"""What each choice of speed costs in errors: the chain with one option changed at a time, over seeds, in one table for all corpora.

    python -m benchmarks.quality                                     the synthetic corpus
    python -m benchmarks.quality --corpus folder --dataset_root PATH --whisper_model BASE --data_percent 25 --only mixing,top_k

Takes every option of `main`; what is given is common to all variants. Each evaluation is a run in the tracking store and is taken over from
it in a later call, as is every stage above a variant's change; so a call that was killed goes on where it was. The table,
benchmarks/results/quality.md (and .json), is written after every evaluation and keeps the other corpora.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from analysis.error_rates import rates_by
from analysis.report import markdown_table, percent, percent_interval
from analysis.significance import speaker_difference
from analysis.systems import PooledScores, SystemScores, counted, pool
from benchmarks.speed import RESULTS
from benchmarks.table import read, write_both
from moe.files import read_json
from moe.options import option, parse
from steps import evaluate, main
from steps.compare import read_scores
from steps.reuse import launch

CHANGES: dict[str, tuple[Any, ...]] = {
    "audio_context": ("bucketed", "full"),
    "gate_layer": ("0", "1", "2", "3", "last"),
    "mixing": ("delta", "loss"),
    "top_k": (1, 2, 4, None),  # None: all experts
}
DEFAULT = "as given"
COSTS = ("gating_accuracy", "training_seconds", "seconds")  # means over the seeds; training is the last stage's
Job = tuple[str, int, "QualityOptions"]  # variant, seed, options of the chain


@dataclasses.dataclass(frozen=True)
class QualityOptions(main.StepOptions):
    """Compare variants of the mixture; every option of `main` is common to all."""

    seeds: str = option("42,43,44", "seeds of each variant, comma list; the corpus keeps one seed")
    only: str = option("all", f"options whose values are compared, comma list out of {', '.join(CHANGES)}")

    def faults(self) -> list[str]:
        """Also: seeds are whole numbers, the changes are known, the base is one base for all."""
        found = [f"seeds={self.seeds}: must be whole numbers, comma list"] if not all(map(str.isdigit, _parts(self.seeds))) else []
        unknown = [] if self.only == "all" else [name for name in _parts(self.only) if name not in CHANGES]
        found += [f"only={self.only}: must be all or out of {', '.join(CHANGES)}"] if unknown else []
        if self.init_from is not None:
            found.append(f"init_from={self.init_from}: make it once, by main --until pretrain --export_dir BASE, and name it as whisper_model")
        return super().faults() + found

    @property
    def corpus_name(self) -> str:
        """What the table calls the corpus."""
        return Path(self.dataset_root).name if self.dataset_root else self.corpus


def variants(options: QualityOptions) -> dict[str, QualityOptions]:
    """Each variant's options by name: those given, then one option changed at a time."""
    found = {DEFAULT: options}
    for name in CHANGES if options.only == "all" else _parts(options.only):
        for value in CHANGES[name]:
            shown, value = ("all", main.n_experts(options)) if value is None else (value, value)
            if value != getattr(options, name) and (name != "gate_layer" or _has_layer(options.whisper_model, value)):
                found[f"{name}={shown}"] = dataclasses.replace(options, **{name: value})
    return found


def jobs(options: QualityOptions) -> list[Job]:
    """Every variant under the first seed, then under the next: what there is of a table can be read early."""
    corpus_seed = options.seed if options.corpus_seed is None else options.corpus_seed
    common = {"corpus_seed": corpus_seed, "ablations": False}
    found = variants(options)
    return [
        (name, seed, dataclasses.replace(variant, seed=seed, **common))
        for seed in map(int, _parts(options.seeds))
        for name, variant in found.items()
    ]


def evaluated(options: QualityOptions) -> str:
    """Run the chain up to the mixture, score it on the test split, and return the id of the evaluation."""
    chain = main.Chain(dataclasses.replace(options, until="asr"))
    chain.run()
    ids = {f"{name}_run_id": chain.run_ids[name] for name in ("prepare", "asr")}
    return launch(evaluate, main.stage_options(evaluate, options, **ids))


def run(options: QualityOptions, path: Path) -> str:
    """Every variant under every seed; returns the table, written to `path`.md after each evaluation."""
    todo, found, text = jobs(options), [], ""
    with tqdm(todo, desc="quality", unit="evaluation", smoothing=0.1) as bar:
        for name, seed, variant in bar:
            print(f"\n{name}, seed {seed}", flush=True)
            found.append(dataclasses.replace(read_scores(evaluated(variant)), name=name))
            text = record(path, options, rows(found))
            bar.set_postfix_str(f"{name}, seed {seed}: WER {percent(_wer(found[-1]))}")
    return text


def rows(found: Sequence[SystemScores]) -> list[dict[str, Any]]:
    """One row per variant: rates pooled over its seeds, and the difference to the default over the seeds that both have."""
    seeds = {name: {one.metadata["seed"] for one in found if one.name == name} for name in dict.fromkeys(one.name for one in found)}
    default = [one for one in found if one.name == DEFAULT]
    return [_row(system, pool([one for one in default if one.metadata["seed"] in seeds[system.name]])[0]) for system in pool(found)]


def record(path: Path, options: QualityOptions, found: list[dict[str, Any]]) -> str:
    """Put a corpus's rows in the file in place of its earlier ones; returns the whole table as Markdown."""
    changed = {field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default}
    given = {name: getattr(options, name) for name in sorted(changed - {"dataset_root", "whisper_model", "only", "force"})}
    corpora = read(path.with_suffix(".json")) | {options.corpus_name: {"options": given, "rows": found}}
    return write_both(path, markdown(corpora), corpora)


def markdown(corpora: dict[str, dict[str, Any]]) -> str:
    """The table of all corpora, and the options that were not the defaults."""
    lines = pd.DataFrame([_shown(name, row) for name, corpus in corpora.items() for row in corpus["rows"]])
    notes = [f"- {name}: {', '.join(f'{key} {value}' for key, value in one['options'].items()) or 'defaults'}" for name, one in corpora.items()]
    how = "WER on the test split, 95 % intervals by bootstrap over speakers; difference to the default in points, same speakers and seeds."
    return "\n".join(["# What speed costs in errors", "", how, "", markdown_table(lines), "## Options given", "", *notes]) + "\n"


def _row(system: PooledScores, default: PooledScores) -> dict[str, Any]:
    rates = rates_by(system.counted).iloc[0]
    difference = speaker_difference(system.counted, default.counted)
    costs = pd.DataFrame([{name: one.metadata.get(name) for name in COSTS} for one in system.runs], dtype=float).mean()
    return {
        "variant": system.name,
        "wer": [float(rates[name]) for name in ("wer", "low", "high")],
        "seeds": {str(one.metadata["seed"]): _wer(one) for one in system.runs},
        "difference": None if system.name == DEFAULT else [difference.value, difference.low, difference.high, difference.p_value],
        **{name: None if costs.isna()[name] else float(costs[name]) for name in COSTS},
    }


def _shown(corpus: str, row: dict[str, Any]) -> dict[str, Any]:
    wers = list(row["seeds"].values())
    difference = "–"
    if row["difference"]:
        value, low, high, p_value = row["difference"]
        difference = f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), p {p_value:.2g}"
    return {
        "corpus": corpus,
        "variant": row["variant"],
        "WER": percent_interval(*row["wer"]),
        "seeds": f"{len(wers)}: {100 * min(wers):.1f}–{100 * max(wers):.1f} %",
        "against the default": difference,
        "gating accuracy": percent(row["gating_accuracy"]),
        "joint training, s": row["training_seconds"],
        "decoding, s": row["seconds"],
    }


def _wer(system: SystemScores) -> float:
    table = counted(system)
    return float(table["word_errors"].sum() / max(1, table["n_words"].sum()))


def _has_layer(whisper_model: str, layer: str) -> bool:
    """Whether a base in a folder has the layer below its last; of others it is taken for granted."""
    config = Path(whisper_model) / "config.json"
    return layer == "last" or not config.exists() or int(layer) < read_json(config)["encoder_layers"]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def command() -> None:
    """Command line."""
    options = parse(QualityOptions)
    options = main.small(options) if options.mode == "quick" else options
    main.check_stages(options)
    print(run(options, RESULTS / "quality"))


if __name__ == "__main__":
    command()
