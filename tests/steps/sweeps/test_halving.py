"""Who trains on: the best N-th of those so far at each validation that counts, in the same step."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.sweeps.halving import History, limits_of, watched_steps
from steps.tracking.pruning import NO_LIMITS, Limits


def of(*trainings: tuple[float, ...], step: str = "ctc") -> list[History]:
    return [{(step, f"run {number}"): values} for number, values in enumerate(trainings)]


def test_a_table_by_hand():
    """One of two goes on: at the first validation the better half of 4 with the new one, at the second of 3, at the fourth of 2."""
    limits = limits_of(of((0.9, 0.5, 0.4, 0.3), (0.8, 0.6), (0.7,)), 2, "dev/wer")
    assert limits == Limits("dev/wer", {("ctc", 1): 0.8, ("ctc", 2): 0.5, ("ctc", 4): 0.3})


def test_nobody_is_stopped_before_there_are_n():
    assert limits_of([], 2, "dev/wer") == Limits("dev/wer") and limits_of(of(()), 2, "dev/wer").highest == {}
    assert limits_of(of((0.5,)), 3, "dev/wer").highest == {}
    assert limits_of(of((0.5,), (0.6,)), 3, "dev/wer").highest == {("ctc", 1): 0.5}


def test_a_training_that_trials_share_counts_once_and_steps_apart():
    shared = {("experts", "a"): (0.5, 0.4)}
    histories = [shared | {("asr", "b"): (0.3,)}, shared | {("asr", "c"): (0.2,)}, {("experts", "d"): (0.6,)}]
    assert limits_of(histories, 2, "dev/wer").highest == {("experts", 1): 0.5, ("experts", 2): 0.4, ("asr", 1): 0.2}
    assert watched_steps("whisper_moe") == ("experts", "asr") and watched_steps("single_lora") == ("baseline",)


@given(st.lists(st.lists(st.floats(0, 2), max_size=9), max_size=8), st.integers(2, 4), st.floats(0, 2))
def test_the_share_that_goes_on_is_the_one_asked_for(trainings, n, value):
    """By definition: with the new one among them, at most one in n at a validation is better than one that goes on."""
    limits = limits_of(of(*map(tuple, trainings)), n, "dev/wer")
    rungs = [n**power for power in range(4)]
    for rung, wanted in itertools.product(range(1, 10), [value]):
        held = [values[rung - 1] for values in trainings if len(values) >= rung]
        n_going_on = (len(held) + 1) // n
        stops = rung in rungs and n_going_on > 0 and sum(each < wanted for each in held) >= n_going_on
        assert bool(limits.fault("ctc", [0.0] * (rung - 1) + [wanted])) == stops
        assert not limits.fault("asr", [wanted])


def test_what_is_said_names_metric_step_validation_and_limit():
    limits = Limits("dev/cer", {("ctc", 2): 0.5})
    assert limits.fault("ctc", [0.9, 0.6]) == "pruned: dev/cer of ctc 60.0 % after 2 validations, above 50.0 %"
    assert limits.fault("ctc", [0.9]) == limits.fault("ctc", [0.9, 0.5, 0.9]) == ""
    assert limits.fault("ctc", [0.1, float("nan")]) and not NO_LIMITS.fault("ctc", [9.0])


@pytest.mark.parametrize("n", [2, 3])
def test_the_best_is_never_stopped(n):
    limits = limits_of(of((0.5, 0.4, 0.3, 0.2), (0.6, 0.5, 0.5), (0.9,)), n, "dev/wer")
    assert limits.fault("ctc", [0.4, 0.3, 0.2, 0.1]) == ""
