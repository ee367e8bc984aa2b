"""What was evaluated as a table: rates of the test speakers and of those of their own ways, and differences with what a test could see."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.error_rates import rates_by
from analysis.intervals import Difference
from analysis.report import markdown_table, percent, percent_interval
from analysis.significance import speaker_difference
from analysis.systems import PooledScores, SystemScores, counted, pool
from benchmarks.quality.variants import BASE_MODEL, DEFAULT, EACH, QualityOptions, left_out_of, lora_of
from benchmarks.table import read, write_both
from moe.synthesis.voices import OWN_WAYS

COSTS = ("dev_wer", "gating_accuracy", "training_seconds", "seconds")  # means over the seeds; training is the last stage's
LORA_COLUMN = "one LoRA"
HOW = (
    "WER on the test split, 95 % intervals by bootstrap over speakers; differences in points over the same speakers and seeds, each p by "
    "itself, with its standard error (s.e.) and the difference that such a test finds in four of five tries (sees). One LoRA is trained, "
    "sized and averaged as the row it is compared with. *Own ways*: test speakers with the articulation of one style and the voice of another. "
    "*left_out*: trained without an etiology and scored on its test speakers alone; its dev split lacks that etiology too. *each*: these rows "
    "as one, every speaker scored by the row that was trained without their etiology."
)


def rows(found: Sequence[SystemScores]) -> list[dict[str, Any]]:
    """One row per system: rates pooled over its seeds, and the differences to the default and to its one LoRA over the seeds that both have."""
    found = [*found, *joined_left_out(found)]
    return [_row(system, found) for system in pool(found)]


def joined_left_out(found: Sequence[SystemScores]) -> list[SystemScores]:
    """Rows trained without one etiology each as one row of a seed, where there are several and none is missing."""
    parts: dict[tuple[str, Any], list[SystemScores]] = {}
    for one in found:
        if left_out_of(one.name):
            parts.setdefault((one.name.rpartition("=")[0], one.metadata.get("seed")), []).append(one)
    most = max(map(len, parts.values()), default=0)
    return [_joined(f"{name}={EACH}", rows) for (name, _), rows in parts.items() if len(rows) == most > 1]


def _joined(name: str, parts: Sequence[SystemScores]) -> SystemScores:
    hypotheses = pd.concat([tested(one.name, counted(one), is_own=False) for one in parts], ignore_index=True)
    return dataclasses.replace(parts[0], name=name, hypotheses=hypotheses, metadata={**parts[0].metadata, **mean_costs(parts)})


def mean_costs(parts: Sequence[SystemScores]) -> dict[str, float | None]:
    """What the costs of several runs are on average; None where no run has one."""
    costs = pd.DataFrame([{name: one.metadata.get(name) for name in COSTS} for one in parts], dtype=float).mean()
    return {name: None if costs.isna()[name] else float(costs[name]) for name in COSTS}


def record(path: Path, options: QualityOptions, found: list[dict[str, Any]], verdict: str = "") -> str:
    """Put a corpus's rows in the file in place of its earlier ones; returns the whole table as Markdown."""
    changed = {field.name for field in dataclasses.fields(options) if getattr(options, field.name) != field.default}
    untold = {"dataset_root", "whisper_model", "only", "force", "gather", "rows"}
    given = {name: getattr(options, name) for name in sorted(changed - untold)}
    corpora = read(path.with_suffix(".json")) | {options.corpus_name: {"options": given, "rows": found, "verdict": verdict}}
    return write_both(path, markdown(corpora), corpora)


def markdown(corpora: dict[str, dict[str, Any]]) -> str:
    """The table of all corpora, and the options that were not the defaults."""
    lines = pd.DataFrame([_shown(name, row) for name, corpus in corpora.items() for row in corpus["rows"]])
    lines = lines.drop(columns=[name for name in lines if (lines[name] == "–").all()])
    notes = [
        f"- {name}: {', '.join(f'{key} {value}' for key, value in one['options'].items()) or 'defaults'}"
        for name, one in corpora.items()
    ]
    verdicts = [f"## {name}\n\n{one['verdict']}\n" for name, one in corpora.items() if one.get("verdict")]
    table = ["# What each choice costs", "", HOW, "", markdown_table(lines)]
    return "\n".join([*table, *verdicts, "## Options given", "", *notes]) + "\n"


