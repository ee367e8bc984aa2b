"""Scores by the rules of the Speech Accessibility Project challenges, by name, beside the project's own rates.

Both rules take two references, with and without disfluencies, keep the better one of each utterance, and clip each utterance at
100 %. `sapc1` (2025) ranks by WER; `sapc2` (2026) ranks by CER and forgives unknown words, written `unk` in the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import pandas as pd

from analysis.hypotheses import check_hypotheses

PLAIN = "plain"  # no challenge: the project's own rates alone
FLUENT = "reference_fluent"  # second reference, without disfluencies
UNKNOWN_WORD = "unk"
MOST_WORDS, MOST_CHARS = 512, 64  # of a hypothesis and of one of its words; the challenge cuts what goes beyond


@dataclass(frozen=True)
class ChallengeRule:
    """What a challenge ranks by and whether unknown words are forgiven."""

    name: str
    primary: str  # "wer" or "cer"
    forgives_unknown: bool


@dataclass(frozen=True)
class ChallengeScore:
    """Rates by a rule; `two_references` is False where the table has only one and it served as both."""

    rule: str
    primary: float
    wer: float
    cer: float
    n_utterances: int
    two_references: bool


RULES = {rule.name: rule for rule in (ChallengeRule("sapc1", "wer", False), ChallengeRule("sapc2", "cer", True))}


def challenge_score(table: pd.DataFrame, rule: str) -> ChallengeScore:
    """Score a hypotheses table by the rule of that name; `reference_fluent` is the second reference if the table has it.

    Raises:
        ValueError: no such rule, or a table that cannot be scored.
    """
    if rule not in RULES:
        raise ValueError(f"scoring={rule!r}: must be one of {', '.join(RULES)}")
    check_hypotheses(table)
    chosen = RULES[rule]
    hypotheses = [_cut(hypothesis) for hypothesis in table["hypothesis"]]
    sides = [table[column].tolist() for column in ("reference", FLUENT) if column in table]
    pairs = [_forgiven(side, hypotheses) if chosen.forgives_unknown else (side, hypotheses) for side in sides]
    wer, cer = (
        _best_rate([_lengths_and_errors(said, recognised, unit) for said, recognised in pairs]) for unit in ("word", "char")
    )
    return ChallengeScore(rule, wer if chosen.primary == "wer" else cer, wer, cer, len(table), len(sides) == 2)


def _forgiven(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[list[str], list[str]]:
    """References and hypotheses with unknown words made harmless.

    In the alignment of words: `unk` for which another word was recognised becomes that word, `unk` for which none was recognised
    is dropped, and `unk` that the recogniser made up is dropped.
    """
    output = jiwer.process_words(list(references), list(hypotheses))
    kept = [_forgive(*row) for row in zip(output.references, output.hypotheses, output.alignments, strict=True)]
    return [reference for reference, _ in kept], [hypothesis for _, hypothesis in kept]


def _forgive(reference: list[str], hypothesis: list[str], chunks: list[jiwer.AlignmentChunk]) -> tuple[str, str]:
    said: list[str] = []
    hypothesis_words: list[str] = []
    for chunk in chunks:
        before, after = reference[chunk.ref_start_idx : chunk.ref_end_idx], hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "substitute":
            before = [new if old == UNKNOWN_WORD else old for old, new in zip(before, after, strict=True)]
        if chunk.type == "delete":
            before = [word for word in before if word != UNKNOWN_WORD]
        if chunk.type == "insert":
            after = [word for word in after if word != UNKNOWN_WORD]
        said, hypothesis_words = said + before, hypothesis_words + after
    return " ".join(said), " ".join(hypothesis_words)


def _lengths_and_errors(references: Sequence[str], hypotheses: Sequence[str], unit: str) -> np.ndarray:
    """Clipped errors and reference length of each utterance, shape (n_utterances, 2); an empty reference is not clipped."""
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    output = process(list(references), list(hypotheses))
    lengths = np.array([len(reference) for reference in output.references], np.float64)
    errors = np.array([_n_errors(chunks) for chunks in output.alignments], np.float64)
    return np.stack([np.where(lengths > 0, np.minimum(errors, lengths), errors), lengths], axis=1)


def _n_errors(chunks: list[jiwer.AlignmentChunk]) -> int:
    return sum(
        max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for chunk in chunks
        if chunk.type != "equal"
    )


def _best_rate(counts: list[np.ndarray]) -> float:
    """Ratio of sums over the better reference of each utterance; equally good ones count half each."""
    sides = np.stack(counts)  # (n_references, n_utterances, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.where(sides[..., 1] > 0, sides[..., 0] / sides[..., 1], np.inf)
    best = rates == rates.min(axis=0)
    errors, length = ((sides * best[..., None]).sum(axis=0) / best.sum(axis=0)[:, None]).sum(axis=0)
    return float(errors / length) if length else float("nan")


def _cut(hypothesis: str) -> str:
    return " ".join(word[:MOST_CHARS] for word in hypothesis.split()[:MOST_WORDS])
