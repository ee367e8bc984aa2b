"""Help on the options of a step, and the groups that help and docs/options.md are divided into.

A group is what one options dataclass states, under that class's name, or under the `group` that the class names; its title is the
first sentence of that class's docstring, of the largest where several share a group.
"""

import argparse
import dataclasses
import difflib
import re
import shutil
import sys
from typing import Any

from moe.options import Options, allowed_text, is_required, to_text

ALL = "all"
ANY = ("text", "text or none")  # nothing that would have to be said
N_SHOWN_WHOLE = 20  # a step with so few options shows them all


@dataclasses.dataclass
class Group:
    """Options that belong together."""

    name: str
    fields: list[dataclasses.Field[Any]]
    title: str = ""


def groups(options_type: type[Options]) -> dict[str, Group]:
    """The groups of a step's options, by name; every option is in one of them."""
    found: dict[str, Group] = {}
    stated: dict[str, list[type[Options]]] = {}
    for field in dataclasses.fields(options_type):
        stating = owner(options_type, field)
        name = _name(stating)
        found.setdefault(name, Group(name, [])).fields.append(field)
        stated.setdefault(name, []).append(stating)
    for name, classes in stated.items():
        found[name].title = _title(max(classes, key=classes.count))
    return found


def common(options_type: type[Options]) -> list[dataclasses.Field[Any]]:
    """The options that people set: what is required, and what is marked so; all of them where they are few."""
    fields = dataclasses.fields(options_type)
    shown = [field for field in fields if len(fields) <= N_SHOWN_WHOLE or is_required(field) or field.metadata.get("common")]
    return sorted(shown, key=lambda field: not is_required(field))


def help_text(options_type: type[Options], topic: str = "") -> str:
    """Usage, common options and the names of the groups; one group's options; or those of `all` groups.

    Raises:
        ValueError: no such group.
    """
    known = groups(options_type)
    if topic not in ("", ALL, *known):
        close = difflib.get_close_matches(topic, known, n=1)
        raise ValueError(
            f"--help {topic}: no such group" + (f", did you mean {close[0]}?" if close else f"; one of {', '.join(known)}")
        )
    parser = _parser(options_type)
    if topic:
        for group in [known[topic]] if topic != ALL else known.values():
            _add(parser, f"{group.name}: {group.title}", group.fields)
        return parser.format_help()
    shown = common(options_type)
    _add(parser, "options" if len(shown) == len(dataclasses.fields(options_type)) else "common options", shown)
    if len(shown) < len(dataclasses.fields(options_type)):
        parser.epilog = "groups of options; --help GROUP shows one, --help all shows everything:\n" + _listed(known)
    return parser.format_help()


def module_name(options_type: type[Options]) -> str:
    """The module that states the options, also where it is run as `__main__`."""
    spec = getattr(sys.modules[options_type.__module__], "__spec__", None)
    return (spec.name if spec else options_type.__module__).removesuffix(".__main__")


def _parser(options_type: type[Options]) -> argparse.ArgumentParser:
    module = module_name(options_type)
    package, _, step = module.rpartition(".")
    usage = f"python -m {module} [--NAME VALUE ...]"
    if package == "steps":
        usage += f"\n       mlflow run . --env-manager local {'' if step == 'main' else f'-e {step} '}[-P NAME=VALUE ...]"
    width = max(shutil.get_terminal_size().columns - 2, 60)
    return argparse.ArgumentParser(
        usage=usage,
        description=options_type.__doc__,
        add_help=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=width),
    )


def _add(parser: argparse.ArgumentParser, title: str, fields: list[dataclasses.Field[Any]]) -> None:
    group = parser.add_argument_group(title)
    for field in fields:
        state = "required" if is_required(field) else f"default: {to_text(field.default)}"
        allowed = allowed_text(field)
        text = f"{field.metadata['help']} ({state if allowed in ANY else f'{allowed}; {state}'})"
        group.add_argument(f"--{field.name}", metavar="", help=text.replace("%", "%%"))


def _listed(known: dict[str, Group]) -> str:
    width = max(map(len, known))
    return "\n".join(f"  {group.name:<{width}} {len(group.fields):>3}  {group.title}" for group in known.values())


def owner(options_type: type[Options], field: dataclasses.Field[Any]) -> type[Options]:
    """The class that states a field; `main`, which takes over the options of its stages, names it in the metadata."""
    stating = (kind for kind in options_type.__mro__ if field.name in vars(kind).get("__annotations__", {}))
    return field.metadata.get("owner") or next(stating)


def _name(stating: type[Options]) -> str:
    if "group" in vars(stating):
        return str(vars(stating)["group"])
    if stating.__name__ == "StepOptions":
        return module_name(stating).rpartition(".")[2]
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", stating.__name__.removesuffix("Options")).lower()


def _title(stating: type[Options]) -> str:
    return re.split(r"[;:.](?:\s|$)", (stating.__doc__ or "").strip())[0]
