"""Where does routing pay: the mixture minus one LoRA against the utterances of a group and against how different the groups are.

    python -m benchmarks.quality.pays                                    all conditions and seeds, and the figure
    python -m benchmarks.quality.pays --condition n_utterances=8         one condition, in a process of its own
    python -m benchmarks.quality.pays --gather true                      the figure of what such processes have evaluated

Takes every option of `benchmarks.quality`. Each condition is a synthetic corpus of its own: ¼, ½, 1 and 3 times the demo's utterances of
each train speaker, and consonants replaced with a strength from 0 to 1 (the demo's is 0.7). The figure, with intervals over speakers,
is benchmarks/results/where_it_pays.png; the table beside it is .md and .json.
"""

import dataclasses
from typing import Any

import pandas as pd

from analysis.plots.differences import differences_figure
from analysis.report import markdown_table
from benchmarks.quality.__main__ import check, scored
from benchmarks.quality.notes import read_note, write_note
from benchmarks.quality.table import LORA_COLUMN, rows
from benchmarks.quality.variants import DEFAULT, ONE_LORA, QualityOptions, jobs
from benchmarks.speed.__main__ import RESULTS
from benchmarks.table import write_both
from moe.options import option
from steps.options.command_line import parse

CONDITIONS: dict[str, tuple[Any, ...]] = {
    "n_utterances": (8, 15, 30, 90),  # of each train speaker; the demo has 30, and 10 speakers in a group
    "articulation_strength": (0.0, 0.35, 0.7, 1.0),
}
ALIKE: dict[str, Any] = {"rows": f"{DEFAULT};{ONE_LORA}", "experts_percent": 100.0}
AXES = {"n_utterances": "train utterances of each speaker", "articulation_strength": "share of consonants replaced"}


@dataclasses.dataclass(frozen=True)
class PaysOptions(QualityOptions):
    """Where routing pays; every option of `benchmarks.quality` is common to all conditions."""

    only: str = option("none", "no other changes than those of the corpus", choices=("none",))
    condition: str | None = option(None, "evaluate this condition alone and draw nothing, NAME=VALUE (none: all)")

    def faults(self) -> list[str]:
        """Also: the condition is one of those there are."""
        known = [f"{name}={value}" for name, values in CONDITIONS.items() for value in values]
        if self.condition is None or self.condition in known:
            return []
        return [f"condition={self.condition}: there are {', '.join(known)}"]

    def idle(self) -> dict[str, str]:
        """What every condition has as it must be."""
        return dict.fromkeys(ALIKE, "alike in all conditions")


def conditions(options: PaysOptions) -> dict[tuple[str, Any], QualityOptions]:
    """Options of every condition that is asked for, by the corpus option that it changes and the value."""
    found = {(name, value): name for name, values in CONDITIONS.items() for value in values}
    asked = {key: name for key, name in found.items() if options.condition in (None, f"{key[0]}={key[1]}")}
    common = options.part(QualityOptions)
    return {key: dataclasses.replace(common, **ALIKE, gather=False, **{name: key[1]}) for key, name in asked.items()}


def run(options: PaysOptions) -> str:
    """Every condition that is asked for: the table of differences, and where all are, the figure."""
    table = []
    for (name, value), condition in conditions(options).items():
        found = []
        for job in jobs(condition):
            scores = read_note(RESULTS / "where_it_pays", job) if options.gather else scored(job)
            if scores is not None:
                write_note(RESULTS / "where_it_pays", job, scores)
                found.append(scores)
        differences = [row["against"].get(LORA_COLUMN) for row in rows(found) if row["variant"] == DEFAULT]
        table += [
            {"condition": name, **difference, "value": value, "difference": difference["value"]}
            for difference in differences
            if difference
        ]
    shown = pd.DataFrame(table)
    if options.condition is None and len(shown):
        note = "synthetic speech; bars: 95 % interval over speakers"
        differences_figure(shown, AXES, "Mixture minus one LoRA: below 0 the mixture is better", note).savefig(
            RESULTS / "where_it_pays.png"
        )
        write_both(RESULTS / "where_it_pays", markdown_table(shown), table)
    return markdown_table(shown)


def command() -> None:
    """Command line."""
    options = parse(PaysOptions)
    check(dataclasses.replace(options, condition=None))
    print(run(options))


if __name__ == "__main__":
    command()
