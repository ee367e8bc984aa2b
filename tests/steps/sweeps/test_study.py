"""What is drawn: within the space, the same again at every start, each combination of a grid once; and what a study says of options."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

optuna = pytest.importorskip("optuna")

from steps.sweeps.space import Range, Values  # noqa: E402
from steps.sweeps.study import IMPORTANCE, PARALLEL, SAMPLERS, Result, Try, figures, importance, search  # noqa: E402

LISTS = [Values("k", (1, 2, None)), Values("word", ("a", "b")), Values("fast", (True, False))]
SPACE = [*LISTS, Range("share", 0.2, 0.8), Range("rate", 1e-4, 1e-1, True), Range("n", 2, 9)]


def cost(values: dict[str, Any]) -> float:
    return (values["k"] or 3) * 0.1 + abs(values.get("share", 0.5) - 0.4)


def one_by_one(judge: Callable[[int, dict[str, Any]], float]) -> Try:
    """Trials that each find what `judge` says of their number and values."""

    def attempt(first: int, values: Sequence[dict[str, Any]]) -> list[Result]:
        return [Result(judge(first + number, each)) for number, each in enumerate(values)]

    return attempt


def drawn(sampler: str, n: int, seed: int = 3, until: int | None = None, n_parallel: int = 1) -> list[dict[str, Any]]:
    """The values of the first trials, or of those before a start was stopped."""
    found: list[dict[str, Any]] = []

    def judge(number: int, values: dict[str, Any]) -> float:
        assert number == len(found)
        if number == until:
            raise KeyboardInterrupt
        found.append(values)
        return cost(values)

    try:
        search(sampler, LISTS if sampler == "grid" else SPACE, n, seed, one_by_one(judge), n_parallel)
    except KeyboardInterrupt:
        assert until is not None
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("until", [0, 1, 11])
def test_a_start_after_a_stop_asks_for_the_same_trials(sampler: str, until: int) -> None:
    whole = drawn(sampler, 14)
    assert drawn(sampler, 14, until=until) == whole[:until] and drawn(sampler, 14) == whole
    assert drawn(sampler, 12) == whole[:12]  # more trials later go on where fewer ended
    assert drawn(sampler, 14, seed=4) != whole


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trials_side_by_side_are_drawn_together_and_the_same_at_each_start(sampler: str) -> None:
    whole = drawn(sampler, 11, n_parallel=4)
    assert len(whole) == 11 and drawn(sampler, 11, n_parallel=4) == whole
    assert drawn(sampler, 8, n_parallel=4) == whole[:8] and len({str(each) for each in whole}) == 11
    sizes: list[int] = []
    search("random", SPACE, 11, 3, lambda first, values: sizes.append(len(values)) or [Result(0.5)] * len(values), 4)
    assert sizes == [4, 4, 3]


def test_a_pruned_trial_tells_the_sampler_how_far_it_came() -> None:
    study = search("tpe", SPACE, 3, 0, lambda first, values: [Result(0.5, 3) if first == 1 else Result(0.4)])
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert study.trials[1].intermediate_values == {3: 0.5} and importance(study) == {}


def test_the_parzen_estimator_goes_where_trials_were_good() -> None:
    late = [cost(values) for values in drawn("tpe", 60)[40:]]
    assert sum(late) / len(late) < 0.75 * sum(map(cost, drawn("random", 60))) / 60


def test_a_grid_has_each_combination_once_and_ends_there() -> None:
    found = drawn("grid", 1000)
    wanted = itertools.product(*(dimension.values for dimension in LISTS))
    assert sorted(map(str, (tuple(values.values()) for values in found))) == sorted(map(str, wanted))


@settings(max_examples=25)
@given(st.floats(1e-3, 5), st.floats(1e-3, 5), st.booleans(), st.integers(0, 9))
def test_a_number_lies_in_its_range_and_has_few_digits(first: float, second: float, log: bool, seed: int) -> None:
    low, high = min(first, second), max(first, second) + 0.1
    found: list[float] = []
    search("random", [Range("x", low, high, log)], 3, seed, one_by_one(lambda number, values: found.append(values["x"]) or 0.0))
    assert len(found) == 3 and all(low <= value <= high for value in found)
    assert all(value in (low, high) or value == float(f"{value:.3g}") for value in found)


def test_whole_numbers_stay_whole_and_none_stays_none() -> None:
    found = drawn("random", 40)
    assert {type(values["n"]) for values in found} == {int} and {values["k"] for values in found} == {1, 2, None}
    assert {type(values["fast"]) for values in found} == {bool}


def test_a_trial_without_a_result_stops_no_other() -> None:
    for sampler in SAMPLERS:
        study = search(sampler, LISTS, 6, 0, lambda first, values: [Result(None if first % 2 else cost(values[0]))])
        assert [trial.value is None for trial in study.trials] == [False, True] * 3
    with pytest.raises(OSError, match="disk"):
        search("random", LISTS, 6, 0, one_by_one(lambda number, values: (_ for _ in ()).throw(OSError("disk"))))


def test_the_option_that_matters_has_the_largest_share() -> None:
    study = search("random", SPACE, 60, 1, one_by_one(lambda number, values: (values["k"] or 3) + 1e-6 * (number * 37 % 60)))
    shares = importance(study)
    assert next(iter(shares)) == "k" and shares["k"] > 0.5 and sum(shares.values()) == pytest.approx(1)
    assert set(shares) == {dimension.name for dimension in SPACE}


def test_three_trials_and_an_option_of_one_value_are_drawn_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = search("random", [*SPACE, Values("one", (5,))], 3, 1, one_by_one(lambda number, values: number / 10))
        found = figures(study, "dev/wer")
    labels = [text.get_text() for text in found[PARALLEL].axes[0].get_xticklabels()]
    assert "share" in labels and "one" not in labels and "one" not in importance(study)
    matplotlib.pyplot.close("all")


def test_pictures_leave_no_style_behind() -> None:
    before = dict(matplotlib.rcParams)
    found = figures(search("random", SPACE, 8, 1, one_by_one(lambda number, values: cost(values))), "dev/wer")
    assert set(found) == {PARALLEL, IMPORTANCE} and dict(matplotlib.rcParams) == before
    labels = [text.get_text() for text in found[PARALLEL].axes[0].get_xticklabels()]
    assert labels[0] == "dev/wer" and {"k", "share", "rate"} <= set(labels)
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("n", [1, 4])
def test_trials_that_are_all_alike_have_no_pictures(n: int) -> None:
    study = search("random", LISTS, n, 1, one_by_one(lambda number, values: 0.5))
    assert importance(study) == {} and figures(study, "dev/wer") == {}
