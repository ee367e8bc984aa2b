"""Flags and option files to frozen options.

    --NAME VALUE …   --NAME=VALUE   --help   --help GROUP   --help all

What a flag says wins over the option file, and that over presets and defaults, also where the flag says the default. All faults are
reported at once. A library would be welcome here; those tried (October 2026) on a toy of six options fall short:

- argparse (and so all below but tyro) ends at the first fault, takes a value that begins with a dash for a flag and keeps the last of
  two equal flags.
- jsonargparse 4.53: one fault at a time, `--epoch` taken for `--epochs`, None is spelled `null`; its option file is what ours is.
- tyro 1.0: one fault at a time (but "Perhaps you meant"), None and truth are spelled as in Python, no option file.
- pydantic-settings 2.16: all faults of values at once, but unknown flags before and apart from them; models instead of dataclasses.

None shows a part of the help, which 168 options need. So the reading is ours, in this file; argparse still formats the help, difflib
finds what was meant, PyYAML reads the file.
"""

import dataclasses
import difflib
import sys
from collections.abc import Collection, Sequence
from typing import Any

from moe.options import Options, OptionsType, from_text, value_faults
from steps.options.document_names import document_hint
from steps.options.help_text import help_text, module_name
from steps.options.option_files import read_option_file

OPTIONS_FILE = "options_file"
HELP = ("-h", "--help")


def parse(options_type: type[OptionsType], arguments: Sequence[str] | None = None) -> OptionsType:
    """The options a command line asks for; a fault ends the process with one clear line and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] in HELP:
            print(help_text(options_type, *words[1:2]))
            sys.exit(0)
        return _options(options_type, words)
    except ValueError as error:
        print(f"{module_name(options_type).rpartition('.')[2]}: {error}", file=sys.stderr)
        sys.exit(2)


def file_values(options_type: type[Options], path: str) -> dict[str, Any]:
    """What an option file says, as values of the fields.

    A kind of options may say `gathered = "NAME"`: that option takes the lists and tables in the file (see `read_option_file`).

    Raises:
        ValueError: an unknown name or a value that its field does not take, all at once; the message names the file.
    """
    fields = {field.name: field for field in dataclasses.fields(options_type) if field.name != OPTIONS_FILE}
    values, faults = _values(fields, read_option_file(path, getattr(options_type, "gathered", None)))
    faults += [fault for name, value in values.items() for fault in value_faults(fields[name], value)]
    if faults:
        raise ValueError(f"{OPTIONS_FILE}={path}: {'; '.join(faults)}")
    return values


def value_of(field: dataclasses.Field[Any], text: str) -> Any:
    """A text as a value of its field, or as it is where it is no such value."""
    try:
        return from_text(text, field.type)
    except ValueError:
        return text  # no such kind: reported with all other faults when the options check themselves


def unknown(name: str, names: Collection[str]) -> str:
    """What is said of a name that is none of `names`."""
    if hint := document_hint(name, names):
        return f"{name}: no such option: {hint}"
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"{name}: no such option" + (f", did you mean {close[0]}?" if close else "")


def _options(options_type: type[OptionsType], words: Sequence[str]) -> OptionsType:
    fields = {field.name: field for field in dataclasses.fields(options_type)}
    texts, faults = _texts(words, fields)
    values, unknown_names = _values(fields, texts)
    faults += unknown_names
    try:
        from_file = file_values(options_type, values[OPTIONS_FILE]) if values.get(OPTIONS_FILE) else {}
    except ValueError as error:  # what it was to say is not known, so nothing is said of what is missing or goes together
        wrong = [fault for name, value in values.items() for fault in value_faults(fields[name], value)]
        raise ValueError("; ".join([*faults, *wrong, str(error)])) from error
    try:
        options = options_type.asked(**from_file | values)
    except ValueError as error:
        faults.append(str(error))
    if faults:
        raise ValueError("; ".join(faults))
    return options


def _texts(words: Sequence[str], names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The text of each flag, and what cannot be read; of a flag without value that is none of `names`, what it is here."""
    texts: dict[str, str] = {}
    faults, waiting = [], iter(words)
    for word in waiting:
        name, given, text = word.removeprefix("--").partition("=")
        value = text if given else next(waiting, None) if word.startswith("--") else None
        if not word.startswith("--"):
            faults.append(f"{word!r} is no --NAME VALUE")
        elif value is None:
            faults.append(f"--{name} has no value" if name in names else unknown(name, names))
        elif name in texts:
            faults.append(f"--{name} is given twice")
        else:
            texts[name] = value
    return texts, faults


def _values(fields: dict[str, dataclasses.Field[Any]], texts: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Texts as values of their fields, and what is said of names that are none."""
    faults = [unknown(name, fields) for name in texts if name not in fields]
    return {name: value_of(fields[name], text) for name, text in texts.items() if name in fields}, faults
