"""Advice follows from the tables: by hand, one cause each."""

import pandas as pd

from analysis.next_steps import next_steps

TABLE = pd.DataFrame(
    {
        "system": ["base", "LoRA", "MoE"], "role": ["base", "control", "mixture"], "wer": [0.4, 0.2, 0.18], "n_speakers": 30,
        "n_runs": [1, 3, 3],
    }
)  # fmt: skip


def pair(p_value: float, difference: float = -0.02) -> pd.DataFrame:
    row = {"system": "MoE", "base": "LoRA", "difference": difference, "low": -0.1, "high": 0.1, "p_bootstrap_holm": p_value}
    return pd.DataFrame([row])


def groups(*wer: float) -> pd.DataFrame:
    names = ["als", "cp", "typical"][: len(wer)]
    return pd.DataFrame(
        {"system": "MoE", "column": "etiology", "group": names, "wer": wer}, columns=["system", "column", "group", "wer"]
    )


def test_a_sure_difference_names_the_better_one() -> None:
    assert next_steps(TABLE, pair(0.01), groups())[0].startswith("Use MoE")
    assert next_steps(TABLE, pair(0.01, 0.02), groups())[0].startswith("Use LoRA")


def test_an_unsure_one_takes_the_simpler() -> None:
    assert next_steps(TABLE, pair(0.3), groups())[0].startswith("Take LoRA, which is simpler")


def test_the_worst_group_of_the_best_system_is_to_be_listened_to() -> None:
    assert any(
        "Listen to cp, where MoE has most errors (50.0 % WER)" in said
        for said in next_steps(TABLE, pair(1), groups(0.1, 0.5, 0.2))
    )


def test_few_speakers_come_first_and_one_seed_is_said() -> None:
    said = next_steps(TABLE.assign(n_speakers=5, n_runs=1), pair(1), groups())
    assert said[0].startswith("Test with more speakers: 5 are few") and said[-1].startswith("Train further seeds")
    assert not [line for line in next_steps(TABLE, pair(1), groups()) if "seeds on the same" in line or "more speakers" in line]
