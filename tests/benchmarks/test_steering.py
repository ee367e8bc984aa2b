"""The rows of the steering benchmark: each is a chain that can be asked for, with files of its own, above one option file."""

from pathlib import Path

import pytest

from benchmarks.rows import file_of
from benchmarks.steering import QUESTIONS, ROWS, options_of


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_what_main_takes(row: str) -> None:
    options = options_of(row, seed=3)
    assert (options.seed, options.corpus_seed, options.corpus) == (3, 42, "synthetic")


def test_an_option_file_stands_beneath_every_row(tmp_path: Path) -> None:
    file = tmp_path / "real.yaml"
    file.write_text(f"corpus: folder\ndataset_root: {tmp_path}\nsteer_experts: 4\nsteer_epochs: 2\nseed: 9\n", encoding="utf-8")
    main, nothing = options_of("8 experts", 1, str(file)), options_of("projector alone", 1, str(file))
    assert (main.corpus, main.steer_epochs, main.steer_experts, main.seed) == ("folder", 2, 4, 1)
    assert (nothing.steer_epochs, nothing.steer_experts) == (2, 0)


def test_every_question_is_of_two_rows() -> None:
    assert {name for pair in QUESTIONS.values() for name in pair} <= set(ROWS)


def test_every_row_has_files_of_its_own(tmp_path: Path) -> None:
    files = {file_of(tmp_path, row, seed, ending) for row in ROWS for seed in (0, 1) for ending in (".json", ".db")}
    assert len(files) == 4 * len(ROWS) and file_of(tmp_path, "vectors at 0.3", 0, ".json").name == "vectors_at_0.3-0.json"
