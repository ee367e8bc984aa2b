"""The bootstrap over speakers: against a plain loop, against theory, its coverage, and pairing."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import intervals
from analysis.intervals import (
    bootstrap_interval,
    bootstrap_intervals,
    paired_difference,
    resampled_rates,
    smallest_visible,
    speaker_sums,
    widened_tail,
)


def loop_bootstrap(errors, lengths, n_resamples, seed):
    generator = np.random.default_rng(seed)
    rates = []
    for _ in range(n_resamples):
        drawn = generator.choice(len(errors), len(errors))
        rates.append(errors[drawn].sum() / lengths[drawn].sum())
    return np.array(rates)


def test_resampled_rates_follow_the_distribution_of_a_plain_loop():
    generator = np.random.default_rng(1)
    errors, lengths = generator.integers(0, 30, 12).astype(float), generator.integers(30, 90, 12).astype(float)
    ours = resampled_rates(np.stack([errors, lengths], axis=1), 4000, seed=2)[:, 0]
    theirs = loop_bootstrap(errors, lengths, 4000, seed=3)
    assert stats.ks_2samp(ours, theirs).pvalue > 0.01
    assert ours.std() == pytest.approx(theirs.std(), rel=0.06)


def test_two_speakers_give_the_three_rates_that_resampling_can_give():
    rates = resampled_rates(np.array([[1.0, 10.0], [9.0, 10.0]]), 4000, seed=0)[:, 0]
    values, counts = np.unique(rates, return_counts=True)
    assert values.tolist() == [0.1, 0.5, 0.9]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_blocks_do_not_change_the_answer(monkeypatch):
    counts = np.random.default_rng(0).random((7, 3))
    whole = resampled_rates(counts, 500, seed=4)
    monkeypatch.setattr(intervals, "BLOCK_DRAWS", 70)
    np.testing.assert_allclose(resampled_rates(counts, 500, seed=4), whole, rtol=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    errors, lengths = np.arange(10.0), np.full(10, 20.0)
    assert bootstrap_interval(errors, lengths, seed=1) == bootstrap_interval(errors, lengths, seed=1)
    assert bootstrap_interval(errors, lengths, seed=1) != bootstrap_interval(errors, lengths, seed=2)


def test_speakers_and_not_utterances_are_resampled():
    """Ten utterances of each of four speakers who differ: taken as forty independent ones the interval is far too narrow."""
    table = pd.DataFrame({"speaker": np.repeat(list("abcd"), 10), "e": np.repeat([0, 2, 6, 9], 10), "n": 10})
    by_speaker = bootstrap_interval(*speaker_sums(table, ["e", "n"]).T)
    by_utterance = bootstrap_interval(table["e"].to_numpy(), table["n"].to_numpy())
    assert by_speaker.high - by_speaker.low > 2.5 * (by_utterance.high - by_utterance.low)


def test_the_interval_of_a_mean_matches_the_t_interval():
    errors = np.random.default_rng(5).normal(50, 10, 15)
    found = bootstrap_interval(errors, np.full(15, 100.0), n_resamples=40_000)
    low, high = stats.t.interval(0.95, 14, errors.mean() / 100, stats.sem(errors) / 100)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


@pytest.mark.parametrize("n_speakers", [12, 40])
def test_coverage_over_a_thousand_draws_is_95_percent_within_2(n_speakers):
    """Each draw: speakers with their own error rate and amount of speech; the truth is the population's ratio."""
    generator, n_draws = np.random.default_rng(6), 1000
    rates = generator.beta(4, 12, (n_draws, n_speakers))
    lengths = generator.integers(80, 160, (n_draws, n_speakers))
    errors = generator.binomial(lengths, rates)
    covered = 0
    for draw in range(n_draws):
        found = bootstrap_interval(errors[draw], lengths[draw], n_resamples=1000, seed=draw)
        covered += found.low <= 0.25 <= found.high
    assert covered / n_draws == pytest.approx(0.95, abs=0.02)


