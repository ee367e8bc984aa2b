"""Lines that fit on a screen, whatever they are made of."""

import re

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from steps.chain.options import STAGE_NAMES, ChainOptions
from steps.chain.screen import WIDTH, opening, stage_line, table_lines

ID = "64c6e89c60254b16a5f99ed46e218a14"


def test_a_stages_line_by_hand() -> None:
    said = stage_line("asr whisper_moe", "ran", ID, 58.2, f"gate_run_id none → {ID}")
    assert said == "asr whisper_moe       ran    64c6e89c    58.2 s  (gate_run_id none → 64c6e89c)"


@given(st.sampled_from(STAGE_NAMES), st.sampled_from(["ran", "reused"]), st.floats(0, 1e6), st.text())
def test_a_stages_line_is_one_line_that_fits_and_begins_with_what_happened(
    name: str, word: str, seconds: float, reason: str
) -> None:
    said = stage_line(name, word, ID, seconds, reason)
    assert len(said) <= WIDTH and len(said.splitlines()) == 1 and said.split()[:3] == [name, word, ID[:8]]
    assert said.endswith(")") and re.search(r"\d s  \(", said)


def test_the_opening_fits_whatever_is_asked_for() -> None:
    assert len(opening(ChainOptions(systems="whisper_moe,single_lora,zero_shot", seed=10**200))) == WIDTH


def test_a_table_by_hand() -> None:
    table = pd.DataFrame(
        {"system": ["base", "a LoRA"], "runs": [3, 3], "WER": ["40.8 %", "7.9 %"], "utterances/s": [114.2, None]}
    )
    assert table_lines(table) == [
        "system  WER     utterances/s",
        "base    40.8 %  114",
        "a LoRA  7.9 %   –",
    ]
