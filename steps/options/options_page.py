"""docs/options.md: every option of every step, in the groups that `--help` shows."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from moe.options import Options, allowed_text, is_required, to_text
from steps.options.help_text import groups

HEAD = """<!-- Written by `python -m steps.options.project_files`; change the options in their modules, not this file. -->
# Options

Every option of every entry point. Set one with `mlflow run . --env-manager local -e STEP -P NAME=VALUE`, or
`python -m steps.STEP --NAME VALUE`; `none` means nothing, and `1e-4` is a number. Without `-e` the step is `main`: it takes the options of
all stages but the ids of runs. Options may also stand in a YAML or JSON file, `-P options_file=FILE` (`main`). What is said on the command
line wins over the file, also where it is the default; the file wins over `mode=quick`, and that over the defaults. Options in bold are
those that people set; `--help` shows these first.
"""


@dataclasses.dataclass
class Row:
    """One option, and the steps that have it with this default and meaning."""

    field: dataclasses.Field[Any]
    steps: list[str]


def options_page(options_types: Mapping[str, type[Options]]) -> str:
    """The page, as Markdown.

    Args:
        options_types: the options of each entry point, by its name.
    """
    titles: dict[str, str] = {}
    rows: dict[str, dict[tuple[str, str, str], Row]] = {}
    for step, options_type in options_types.items():
        inherited = _inherited(options_type, options_types.values())
        for group in groups(options_type).values():
            titles.setdefault(group.name, group.title)
            for field in [field for field in group.fields if field.name not in inherited]:
                key = (field.name, _default(field), field.metadata["help"])
                rows.setdefault(group.name, {}).setdefault(key, Row(field, [])).steps.append(step)
    return HEAD + "".join(_section(name, titles[name], list(found.values())) for name, found in sorted(rows.items()))


def _inherited(options_type: type[Options], others: Iterable[type[Options]]) -> set[str]:
    """Names that a step has of another step, all of whose options it takes: the page lists them with that one."""
    taken = [other for other in others if other is not options_type and issubclass(options_type, other)]
    return {field.name for other in taken for field in dataclasses.fields(other)}


def _section(name: str, title: str, rows: list[Row]) -> str:
    lines = "".join(_line(row) for row in rows)
    return f"\n## {name}\n{title}.\n\n| option | default | allowed | meaning | steps |\n| --- | --- | --- | --- | --- |\n{lines}"


def _line(row: Row) -> str:
    field = row.field
    name = f"**`{field.name}`**" if field.metadata["common"] or is_required(field) else f"`{field.name}`"
    cells = [name, _default(field), allowed_text(field), field.metadata["help"], " ".join(row.steps)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _default(field: dataclasses.Field[Any]) -> str:
    return "required" if is_required(field) else f"`{to_text(field.default)}`"
