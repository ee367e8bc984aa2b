"""Option files: read as a command line would be, flags win, and nothing in them is accepted and ignored."""

import dataclasses
from pathlib import Path

import pytest

from moe.options import Options, option
from steps.options.command_line import file_values, parse
from steps.options.option_files import option_file_text, read_option_file


@dataclasses.dataclass(frozen=True)
class Toy(Options):
    """Toy."""

    options_file: str | None = option(None, "file")
    rate: float = option(0.5, "learning rate", above=0)
    epochs: int = option(3, "epochs", low=1)
    n: int | str = option(8, "number, or auto", low=1, choices=("auto",))
    fast: bool = option(False, "speed")
    label: str | None = option(None, "name")


@dataclasses.dataclass(frozen=True)
class Needing(Toy):
    """A toy with an option that must be given."""

    where: str = option(help="where it lies")


def written(folder: Path, text: str, name: str = "toy.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def refusal(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(Toy, arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_file_gives_what_flags_do_not(tmp_path: Path) -> None:
    path = written(tmp_path, "# notes\nrate: 1e-4\nepochs: 5\nfast: true\nn: auto\nlabel: none\n")
    assert parse(Toy, ["--options_file", path]) == Toy(path, 1e-4, 5, "auto", True, None)
    assert parse(Toy, ["--options_file", path, "--epochs", "7"]).epochs == 7


def test_a_flag_wins_even_where_it_is_the_default(tmp_path: Path) -> None:
    path = written(tmp_path, "epochs: 5\nrate: 2\n")
    assert parse(Toy, ["--options_file", path, "--epochs", "3"]) == Toy(path, 2.0, 3)


def test_a_flag_wins_over_the_file_whatever_else_is_given(tmp_path: Path) -> None:
    path = written(tmp_path, "epochs: 5\nrate: 2\nfast: true\nn: auto\nlabel: x\n")
    flags = [part for name, text in Toy(path).as_parameters().items() for part in (f"--{name}", text)]
    assert parse(Toy, flags) == Toy(path)


def test_faults_of_file_and_flags_are_told_together(tmp_path: Path, capsys) -> None:
    shown = refusal(capsys, "--options_file", written(tmp_path, "epochs: 0\n"), "--rate", "0", "--fats", "true")
    assert "epochs=0: must be at least 1" in shown and "rate=0.0: must be above 0" in shown and "did you mean fast?" in shown


def test_json_is_read_too_and_a_number_is_a_number_in_both(tmp_path: Path) -> None:
    """`1e-4` is text to YAML 1.1, which gave a learning rate that was no number."""
    path = written(tmp_path, '{"rate": 1e-4, "fast": true}', "toy.json")
    assert file_values(Toy, path) == {"rate": 1e-4, "fast": True}


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "# nothing yet\n")
    assert parse(Toy, ["--options_file", path]) == Toy(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 5\n", "epoch: no such option"),
        ("options_file: other.yaml\n", "options_file: no such option"),
        ("epochs: many\n", "epochs='many': must be a whole number"),
        ("epochs: 0\n", "epochs=0: must be at least 1"),
        ("epochs: 5\nepochs: 6\n", "line 2: epochs is there twice"),
        ("epochs: [5]\n", "line 1: must be one name and one value"),
        ("- epochs\n", "must hold lines"),
        ("epochs: {\n", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_files_name(tmp_path: Path, capsys, text: str, said: str) -> None:
    shown = refusal(capsys, "--options_file", written(tmp_path, text))
    assert said in shown and "toy.yaml" in shown


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="epoch: no such option, did you mean epochs.; .*rate=0.0: must be above 0"):
        file_values(Toy, written(tmp_path, "epoch: 5\nrate: 0.0\n"))


@pytest.mark.parametrize("text", ["epochs: [5]\n", "- epochs\n", "epoch: 3\n", "epochs: many\n"])
def test_beside_a_faulty_file_only_wrong_values_are_told(tmp_path: Path, capsys, text: str) -> None:
    """What is missing may stand in the lines that were not understood."""
    with pytest.raises(SystemExit):
        parse(Needing, ["--options_file", written(tmp_path, text), "--rate", "0"])
    shown = capsys.readouterr().err
    assert "rate=0" in shown and "toy.yaml" in shown and "where" not in shown


def test_a_missing_file_is_named(capsys) -> None:
    assert "options_file=gone.yaml: cannot be read" in refusal(capsys, "--options_file", "gone.yaml")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    values = {"rate": 1e-5, "epochs": 3, "fast": True, "label": "none", "pattern": "(s\\d+): x # y", "text": "true"}
    assert read_option_file(written(tmp_path, option_file_text(values))) == {
        "rate": "1.0e-05", "epochs": "3", "fast": "true", "label": "none", "pattern": "(s\\d+): x # y", "text": "true",
    }  # fmt: skip


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("12", 12), ("1e1", 10)])
def test_a_number_or_a_word(text: str, value: int | str) -> None:
    assert parse(Toy, ["--n", text]).n == value


@pytest.mark.parametrize(
    ("text", "said"), [("many", "must be a whole number or auto"), ("2.5", "must be a whole number or auto"), ("0", "at least 1")]
)
def test_neither_a_number_nor_the_word_is_refused(capsys, text: str, said: str) -> None:
    assert said in refusal(capsys, "--n", text)
