"""The proof that people are better off with what they learnt: their held-back parts, decoded without and with it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.comparison import compare
from analysis.error_rates import count_errors
from analysis.intervals import Difference
from analysis.significance import speaker_difference
from analysis.systems import SystemScores
from moe.experts.people.options import AS_IT_IS
from moe.experts.people.person import Person
from moe.experts.people.training import Learnt, agreement
from moe.options import option
from moe.recognition.decoding import decode
from moe.system import DecodingOptions
from moe.text.normalisers import normalise
from moe.training.dataset import SpeechDataset
from steps.inputs.people import Enrolled
from steps.options.step_options import SeedOptions

NOT_WORSE, SIGNIFICANT = "not_worse", "significant"
MOST_AGREEMENT = 0.85  # reference loss by that of another sentence; above it a transcript is no more likely than any other
WITHOUT, WITH = "as it is", "with their own"


@dataclasses.dataclass(frozen=True)
class ProofOptions(DecodingOptions, SeedOptions):
    """What the held-back part must show."""

    group = "person"

    accept: str = option(NOT_WORSE, "what the held-back part must show, by person", choices=(NOT_WORSE, SIGNIFICANT), common=True)
    keep_hypotheses: bool = option(False, "log what was recognised in the held-back part, words and all")
    n_resamples: int = option(10_000, "bootstrap resamples over people", low=100)


@dataclasses.dataclass(frozen=True)
class Proof:
    """What a person's held-back part shows.

    Attributes:
        before, after: counted hypotheses of the part, as it is and with their own.
        losses: mean reference loss of the part, before and after.
        accepted: whether they get what they learnt; `why` in words.
    """

    before: pd.DataFrame
    after: pd.DataFrame
    losses: tuple[float, float]
    accepted: bool
    why: str

    @property
    def rates(self) -> tuple[float, float]:
        """Word error rates, before and after."""
        return _wer(self.before), _wer(self.after)


def prove(system: Any, enrolled: Enrolled, learnt: Sequence[Learnt], options: ProofOptions) -> list[Proof]:
    """The held-back parts decoded without and with what everybody has learnt."""
    numbers = [each.parts.held_back for each in enrolled.people]
    without = [Person(each.person.name) for each in learnt]
    tables = [_decoded(system, enrolled, people, options) for people in (without, [each.person for each in learnt])]
    plain = SpeechDataset(enrolled.recordings.rows, enrolled.recordings.root, system.inputs)
    proofs = []
    for each, part in zip(learnt, numbers, strict=True):
        ids = set(enrolled.recordings.rows["utterance_id"].iloc[part])
        before, after = (table[table["utterance_id"].isin(ids)].reset_index(drop=True) for table in tables)
        agrees = agreement(system, plain, part) <= MOST_AGREEMENT
        proofs.append(judged(each, before, after, agrees, options))
    return proofs


def _decoded(system: Any, enrolled: Enrolled, people: Sequence[Person], options: ProofOptions) -> pd.DataFrame:
    numbers = np.concatenate([each.parts.held_back for each in enrolled.people])
    whose = np.repeat(np.arange(len(people)), [len(each.parts.held_back) for each in enrolled.people])
    rows = enrolled.recordings.rows.iloc[numbers].reset_index(drop=True)
    dataset = SpeechDataset(rows, enrolled.recordings.root, system.inputs, extras={"person": whose})
    system.people = list(people)
    found = decode(system, dataset, options.part(DecodingOptions), with_loss=True, title="held back")
    system.people = []
    table = rows[["utterance_id", "duration_s", "reference"]].assign(
        speaker=[people[number].name for number in whose.tolist()],
        etiology="unknown",
        hypothesis=[normalise(system.record.normaliser, each.text) for each in found],
        error=None,
        loss=[each.utterance_loss for each in found],
    )
    return count_errors(table)


def judged(learnt: Learnt, before: pd.DataFrame, after: pd.DataFrame, agrees: bool, options: ProofOptions) -> Proof:
    """Whether a person gets what they learnt, by the counted hypotheses of their held-back part without and with it.

    Args:
        agrees: whether the transcripts fit the recordings.
    """
    losses = float(before["loss"].mean()), float(after["loss"].mean())
    rates = _wer(before), _wer(after)
    if not agrees:
        return Proof(before, after, losses, False, "the transcripts do not fit the recordings")
    if learnt.kept == AS_IT_IS:
        return Proof(before, after, losses, False, "no pass was better on the choosing part")
    if rates[1] > rates[0] or losses[1] > losses[0]:
        return Proof(before, after, losses, False, "worse on the held-back part")
    if options.accept == SIGNIFICANT:
        found = _over_utterances(after, before, options)
        if not (found.value < 0 and found.p_value < 0.05):
            return Proof(before, after, losses, False, f"not significantly better on the held-back part (p {found.p_value:.2f})")
    return Proof(
        before, after, losses, True, "no worse on the held-back part" if options.accept == NOT_WORSE else "significantly better"
    )


def _over_utterances(after: pd.DataFrame, before: pd.DataFrame, options: ProofOptions) -> Difference:
    """The difference of one person, resampled over their utterances."""
    ours, theirs = (table.assign(speaker=table["utterance_id"]) for table in (after, before))
    return speaker_difference(ours, theirs, options.n_resamples, options.seed)


def report(proofs: Sequence[Proof], options: ProofOptions) -> str:
    """A comparison of before and after over people, or over the utterances of one; of what was learnt, accepted or not, as Markdown."""
    before, after = (
        pd.concat(tables, ignore_index=True) for tables in zip(*((proof.before, proof.after) for proof in proofs), strict=True)
    )
    tables = [before, after]
    if before["speaker"].nunique() < 2:
        tables = [table.assign(speaker=table["utterance_id"]) for table in tables]
    systems = [
        SystemScores(name, "", name, role, table, metadata={"normaliser": "", "test_set_digest": "", "note": ""})
        for name, role, table in zip((WITHOUT, WITH), ("base", "candidate"), tables, strict=True)
    ]
    return compare(systems, WITHOUT, [], options.n_resamples, options.seed, plots=False).markdown()


def _wer(counted: pd.DataFrame) -> float:
    return float(counted["word_errors"].sum() / max(1, counted["n_words"].sum()))
