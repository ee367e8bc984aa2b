"""Options check themselves, report every fault at once, and read and write themselves as flags."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.options import Options, from_text, option, to_text
from steps.options.command_line import parse


@dataclasses.dataclass(frozen=True)
class Small(Options):
    """A part of the toy."""

    rate: float = option(1e-3, "learning rate", above=0)


@dataclasses.dataclass(frozen=True)
class Toy(Small):
    """A toy step."""

    epochs: int = option(3, "passes", low=1, high=10)
    kind: str = option("a", "one of two", choices=("a", "b"))
    rank: int | None = option(None, "rank, 100 % optional", low=1)
    label: str | None = option(None, "a name")
    fast: bool = option(False, "hurry")

    def faults(self) -> list[str]:
        return ["fast needs kind=b"] if self.fast and self.kind == "a" else []


@dataclasses.dataclass(frozen=True)
class Needy(Options):
    """One flag has no default."""

    corpus: str = option(help="folder")


def refusal(capsys: pytest.CaptureFixture, *arguments: str, options_type: type[Options] = Toy) -> str:
    """The one line a bad command line ends with."""
    with pytest.raises(SystemExit) as ended:
        parse(options_type, arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    return error


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ValueError) as refused:
        Toy(rate=0, epochs=11, kind="c", rank=0, fast="yes")
    for part in (
        "rate=0: must be above 0",
        "epochs=11: must be at most 10",
        "kind='c': must be one of a, b",
        "rank=0",
        "fast='yes'",
    ):
        assert part in str(refused.value)


def test_the_command_line_too_tells_all_faults_at_once(capsys) -> None:
    error = refusal(capsys, "--rate", "quick", "--epochs", "2.5", "--fast", "maybe", "--rank", "0")
    for part in (
        "rate='quick': must be a number",
        "epochs='2.5'",
        "fast='maybe': must be true or false",
        "rank=0: must be at least 1",
    ):
        assert part in error


def test_faults_between_fields_are_asked_only_of_good_fields() -> None:
    with pytest.raises(ValueError, match="^fast needs kind=b$"):
        Toy(fast=True)
    with pytest.raises(ValueError) as refused:
        Toy(fast=True, epochs=0)
    assert "fast needs" not in str(refused.value)


def test_an_unknown_key_is_refused_and_none_is_guessed(capsys) -> None:
    assert "epoch: no such option, did you mean epochs?" in refusal(capsys, "--epoch", "3")  # no abbreviations
    assert "fats: no such option, did you mean fast?" in refusal(capsys, "--fats", "true")
    assert "zzz: no such option\n" in refusal(capsys, "--zzz", "true")


def test_unknown_wrong_repeated_and_missing_flags_are_told_at_once(capsys) -> None:
    error = refusal(capsys, "--epoch", "3", "--rate", "0", "--kind", "b", "--kind", "a", "stray", "--fast")
    for part in (
        "epoch: no such option",
        "rate=0.0: must be above 0",
        "--kind is given twice",
        "'stray' is no --NAME VALUE",
        "--fast has no value",
    ):
        assert part in error
    assert "corpus is missing" in refusal(capsys, "--corpse", "x", options_type=Needy)
    assert "epoch: no such option, did you mean epochs?" in refusal(capsys, "--rate", "1", "--epoch")


@pytest.mark.parametrize("text", ["-1", "--rate", "a=b", "", "-x y"])
def test_whatever_follows_a_flag_is_its_value(text: str) -> None:
    """MLflow appends `--name value` for whatever `-P name=value` says."""
    assert parse(Toy, ["--label", text]).label == parse(Toy, [f"--label={text}"]).label == text


def test_a_flag_without_default_is_required(capsys) -> None:
    assert "corpus is missing" in refusal(capsys, options_type=Needy)
    assert parse(Needy, ["--corpus", "there"]).corpus == "there"


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [("rate", "1e-4", 1e-4), ("rate", "2", 2.0), ("epochs", "1e1", 10), ("rank", "none", None), ("rank", "None", None), ("rank", "4", 4),
     ("label", "none", None), ("label", "1e-4", "1e-4"), ("fast", "false", False), ("kind", "b", "b")],
)  # fmt: skip
def test_text_becomes_the_fields_kind(flag: str, text: str, value: object) -> None:
    read = getattr(parse(Toy, [f"--{flag}", text]), flag)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "wrong", [{"epochs": True}, {"epochs": 2.0}, {"epochs": None}, {"rate": "1e-4"}, {"fast": 1}, {"kind": None}]
)
def test_a_value_of_another_kind_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Toy(**wrong)


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_numbers_are_finite(rate: float, capsys) -> None:
    with pytest.raises(ValueError, match="finite"):
        Toy(rate=rate)
    assert "finite" in refusal(capsys, "--rate", str(rate))


@given(
    rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    epochs=st.integers(1, 10),
    rank=st.none() | st.integers(1, 2**70),
    fast=st.booleans(),
)
def test_logged_parameters_read_back_as_the_same_options(rate: float, epochs: int, rank: int | None, fast: bool) -> None:
    options = Toy(rate=rate, epochs=epochs, rank=rank, fast=fast, kind="b")
    flags = [part for name, text in options.as_parameters().items() for part in (f"--{name}", text)]
    assert parse(Toy, flags) == options


@given(st.booleans() | st.none() | st.integers())
def test_to_text_and_from_text_are_inverse(value: bool | int | None) -> None:
    annotation = bool | None if isinstance(value, bool) else int | None
    assert from_text(to_text(value), annotation) == value


def test_a_part_carries_the_same_values() -> None:
    assert Toy(rate=0.5).part(Small) == Small(rate=0.5)


def test_help_shows_what_a_flag_is_and_its_default(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Toy, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "rank, 100 % optional (a whole number or none, at least 1; default: none)" in shown


@pytest.mark.parametrize("name", ["none", "None", '"none"', "als", "", "07", "nan"])
def test_no_word_is_reserved(name: str) -> None:
    """What is logged reads back as what was meant, the word none too."""

    @dataclasses.dataclass(frozen=True)
    class Named(Options):
        name: str | None = None

    assert from_text(Named(name).as_parameters()["name"], str | None) == name
    assert from_text(Named(None).as_parameters()["name"], str | None) is None
