"""Rows of the CTC's benchmark are chains that can start, and their table says what the hypotheses hold."""

from pathlib import Path

import pandas as pd
import pytest

from analysis.error_rates import count_errors
from benchmarks.ctc import GROUPS, ROWS, options_of, table
from moe.corpora.tables import write_table
from moe.files import write_json
from steps.main import check_stages


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_a_chain_that_can_start(row: str) -> None:
    options = options_of(row, 1)
    check_stages(options)
    assert options.seed == 1 and options.corpus_seed == 42
    assert options.systems == ("zero_shot" if "Whisper" in row else options.systems) and options.synthetic_language == row[:2]


def test_the_table_has_a_line_for_each_row_and_search_over_all_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        rows = [("a b", "a b", GROUPS[0], "s0"), ("a c", "a b", GROUPS[1], "s1"), ("a d", "x", GROUPS[2], "s2")]
        found = pd.DataFrame(rows, columns=["reference", "hypothesis", "novelty", "speaker"]).assign(
            utterance_id=["u0", "u1", "u2"]
        )
        counted = count_errors(found)
        write_table(tmp_path / f"ne-{seed}.parquet", pd.concat([counted.assign(search=name) for name in ("greedy", "beams")]))
        facts = {"row": "ne", "seed": seed, "cpu_minutes": 2.0, "n_trainable": 10, "n_total": 20}
        write_json(tmp_path / f"ne-{seed}.json", facts)
    lines = table(tmp_path).splitlines()
    assert len(lines) == 4 and "greedy | 2 | 10 of 20 | 50.0 %" in lines[2] and "beams" in lines[3]
