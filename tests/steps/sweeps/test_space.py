"""What a sweep varies: lists and ranges of options, each fault by name and all of them at once."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.options import Options, option
from steps.options.option_files import read_option_file
from steps.sweeps.space import Range, Values, read_space, refused, size_of_grid


@dataclasses.dataclass(frozen=True)
class Toy(Options):
    """Options of a chain."""

    rate: float = option(0.5, "learning rate", above=0)
    share: float = option(0.5, "part", low=0, high=1)
    k: int = option(2, "experts", low=1)
    n: int | None = option(None, "number", low=1)
    count: int | str = option(8, "number, or auto", low=1, choices=("auto",))
    mode: str = option("a", "word", choices=("a", "b"))
    fast: bool = option(False, "speed")
    corpus: str = option("c", "corpus")


FIELDS = {field.name: field for field in dataclasses.fields(Toy)}
FIXED = {"corpus": "every trial has the same"}


def read(text: str) -> list[Values | Range]:
    return read_space(text, FIELDS, FIXED)


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("{k: [1, 2]}", Values("k", (1, 2))),
        ("{rate: [1e-4, 1]}", Values("rate", (1e-4, 1.0))),
        ("{n: [none, 3]}", Values("n", (None, 3))),
        ("{count: [auto, 4]}", Values("count", ("auto", 4))),
        ("{mode: [b, a], }", Values("mode", ("b", "a"))),
        ("{fast: [true, false]}", Values("fast", (True, False))),
        ("{k: 3}", Values("k", (3,))),
        ("{share: {low: 0.2, high: 0.8}}", Range("share", 0.2, 0.8)),
        ("{k: {low: 1, high: 1e1}}", Range("k", 1, 10)),
        ("{rate: {low: 1e-4, high: 1e-2, log: true}}", Range("rate", 1e-4, 1e-2, True)),
    ],
)
def test_a_list_and_a_range_have_values_of_the_option(text: str, dimension: Values | Range) -> None:
    (found,) = read(text)
    assert found == dimension
    if isinstance(found, Range):
        assert type(found.low) is type(dimension.low) and type(found.high) is type(dimension.high)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{rat: [1]}", "rat: no such option, did you mean rate?"),
        ("{corpus: [a, b]}", "corpus is not varied: every trial has the same"),
        ("{k: [1, 0]}", "k=0: must be at least 1"),
        ("{mode: [a, c]}", "mode='c': must be one of a, b"),
        ("{k: []}", "k: the list is empty"),
        ("{k: [1, 2, 1.0]}", "k: 1 is there twice"),
        ("{k: [[1, 2]]}", r"k='\[1, 2\]': must be a whole number"),
        ("{share: {low: 0.8, high: 0.2}}", "share: low=0.8 must be below high=0.2"),
        ("{k: {low: 3, high: 3}}", "k: low=3 must be below high=3"),
        ("{share: {low: 0, high: 1, log: true}}", "share: low=0.0 must be above 0 on a logarithmic scale"),
        ("{share: {low: 0, high: 2}}", "share=2.0: must be at most 1"),
        ("{rate: {low: 0, high: 2}}", "rate=0.0: must be above 0"),
        ("{rate: {low: 1}}", "rate: a range has low, high and perhaps log, not low"),
        ("{rate: {low: 1, high: 2, step: 3}}", "rate: a range has low, high and perhaps log, not low, high, step"),
        ("{rate: {low: 1, high: 2, log: maybe}}", "rate: log: 'maybe' is neither true nor false"),
        ("{rate: {low: 1, high: nan}}", "rate=nan: must be finite"),
        ("{mode: {low: a, high: b}}", "mode: a range is of numbers, not from a to b; give a list"),
        ("{n: {low: none, high: 3}}", "n: a range is of numbers, not from None to 3; give a list"),
        ("{fast: {low: false, high: true}}", "fast: a range is of numbers"),
        ("{}", "nothing to vary"),
        ("[k]", r"space=\[k\]: must be a table"),
        ("{k: [1", "space: cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(text)


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(ValueError) as fault:
        read("{rat: [1], k: [0], share: {low: 1, high: 0}, corpus: [x], mode: {low: 1, high: 2}}")
    assert [word in str(fault.value) for word in ("rat:", "k=0", "low=1.0 must", "corpus is", "mode='1'")] == [True] * 5


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=5, unique=True))
def test_any_list_of_values_that_the_option_takes_is_read(values: list[int]) -> None:
    assert read(json.dumps({"k": values})) == [Values("k", tuple(values))]


@given(st.floats(-2, 2), st.floats(-2, 2), st.booleans())
def test_a_range_is_read_exactly_where_both_ends_are_allowed_and_in_order(low: float, high: float, log: bool) -> None:
    is_good = 0 <= low < high <= 1 and (low > 0 or not log)
    text = json.dumps({"share": {"low": low, "high": high, "log": log}})
    if is_good:
        assert read(text) == [Range("share", low, high, log)]
    else:
        with pytest.raises(ValueError, match="share"):
            read(text)


@given(st.dictionaries(st.sampled_from(["rate", "k", "n"]), st.integers(1, 4), min_size=1))
def test_a_grid_has_every_combination(sizes: dict[str, int]) -> None:
    dimensions = read(json.dumps({name: list(range(1, size + 1)) for name, size in sizes.items()}))
    assert size_of_grid(dimensions) == math.prod(sizes.values())


def test_a_value_is_refused_that_goes_with_no_value_of_another_option() -> None:
    """At most k of n: 9 goes with none, 5 with one of them, 3 with what is given; of a range both ends are tried."""

    def fault(values: dict[str, int]) -> str:
        k, n = values.get("k", 1), values.get("n", 4)
        return f"k={k}: n={n} has no more" if k > n else ""

    assert refused([Values("k", (3, 5, 9)), Values("n", (4, 6))], fault) == ["k=9: n=4 has no more"]
    assert refused([Range("k", 1, 9), Range("n", 4, 6)], fault) == ["k=9: n=4 has no more"]
    assert refused([Values("k", (5,))], fault) == ["k=5: n=4 has no more"] and refused([], fault) == []


def test_a_grid_has_no_ranges() -> None:
    with pytest.raises(ValueError, match="rate is a range: sampler=grid takes lists alone; .*; share is a range"):
        size_of_grid(read("{rate: {low: 1, high: 2}, k: [1], share: {low: 0, high: 1}}"))


class TestAFile:
    """Lists and tables of an options file are gathered into one option; the rest stays as it is."""

    def test_it_is_the_space(self, tmp_path) -> None:
        (tmp_path / "s.yaml").write_text("rate: 1e-3\nk: [1, 2]\nshare:\n  low: 0.1\n  high: 0.9\nmode: a\n")
        found = read_option_file(tmp_path / "s.yaml", "space")
        assert set(found) == {"rate", "mode", "space"} and found["rate"] == "1e-3"
        assert read(found["space"]) == [Values("k", (1, 2)), Range("share", 0.1, 0.9)]

    def test_without_lists_there_is_none(self, tmp_path) -> None:
        (tmp_path / "s.yaml").write_text("rate: 1e-3\n")
        assert read_option_file(tmp_path / "s.yaml", "space") == {"rate": "1e-3"}

    def test_it_is_said_in_one_place(self, tmp_path) -> None:
        (tmp_path / "s.yaml").write_text("k: [1, 2]\nspace: '{k: [3]}'\n")
        with pytest.raises(ValueError, match="s.yaml: space says what k on lines of their own say"):
            read_option_file(tmp_path / "s.yaml", "space")
