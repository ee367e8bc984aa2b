"""README and docs say what is so: links lead somewhere, figures were measured, walks name functions that exist."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from moe.corpora.formats.table import FORMATS
from moe.experts.routed_lora import AdapterOptions
from moe.systems.table import SYSTEMS
from steps.options.project_files import ENTRY_POINTS
from tests.toys.pages import MEASURED, PAGES, README, RESULTS, ROOT, WRITTEN, blocks, languages, prose, table_rows, text_of

ARCHITECTURE = ROOT / "docs" / "architecture.md"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FIGURE = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\.\d)")
RATE = re.compile(r"(?<![\w.])\d+\.\d+(?= %)")
P_VALUE = re.compile(r"p [=<≥>] ?\d\.\d+")
WITH_INTERVAL = re.compile(r"[-+]?\d+\.\d+(?: %)? \([-+]?\d+\.\d+(?:–| to )[-+]?\d+\.\d+")
POETRY = re.compile(r"\b(hears?|heard|hearing|is told|are told|tells? us|deaf|asleep|by heart|knows better)\b", re.IGNORECASE)
MAX_README_LINES, MAX_README_WIDTH, MAX_PICTURE = 120, 160, 100_000


def anchors(page: Path) -> set[str]:
    """Headings as links name them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return not target.exists() or bool(anchor) and anchor not in anchors(target)


def plain(text: str) -> str:
    return text.replace("−", "-").replace("*", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(prose(page)) if "://" not in link]
    assert [link for link in links if broken(page, link)] == []


def test_readme_leads_to_every_page() -> None:
    linked = {(README.parent / link.partition("#")[0]).resolve() for link in LINK.findall(text_of(README))}
    assert set(PAGES) - {README} <= linked


def test_readme_is_short() -> None:
    lines = text_of(README).splitlines()
    assert len(lines) <= MAX_README_LINES and max(map(len, lines)) <= MAX_README_WIDTH


def test_pictures_are_there_and_small() -> None:
    pictures = [page.parent / link for page in WRITTEN for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text_of(page))]
    assert pictures and all(0 < picture.stat().st_size < MAX_PICTURE for picture in pictures)


@pytest.mark.parametrize("page", [README, RESULTS, ROOT / "docs" / "speed.md"], ids=lambda page: page.name)
def test_every_figure_was_measured(page: Path) -> None:
    """p values are rounded; every other decimal number stands in MEASURED.md as it is quoted."""
    measured, text = (
        plain(text_of(MEASURED)),
        re.sub(r"Python 3\.\d+(?:, 3\.\d+)* or 3\.\d+", "", P_VALUE.sub("", plain(prose(page)))),
    )
    figures, known = set(FIGURE.findall(text)), set(FIGURE.findall(measured))
    assert figures and figures <= known | ROUNDED, sorted(figures - known - ROUNDED)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_every_rate_was_measured(page: Path) -> None:
    """On every page, where other decimal numbers may be values of options."""
    assert set(RATE.findall(plain(prose(page)))) <= set(FIGURE.findall(plain(text_of(MEASURED))))


def test_the_default_split_is_the_one_that_was_measured() -> None:
    measured, defaults = " ".join(text_of(MEASURED).split()), AdapterOptions()
    section = measured.partition("## Three seeds of the second split")[2].partition(" ## ")[0]
    values = {name: f"{getattr(defaults, name):g}" for name in ("shared_r", "lora_r", "lora_alpha")}
    assert all(f"--{name} {value} " in section for name, value in values.items())


ROUNDED = {"0.05", "1.5"}  # embedding store of 1.54 KiB


@pytest.mark.parametrize("page", [README, RESULTS, ROOT / "docs" / "ctc.md"], ids=lambda page: page.name)
def test_a_figure_and_its_interval_were_measured_together(page: Path) -> None:
    measured = plain(text_of(MEASURED)).replace(" %", "")
    found = [each.replace(" %", "") for each in WITH_INTERVAL.findall(plain(text_of(page)))]
    assert found and [each for each in found if each not in measured] == []


def test_these_checks_find_a_wrong_figure() -> None:
    assert WITH_INTERVAL.findall("17.3 % (13.3–21.5) and +1.3 (-0.1 to +2.7)") == ["17.3 % (13.3–21.5", "+1.3 (-0.1 to +2.7"]
    assert FIGURE.findall("reaches 17.9 %, 0.9 points, 18.2") == ["17.9", "0.9", "18.2"]
    assert (
        broken(README, "docs/none.md")
        and broken(README, "docs/results.md#nothing")
        and not broken(README, "docs/results.md#one-demo-by-seed-42")
    )


def test_as_many_trials_passed_as_were_measured() -> None:
    def n_passed(rows: list[list[str]]) -> int:
        cells = [cell for row in rows for cell in row[2:3] if re.fullmatch(r"\d+/\d+", cell)]
        assert all(cell.split("/")[0] == cell.split("/")[1] for cell in cells)
        return sum(int(cell.split("/")[0]) for cell in cells)

    measured = text_of(MEASURED).partition("## Reliability")[2]
    assert n_passed(table_rows(measured)) == n_passed(table_rows(text_of(ROOT / "docs" / "reliability.md"))) > 0


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_pages_are_written_in_plain_words(page: Path) -> None:
    assert POETRY.findall(prose(page)) == []
    assert languages(page) <= {"bash", "python", "csv", "text"}


def test_pages_name_every_system_step_and_format() -> None:
    named = {page.name: {row[0] for row in table_rows(text_of(page))} for page in PAGES}
    assert set(ENTRY_POINTS) - {"main"} <= named["stages.md"]
    assert set(FORMATS) - {"synthetic"} <= named["own-corpus.md"]
    assert all(f"`{name}`" in text_of(ARCHITECTURE) for name in SYSTEMS)


def defined(path: Path) -> set[str]:
    """Functions, classes and methods (`Class.method`) of a file."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    return names | {f"{each.name}.{part.name}" for each in classes for part in each.body if isinstance(part, ast.FunctionDef)}


def test_the_walks_go_through_functions_that_exist() -> None:
    steps = [row for row in table_rows(text_of(ARCHITECTURE)) if row[0].isdigit()]
    assert len(steps) > 30 and [(path, name) for _, path, name, _ in steps if name not in defined(ROOT / path)] == []


def test_the_interface_is_described_by_its_names() -> None:
    names = defined(ROOT / "moe" / "system.py")
    described = {row[0] for row in table_rows(text_of(ARCHITECTURE))}
    assert {"Record", "Inputs", "System", "Routes", "Hypothesis", "DecodingOptions"} <= names & described
    methods = {name.partition(".")[2] for name in names if name.startswith("System.")} | {
        "record"
    }  # an attribute, which may be set
    row = next(line for line in text_of(ARCHITECTURE).splitlines() if line.startswith("| `System`"))
    assert methods == set(re.findall(r"`(\w+)`", row)) - {"System"}


def test_the_lines_of_the_toy_system_are_counted() -> None:
    """About as many as the page says."""
    (counted,) = [block for block in blocks(ARCHITECTURE, "bash") if "wc -l" in block]
    for line in counted.splitlines():
        said = int(re.search(r"# about (\d+)", line)[1])
        found = int(subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        assert abs(found - said) <= max(3, 0.1 * said)
