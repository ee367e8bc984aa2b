"""The model card says what it is for, what it was made of, where it fails, and whose licence it carries."""

import dataclasses

import pytest

from analysis.pages.model_card import CardFacts, group_table, model_card
from analysis.systems import SystemScores, counted
from tests.toys.registry import toy_hypotheses

FACTS = CardFacts(
    "whisper-moe", "openai/whisper-small", "Apache License 2.0", "en", 30.0, {"train split": "100 utterances"}, {"beams": "1"},
    {"abc": "evaluate", "def": "asr"}, "Champion: first.",
)  # fmt: skip
SCORES = SystemScores(
    "Whisper-MoE", "abc", "whisper_moe", "mixture", toy_hypotheses({"als": 0.5, "stroke": 0.2, "typical": 0.1}),
    metadata={"normaliser": "basic-1", "n_trainable": 12345, "note": ""}, expert_wer={"expert_0": 0.3, "expert_1": 0.4},
)  # fmt: skip


def test_every_part_is_there() -> None:
    card = model_card(FACTS, SCORES)
    for heading in ("Intended use", "Data", "Evaluation", "Limits", "Base model and licence", "Decoding", "Lineage"):
        assert f"\n## {heading}\n" in card
    for words in ("Not for diagnosis", "als, stroke, typical", "100 utterances", "Apache License 2.0", "12,345 parameters", "2 experts", "`def`",
                  "72 utterances of 12 speakers", "normaliser `basic-1`", "Champion: first.", "cut at quiet places"):  # fmt: skip
        assert words in card, words


def test_the_table_has_every_group_and_the_worst_is_named() -> None:
    groups = group_table(counted(SCORES))
    assert set(groups["group"].astype(str)) >= {"als", "stroke", "typical"}
    card = model_card(FACTS, SCORES)
    assert (
        all(f"| etiology | {group} |" in card for group in ("als", "stroke", "typical"))
        and "Highest error rate: etiology als" in card
    )
    assert "Fewer than 5 speakers" in card  # four of each etiology


def test_synthetic_speech_and_a_missing_licence_are_said_loudly() -> None:
    synthetic = dataclasses.replace(SCORES, metadata=SCORES.metadata | {"note": "synthetic speech"})
    card = model_card(dataclasses.replace(FACTS, base_licence=""), synthetic)
    assert "SYNTHETIC speech only" in card.split("## Intended")[0] and "not stated in the base model's files" in card
    assert "SYNTHETIC" not in model_card(FACTS, SCORES)


@pytest.mark.parametrize("columns", [["etiology"], ["etiology", "language"]])
def test_a_corpus_without_groups_has_a_card_too(columns: list[str]) -> None:
    bare = dataclasses.replace(SCORES, hypotheses=SCORES.hypotheses.drop(columns=columns))
    assert "| all | all |" in model_card(FACTS, bare)
