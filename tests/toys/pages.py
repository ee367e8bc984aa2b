"""README and docs as the tests read them: their text, fenced blocks, commands and tables."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "docs" / "options.md"
README, MEASURED, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "MEASURED.md", ROOT / "docs" / "results.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [page for page in PAGES if page != GENERATED]  # by hand
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:make|python -m|mlflow) [^`]+)`")


def text_of(page: Path) -> str:
    """The page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return [body for found, body in _FENCE.findall(text_of(page)) if found == language]


def languages(page: Path) -> set[str]:
    """Languages of the fenced blocks."""
    return {found for found, _ in _FENCE.findall(text_of(page))}


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text_of(page))


def commands(page: Path) -> list[list[str]]:
    """The words of each shell command in the page's blocks, without comments and joined where a line goes on."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def inline_commands(page: Path) -> list[list[str]]:
    """The words of each command that stands in the running text, but for those with a placeholder."""
    found = [" ".join(text.split()) for text in _INLINE.findall(prose(page))]
    return [shlex.split(text) for text in found if not re.search(r"\b(NAME|STEP|GROUP|FILE)\b|…", text)]


def table_rows(text: str) -> list[list[str]]:
    """Cells of every row of the tables in a text, headers among them, without marks of code and stress."""
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip(" |").strip("`*") for cell in row] for row in rows]