def test_without_speakers_to_resample_there_is_no_interval():
    assert np.isnan(bootstrap_intervals(np.array([[1.0, 2.0]]))).all()
    assert np.isnan(bootstrap_intervals(np.array([[0.0, 0.0], [0.0, 0.0]]))).all()
    assert np.isnan(paired_difference(np.array([1.0]), np.array([2.0]), np.array([9.0])).p_value)


def test_few_speakers_widen_the_tail_and_many_do_not():
    assert widened_tail(0.95, 5) < widened_tail(0.95, 20) < 0.025
    assert widened_tail(0.95, 100_000) == pytest.approx(0.025, abs=1e-4)


def test_pairing_removes_what_speakers_share():
    generator = np.random.default_rng(7)
    hard, lengths = generator.uniform(5, 80, 20), np.full(20, 100.0)
    better = hard - generator.uniform(2, 4, 20)
    found = paired_difference(better, hard, lengths)
    alone = bootstrap_interval(better, lengths)
    assert found.high < 0 and found.p_value < 0.001
    assert (found.high - found.low) < 0.1 * (alone.high - alone.low)
    assert found.value == pytest.approx((better - hard).sum() / lengths.sum())


def test_interval_and_p_value_agree_about_significance():
    for seed in range(60):
        generator = np.random.default_rng(seed)
        difference = generator.normal(0.8, 1.2, 10)
        found = paired_difference(50 + difference, np.full(10, 50.0), np.full(10, 100.0), n_resamples=2000, seed=seed)
        if abs(found.p_value - 0.05) > 0.003:  # at the very edge quantile and count round differently
            assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


def test_p_values_are_uniform_where_nothing_differs():
    generator, p_values = np.random.default_rng(8), []
    for seed in range(400):
        difference = generator.normal(0, 1, 14)
        p_values.append(paired_difference(difference, np.zeros(14), np.full(14, 10.0), n_resamples=600, seed=seed).p_value)
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.08)


def test_swapping_the_systems_turns_the_difference_round():
    a, b, n = np.arange(8.0), np.arange(8.0)[::-1] ** 1.2, np.full(8, 30.0)
    one, other = paired_difference(a, b, n), paired_difference(b, a, n)
    assert one.value == -other.value and one.low == pytest.approx(-other.high) and one.p_value == pytest.approx(other.p_value)


def test_equal_systems_differ_by_nothing_with_p_one():
    found = paired_difference(np.arange(6.0), np.arange(6.0), np.full(6, 10.0))
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_the_standard_error_of_a_difference_is_that_of_a_mean_over_equal_speakers():
    """With equal lengths the rate is a mean over speakers, whose standard error is known: s / √n."""
    generator = np.random.default_rng(5)
    errors, base, lengths = generator.integers(0, 9, 40), generator.integers(0, 9, 40), np.full(40, 10.0)
    found = paired_difference(errors, base, lengths, n_resamples=20_000)
    each = (errors - base) / 10
    assert found.error == pytest.approx(each.std(ddof=1) / np.sqrt(40), rel=0.03)
    assert np.isnan(paired_difference(errors[:1], base[:1], lengths[:1]).visible)


@pytest.mark.parametrize("n_more", [0, 3])
def test_errors_that_do_not_vary_do_not_say_what_a_test_can_see(n_more: int) -> None:
    """The same number of errors by both, and every speaker's the same number more."""
    errors, lengths = np.array([5, 9, 2, 0]), np.full(4, 10.0)
    found = paired_difference(errors + n_more, errors, lengths)
    assert found.value == pytest.approx(n_more / 10) and found.error == pytest.approx(0.0, abs=1e-12) and np.isnan(found.visible)


def test_a_difference_of_the_visible_size_is_found_in_four_of_five_tries():
    """Simulated: normal differences of 30 speakers, shifted by what the test says that it can see."""
    generator, n = np.random.default_rng(6), 30
    size = smallest_visible(1 / np.sqrt(n), n)
    found = stats.ttest_1samp(generator.normal(size, 1, (20_000, n)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.015)
