"""The table of what has been measured."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from analysis.report import markdown_table
from benchmarks.personal.measuring import COHORTS
from moe.files import read_json


def table(folder: Path, seed: int, names: Collection[str] | None = None) -> str:
    """Every result that is there of the people of a seed, a row for each way, as Markdown; None for recognisers of any name."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        result = read_json(path)
        if result["people_seed"] != seed or (names is not None and result["name"] not in names):
            continue
        for way, found in result["ways"].items():
            cells = {"recogniser": result["name"], "utterances": result["size"], "options": result["changed"], "way": way}
            for name, title in COHORTS.items():
                value, low, high, p_value = found["difference"][name]
                cells[f"WER, {title}"] = (
                    f"{100 * result['as it is'][name]:.1f} → {100 * found['wer'][name]:.1f} "
                    f"({100 * value:+.1f}; {100 * low:+.1f} to {100 * high:+.1f}; p {p_value:.3f})"
                )
            cells["changed"], cells["CPU s a person"] = (
                f"{found['changed']} of {result['n_people']}",
                f"{result['seconds_a_person']:.1f}",
            )
            rows.append(cells)
    if not rows:
        raise SystemExit(f"there is no result of the people of seed {seed} in {folder} yet")
    return markdown_table(pd.DataFrame(rows).sort_values(["recogniser", "options", "utterances"], kind="stable"))
