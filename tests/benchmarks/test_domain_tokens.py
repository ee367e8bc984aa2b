"""The table of domain tokens: its rows can be trained, and what was measured stands in it with its tests."""

from pathlib import Path

import pandas as pd
import pytest

from analysis.error_rates import count_errors
from benchmarks.domain_tokens import table
from benchmarks.domain_tokens.corpora import DEMO, RULE, WITH, WITHOUT, without_articles
from benchmarks.domain_tokens.measuring import ASKS
from benchmarks.domain_tokens.rows import ROWS, RowOptions
from moe.files import write_json
from moe.options import NONE


def write(folder: Path, corpus: str, row: str, seed: int, wrong: dict[str, int], domains: tuple[str, str]) -> None:
    """Six utterances of four words; under each token some words are wrong."""
    path = folder / f"{corpus}_{row.replace(' ', '_')}_{seed}"
    path.mkdir(parents=True)
    for asked in ASKS if "no tokens" not in row else ("none",):
        rows = [
            {"utterance_id": f"u{n}", "speaker": f"s{n}", "etiology": ("als", "typical")[n % 2], "reference": "a b c d",
             "hypothesis": " ".join(["x"] * wrong.get(asked, 0) + ["a", "b", "c", "d"][wrong.get(asked, 0) :]), "domain": domains[n % 2]}
            for n in range(6)
        ]  # fmt: skip
        count_errors(pd.DataFrame(rows)).to_parquet(path / f"{asked}.parquet")
    write_json(path / "facts.json", {"row": row, "seed": seed, "n_trainable": 7, "training_seconds": 60.0})


@pytest.mark.parametrize(("corpus", "row"), [(corpus, row) for corpus in ROWS for row in ROWS[corpus]])
def test_every_row_is_a_training_that_can_be_asked_for(corpus: str, row: str) -> None:
    RowOptions(**ROWS[corpus][row])
    assert row not in ("all", NONE)  # which ask for every row, and for none


def test_rows_tokens_and_tests_stand_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "FOLDER", tmp_path / "kept")
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    for seed in (0, 1):
        write(tmp_path / "kept", DEMO, "two domains", seed, {"wrong": 2, "none": 1}, ("atypical", "normal"))
        write(tmp_path / "kept", DEMO, "no tokens", seed, {}, ("atypical", "normal"))
    write(tmp_path / "kept", RULE, "blocks", 0, {"wrong": 1}, (WITH, WITHOUT))
    text = table.write_table()
    assert text == (tmp_path / "domain_tokens.md").read_text()
    rows = {tuple(cell.strip() for cell in line.split("|")[1:4]): line for line in text.splitlines() if line.startswith("|")}
    assert "50.0 %" in rows["two domains", "wrong", "2"] and "0.0 %" in rows["two domains", "right", "2"]
    assert "25.0 %" in rows["blocks", WITH, "the other"] and "0.0 %" in rows["blocks", WITHOUT, "wanted"]
    assert ("two domains: right", "no tokens: none", "2") in rows and ("two domains: right", "two domains: wrong", "2") in rows


def test_articles_alone_are_left_out() -> None:
    assert without_articles("the cat saw a bird and an oak") == "cat saw bird and oak"
