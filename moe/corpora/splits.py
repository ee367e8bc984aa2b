"""Which speakers are trained on, tuned on and tested on.

A split is by whole speakers, always. A corpus's own split is kept where it has one and refused where a speaker is on two sides;
what it lacks (a test or a dev part) is held out of its train part by speaker.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe.corpora.formats.split_names import split_name
from moe.corpora.leaks import LeakError, refuse_leaks

__all__ = ["MODES", "LeakError", "SplitPlan", "assign_splits"]

MODES = ("auto", "own", "by_speaker", "k_fold", "leave_one_speaker_out")
EVALUATE_ONLY = "dev_share=0 to evaluate only (all training needs a dev split)"
N_TRIES = 20  # random orders of speakers, of which the one that fits best is taken
MIN_SPEAKERS_FOR_SEVERITY = 6  # with fewer in an etiology, halves by severity would be single speakers


@dataclass(frozen=True)
class SplitPlan:
    """How to split.

    Attributes:
        mode: one of `MODES`; `auto` is the corpus's own split where it has one, else `by_speaker`.
        dev_share, test_share: share of the utterances to hold out; 0 holds nothing out.
        fold, n_folds: the test fold of `k_fold`.
        test_speaker: the test speaker of `leave_one_speaker_out`.
        complete_dev: hold out dev also of etiologies that the corpus's own dev has not.
    """

    mode: str = "auto"
    dev_share: float = 0.1
    test_share: float = 0.1
    seed: int = 0
    fold: int = 0
    n_folds: int = 5
    test_speaker: str | None = None
    complete_dev: bool = False


def assign_splits(utterances: pd.DataFrame, plan: SplitPlan) -> pd.Series:
    """The split of every utterance, aligned with the table.

    Args:
        utterances: columns utterance_id, reference, speaker, etiology, severity, split (the corpus's own, possibly empty).

    Raises:
        LeakError: the corpus's own split has a speaker on two sides.
        ValueError: too few speakers, or an own split that is incomplete, not understood or empty.
    """
    mode = plan.mode
    own = utterances["split"].fillna("")
    if mode == "auto":
        mode = "own" if (own != "").any() else "by_speaker"
    if mode == "own":
        split = _own(utterances, own)
        refuse_leaks(utterances.assign(split=split))
        return _complete_own(utterances, split, plan)
    speakers = _speaker_table(utterances)
    if mode == "leave_one_speaker_out":
        test = _one_speaker(speakers, plan)
    elif mode == "k_fold":
        test = _fold(speakers, plan)
    else:
        test = _hold_out_test(speakers, plan)
    dev = _hold_out_dev(speakers[~speakers["speaker"].isin(test)], plan)
    return _by_speaker(utterances, test, dev)


def _own(utterances: pd.DataFrame, own: pd.Series) -> pd.Series:
    without = own == ""
    if without.any():
        first = utterances.loc[without, "utterance_id"].iloc[0]
        raise ValueError(
            f"split=own: {int(without.sum())} of {len(own)} utterances have no split of their own "
            f"(first {first!r}); use split=by_speaker"
        )
    return own.map({name: split_name(name) for name in own.unique()})


def _complete_own(utterances: pd.DataFrame, split: pd.Series, plan: SplitPlan) -> pd.Series:
    """An own split without test or dev gets it from its train speakers, as long as no speaker would leak by that."""
    split = split.copy()
    for name, share, hold_out in (("test", plan.test_share, _hold_out_test), ("dev", plan.dev_share, _hold_out_dev)):
        train = split == "train"
        if share > 0 and train.any() and not (split == name).any():
            held = hold_out(_speaker_table(utterances[train]), plan)
            split[train & utterances["speaker"].isin(held)] = name
    if plan.complete_dev and plan.dev_share > 0 and (split == "dev").any():
        split[utterances["speaker"].isin(_dev_of_lacking(utterances, split, plan))] = "dev"
    if not (split == "train").any():
        raise ValueError(f"split=own: no utterance is in train (there are {', '.join(sorted(split.unique()))})")
    return split


def _dev_of_lacking(utterances: pd.DataFrame, split: pd.Series, plan: SplitPlan) -> list[str]:
    """Train speakers for dev of every etiology that has train but no dev of its own, where it has speakers to spare."""
    train = utterances[split == "train"]
    lacking = set(train["etiology"]) - set(utterances.loc[split == "dev", "etiology"])
    held: list[str] = []
    for etiology in sorted(lacking):
        speakers = _speaker_table(train[train["etiology"] == etiology])
        whole = speakers[speakers["speaker"].map(train.groupby("speaker")["etiology"].nunique()) == 1]
        if len(whole) > 1:
            held += _hold_out(whole, plan.dev_share, 1, np.random.default_rng([plan.seed, 2]))
    return held


def _by_speaker(utterances: pd.DataFrame, test: list[str], dev: list[str]) -> pd.Series:
    place = dict.fromkeys(test, "test") | dict.fromkeys(dev, "dev")
    return utterances["speaker"].map(lambda speaker: place.get(speaker, "train"))


def _speaker_table(utterances: pd.DataFrame) -> pd.DataFrame:
    """speaker, stratum, n: one row per speaker, sorted; a stratum is an etiology, or half of it by severity."""
    grouped = utterances.groupby("speaker", sort=True)
    speakers = grouped.agg(n=("utterance_id", "size"), severity=("severity", "mean")).reset_index()
    main = utterances.groupby(["speaker", "etiology"], sort=True).size().reset_index(name="n")
    main = main.sort_values(["speaker", "n", "etiology"], ascending=[True, False, True]).drop_duplicates("speaker")
    etiology = speakers["speaker"].map(main.set_index("speaker")["etiology"])
    return speakers.assign(stratum=_strata(etiology, speakers["severity"]))


def _strata(etiology: pd.Series, severity: pd.Series) -> pd.Series:
    rank = severity.groupby(etiology).rank(method="first")
    n_known = severity.notna().groupby(etiology).transform("sum")
    n_all = etiology.groupby(etiology).transform("size")
    halved = (n_known == n_all) & (n_known >= MIN_SPEAKERS_FOR_SEVERITY)
    return etiology.where(~halved, etiology + np.where(rank > n_known / 2, "/high", "/low"))


def _hold_out_test(speakers: pd.DataFrame, plan: SplitPlan) -> list[str]:
    if plan.test_share <= 0:
        return []
    needed = 3 if plan.dev_share > 0 else 2
    if len(speakers) < needed:
        names, spared = ", ".join(speakers["speaker"]), f", or {EVALUATE_ONLY}" if len(speakers) == 2 else ""
        raise ValueError(
            f"{len(speakers)} speakers ({names}): a speaker-disjoint split into train, dev and test needs at least {needed}{spared}"
        )
    spare = 1 + (plan.dev_share > 0)
    return _hold_out(speakers, plan.test_share, spare, np.random.default_rng([plan.seed, 1]))


def _hold_out_dev(rest: pd.DataFrame, plan: SplitPlan) -> list[str]:
    if plan.dev_share <= 0:
        return []
    if len(rest) < 2:
        names = ", ".join(rest["speaker"])
        raise ValueError(f"{len(rest)} speakers left for train and dev ({names}): at least 2 are needed, or {EVALUATE_ONLY}")
    share = plan.dev_share / (1 - plan.test_share) if plan.test_share < 1 else plan.dev_share
    return _hold_out(rest, share, 1, np.random.default_rng([plan.seed, 2]))


def _hold_out(speakers: pd.DataFrame, share: float, spare: int, rng: np.random.Generator) -> list[str]:
    """Speakers to hold out: of every stratum as near to the share as whole speakers allow, and one where it can spare one."""
    held = []
    for _, stratum in speakers.groupby("stratum", sort=True):
        most = max(len(stratum) - spare, min(1, len(stratum) - 1))
        held += _nearest(stratum, share, most, rng)
    return held or _nearest(speakers, share, max(1, len(speakers) - spare), rng)


def _nearest(speakers: pd.DataFrame, share: float, most: int, rng: np.random.Generator) -> list[str]:
    """Between 1 and `most` speakers whose utterances come nearest to the share, among `N_TRIES` random orders."""
    tries = [_in_turn(speakers.iloc[rng.permutation(len(speakers))], share * speakers["n"].sum(), most) for _ in range(N_TRIES)]
    return min(tries, key=lambda held: held[0])[1]


def _in_turn(shuffled: pd.DataFrame, wanted: float, most: int) -> tuple[float, list[str]]:
    """Speakers taken in turn while that brings their utterances nearer to what is wanted, and how far from it they end."""
    taken, held = 0, list[str]()
    for speaker, n in zip(shuffled["speaker"], shuffled["n"], strict=True):
        if len(held) < most and (not held or abs(taken + n - wanted) < abs(taken - wanted)):
            held.append(speaker)
            taken += n
    return abs(taken - wanted), held


def _one_speaker(speakers: pd.DataFrame, plan: SplitPlan) -> list[str]:
    known = list(speakers["speaker"])
    if plan.test_speaker is None or plan.test_speaker not in known:
        raise ValueError(f"test_speaker={plan.test_speaker!r}: the corpus's speakers are {', '.join(known[:20])}")
    if len(known) < 2:
        raise ValueError(f"test_speaker={plan.test_speaker!r}: is the only speaker; leave_one_speaker_out needs at least 2")
    return [plan.test_speaker]


def _fold(speakers: pd.DataFrame, plan: SplitPlan) -> list[str]:
    """Fold number `fold`: the speakers of every stratum are dealt to the folds in turn, strata one after another."""
    if not 0 <= plan.fold < plan.n_folds:
        raise ValueError(f"fold={plan.fold}: must be from 0 to n_folds − 1 = {plan.n_folds - 1}")
    if len(speakers) < plan.n_folds:
        raise ValueError(f"n_folds={plan.n_folds}: the corpus has only {len(speakers)} speakers")
    rng = np.random.default_rng([plan.seed, 3])
    dealt = pd.concat([stratum.iloc[rng.permutation(len(stratum))] for _, stratum in speakers.groupby("stratum", sort=True)])
    return list(dealt["speaker"].iloc[plan.fold :: plan.n_folds])