def _row(system: PooledScores, found: Sequence[SystemScores]) -> dict[str, Any]:
    usual, own = (tested(system.name, system.counted, is_own) for is_own in (False, True))
    pairs = {name: pair for name in (DEFAULT, LORA_COLUMN) if (pair := _over_common_seeds(system, found, name))}
    return {
        "variant": system.name,
        "wer": _rate(usual),
        "own_ways": _rate(own) if len(own) else None,
        "seeds": {str(one.metadata.get("seed")): wer(one) for one in system.runs},
        "against": {name: _difference(*pair, is_own=False) for name, pair in pairs.items()},
        "own_ways_against": {name: _difference(*pair, is_own=True) for name, pair in pairs.items()} if len(own) else {},
        "routings": _routings(system),
        **mean_costs(system.runs),
    }


def wer(system: SystemScores) -> float:
    """WER of one evaluation, people of their own ways left out."""
    table = tested(system.name, counted(system), is_own=False)
    return float(table["word_errors"].sum() / max(1, table["n_words"].sum()))


def cohort(table: pd.DataFrame, is_own: bool) -> pd.DataFrame:
    """Those of their own ways, or all others."""
    return table[(table["etiology"] == OWN_WAYS) == is_own]


def tested(name: str, table: pd.DataFrame, is_own: bool) -> pd.DataFrame:
    """Those of a cohort on whom a row is scored: all, or the speakers of the etiology that it was trained without."""
    of_cohort = cohort(table, is_own)
    return of_cohort[of_cohort["etiology"].isin(left_out_of(name))] if left_out_of(name) else of_cohort


def _rate(table: pd.DataFrame) -> list[float]:
    rates = rates_by(table).iloc[0]
    return [float(rates[name]) for name in ("wer", "low", "high")]


def _routings(system: PooledScores) -> dict[str, float]:
    """WER of each other routing of the same weights, as a mean over the seeds; empty where none was scored on the row's speakers."""
    if left_out_of(system.name):
        return {}
    found = pd.DataFrame([one.metadata.get("ablations") or {} for one in system.runs], dtype=float).mean()
    return {str(name): float(rate) for name, rate in found.sort_values().items() if not str(name).startswith("expert_")}


def _over_common_seeds(
    system: PooledScores, found: Sequence[SystemScores], name: str
) -> tuple[PooledScores, PooledScores] | None:
    """A system and the default or its one LoRA, both over the seeds that they share; None where there is none."""
    if name == LORA_COLUMN:
        is_there = lora_of(system.name) in {one.name for one in found} or left_out_of(system.name)
        name = lora_of(system.name) if is_there else lora_of(DEFAULT)  # one LoRA that knew what was left out is no control
    seeds = {one.metadata.get("seed") for one in system.runs} & {one.metadata.get("seed") for one in found if one.name == name}
    if not seeds or system.name in (name, BASE_MODEL):
        return None
    ours = [one for one in system.runs if one.metadata.get("seed") in seeds]
    return pool(ours)[0], pool([one for one in found if one.name == name and one.metadata.get("seed") in seeds])[0]


def _difference(system: PooledScores, other: PooledScores, is_own: bool) -> dict[str, float]:
    ours, theirs = tested(system.name, system.counted, is_own), cohort(other.counted, is_own)
    if left_out_of(system.name):
        theirs = theirs[theirs["utterance_id"].isin(ours["utterance_id"])]
    found: Difference = speaker_difference(ours, theirs)
    return dataclasses.asdict(found)


def _shown(corpus: str, row: dict[str, Any]) -> dict[str, Any]:
    wers = list(row["seeds"].values())
    routings = ", ".join(f"{name} {percent(rate)}" for name, rate in row["routings"].items())
    return {
        "corpus": corpus,
        "variant": row["variant"],
        "dev WER": percent(row["dev_wer"]),
        "WER": percent_interval(*row["wer"]),
        "seeds": f"{len(wers)}: {100 * min(wers):.1f}–{100 * max(wers):.1f} %",
        "against the default": difference_points(row["against"].get(DEFAULT)),
        "against one LoRA": difference_points(row["against"].get(LORA_COLUMN)),
        "own ways": percent_interval(*row["own_ways"]) if row["own_ways"] else "–",
        "own ways, against one LoRA": difference_points(row["own_ways_against"].get(LORA_COLUMN)),
        "other routings": routings or "–",
        "gating accuracy": percent(row["gating_accuracy"]),
        "last stage, s": row["training_seconds"],
        "decoding, s": row["seconds"],
    }


def difference_points(found: dict[str, float] | None) -> str:
    """A difference in points, with its interval, p, standard error and what the test could have seen."""
    if found is None:
        return "–"
    value, low, high, error, visible = (100 * found[name] for name in ("value", "low", "high", "error", "visible"))
    sees = f"{visible:.1f}" if math.isfinite(visible) else "nothing"
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f}), p {found['p_value']:.2g}, s.e. {error:.2f}, sees {sees}"
