"""Subsets nest, keep every etiology and do not depend on the order of rows."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.corpora.subsets import at_most, stage_percent, subset


def manifest(sizes: dict[str, int], splits: tuple[str, ...] = ("train",)) -> pd.DataFrame:
    rows = [
        (f"{etiology}-{split}-{k:04d}", etiology, split) for etiology, n in sizes.items() for split in splits for k in range(n)
    ]
    return pd.DataFrame(rows, columns=["utterance_id", "etiology", "split"])


CORPUS = manifest({"als": 70, "stroke": 23, "rare": 1}, ("train", "dev"))
PERCENT = st.floats(0.01, 100)


@given(p=PERCENT, q=PERCENT, seed=st.integers(0, 5))
def test_a_smaller_percentage_lies_within_a_larger(p, q, seed):
    """Pitfall 7: utterances of one stage were missing in another, since stages drew apart."""
    small, large = sorted((p, q))
    assert set(subset(CORPUS, small, seed)) <= set(subset(CORPUS, large, seed))


@given(p=PERCENT, seed=st.integers(0, 5))
def test_every_stratum_gives_its_share_rounded_up(p, seed):
    drawn = CORPUS[CORPUS["utterance_id"].isin(subset(CORPUS, p, seed))]
    for key, rows in CORPUS.groupby(["split", "etiology"]):
        n = int((drawn[["split", "etiology"]] == list(key)).all(axis=1).sum())
        assert n == math.ceil(p * len(rows) / 100 - 1e-9)


@given(order=st.permutations(range(20)), p=PERCENT)
def test_row_order_does_not_matter(order, p):
    """Pitfall 13: order by id before sampling."""
    rows = CORPUS.head(20)
    assert subset(rows.iloc[order], p, 3) == subset(rows, p, 3)
    assert at_most(rows.iloc[order], 7, 3) == at_most(rows, 7, 3)


def test_whole_and_by_hand():
    assert subset(CORPUS, 100, 1) == sorted(CORPUS["utterance_id"])
    assert len(subset(CORPUS, 29, 0)) == 2 * (21 + 7 + 1)  # 20.3, 6.67 and 0.29, rounded up
    assert len(subset(manifest({"a": 100}), 29, 0)) == 29  # 0.29 · 100 is below 29 in floating point


def test_another_seed_draws_others():
    assert subset(CORPUS, 10, 0) != subset(CORPUS, 10, 1)


def test_stages_scale_together():
    n = len(CORPUS)
    assert stage_percent(5, 50, 0, n) == 2.5 and stage_percent(5, 50, n, n) == 50
    stages = [set(subset(CORPUS, stage_percent(*percents, 0, n), 0)) for percents in ((5, 50), (15, 50), (100, 50), (100, 60))]
    assert all(small < large for small, large in zip(stages, stages[1:], strict=False))


@pytest.mark.parametrize("percent", [0, -1, 100.1, float("nan")])
def test_percentages_out_of_range_are_refused_by_name(percent):
    with pytest.raises(ValueError, match="percent=.*above 0 and at most 100"):
        subset(CORPUS, percent, 0)
    with pytest.raises(ValueError, match="without utterances"):
        subset(CORPUS.iloc[:0], 5, 0)


@given(n=st.integers(6, 200), seed=st.integers(0, 3))
def test_at_most_draws_that_many_nested_and_evenly(n, seed):
    drawn = at_most(CORPUS, n, seed)
    assert len(drawn) == min(n, len(CORPUS)) and set(drawn) <= set(at_most(CORPUS, n + 1, seed))
    shares = CORPUS.assign(drawn=CORPUS["utterance_id"].isin(drawn)).groupby(["split", "etiology"])["drawn"].agg(["mean", "size"])
    assert (abs(shares["mean"] - len(drawn) / len(CORPUS)) * shares["size"] <= 2).all() and (shares["mean"] > 0).all()


def test_at_most_refuses_to_lose_an_etiology():
    with pytest.raises(ValueError, match="max_samples=5: must be at least 6"):
        at_most(CORPUS, 5, 0)


def test_draws_are_uniform():
    """Over many seeds every utterance is drawn about as often as any other."""
    rows = manifest({"a": 40})
    counts = pd.Series([name for seed in range(400) for name in subset(rows, 25, seed)]).value_counts()
    assert len(counts) == 40 and np.abs(counts / 400 - 0.25).max() < 0.11  # five standard deviations
