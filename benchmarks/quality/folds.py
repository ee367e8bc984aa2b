"""One table over all folds of a corpus: every speaker is tested once, by models that were trained without them.

    python -m benchmarks.quality --split k_fold --fold 0 --whisper_model BASE0 --rows "as given;one LoRA, same size" ...    rows of a fold
    python -m benchmarks.quality.folds                                               the table of all folds that such calls evaluated

Reads what `benchmarks.quality` kept of each row (benchmarks/results/quality_rows, or `--notes FOLDER`) and takes rows of one name and seed
on different test sets as one row. Differences are over the speakers that both rows were tested on, group by group in the last table.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.error_rates import rates_by
from analysis.report import markdown_table, percent_interval
from analysis.significance import speaker_difference
from analysis.systems import SystemScores, counted
from benchmarks.quality.notes import read_notes
from benchmarks.quality.table import difference_points, markdown, rows
from benchmarks.quality.variants import BASE_MODEL, lora_of
from benchmarks.speed.__main__ import RESULTS
from moe.files import write_whole

MEANS = ("dev_wer", "gating_accuracy", "training_seconds", "seconds")  # over the folds


def joined(found: Sequence[SystemScores]) -> list[SystemScores]:
    """Rows of one name and seed as one, over the test sets of all folds.

    Raises:
        ValueError: a row was evaluated twice on one test set, or lacks a fold that another of its seed has.
    """
    parts: dict[tuple[str, Any], dict[str, SystemScores]] = {}
    for one in found:
        folds = parts.setdefault((one.name, one.metadata["seed"]), {})
        if one.metadata["test_set_digest"] in folds:
            raise ValueError(
                f"{one.name}, seed {one.metadata['seed']}: evaluated twice on one test set; keep the notes of one run alone"
            )
        folds[one.metadata["test_set_digest"]] = one
    most = max(map(len, parts.values()), default=0)
    lacking = [f"{name}, seed {seed}: {len(folds)} of {most} folds" for (name, seed), folds in parts.items() if len(folds) < most]
    if lacking:
        raise ValueError("; ".join(lacking))
    return [_joined(list(folds.values())) for folds in parts.values()]


def group_rows(found: Sequence[SystemScores], column: str = "etiology") -> list[dict[str, str]]:
    """WER of each group of speakers, and its difference to the row's one LoRA of the same seed."""
    tables = {(one.name, one.metadata["seed"]): counted(one) for one in found}
    lines = []
    for (name, seed), table in tables.items():
        other = tables.get((lora_of(name), seed)) if name not in (BASE_MODEL, lora_of(name)) else None
        for group, part in table.groupby(column, observed=True):
            rates = rates_by(part).iloc[0]
            theirs = None if other is None else other[other[column] == group]
            difference = "–" if theirs is None else difference_points(dataclasses.asdict(speaker_difference(part, theirs)))
            shown = percent_interval(*(float(rates[key]) for key in ("wer", "low", "high")))
            lines.append(
                {"variant": name, "seed": str(seed), "group": str(group), "WER": shown, "against its one LoRA": difference}
            )
    return lines


def table(notes: Path) -> str:
    """All rows over all folds, and each group of speakers."""
    found = joined(read_notes(notes))
    corpora = {"all folds": {"options": {}, "rows": rows(found), "verdict": ""}}
    return f"{markdown(corpora)}\n## Groups\n\n{markdown_table(pd.DataFrame(group_rows(found)))}\n"


def _joined(folds: list[SystemScores]) -> SystemScores:
    hypotheses = pd.concat([one.hypotheses for one in folds], ignore_index=True)
    facts = pd.DataFrame([{name: one.metadata.get(name) for name in MEANS} for one in folds], dtype=float).mean()
    means = {name: None if pd.isna(facts[name]) else float(facts[name]) for name in MEANS}
    digest = "+".join(sorted(one.metadata["test_set_digest"] for one in folds))
    return dataclasses.replace(
        folds[0], hypotheses=hypotheses, metadata={**folds[0].metadata, **means, "test_set_digest": digest, "ablations": None}
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", type=Path, default=RESULTS / "quality_rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "quality_folds.md")
    arguments = parser.parse_args()
    text = table(arguments.notes)
    with write_whole(arguments.out) as aside:
        aside.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
