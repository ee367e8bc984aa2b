"""Flags and option files to frozen options."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

from moe.options import Options, OptionsType, _value_faults, from_text, to_text
from steps.options.option_files import read_option_file

OPTIONS_FILE = "options_file"


def parse(options_type: type[OptionsType], arguments: Sequence[str] | None = None) -> OptionsType:
    """The options a command line asks for; a fault ends the process with one clear line and exit code 2."""
    parser = _Parser(description=options_type.__doc__, allow_abbrev=False)
    for field in dataclasses.fields(options_type):
        _add_flag(parser, field)
    given = vars(parser.parse_args(arguments))
    try:
        return options_type(**_with_file(options_type, given))
    except ValueError as error:
        parser.error(str(error))


def file_values(options_type: type[Options], path: str) -> dict[str, Any]:
    """What an option file says, as values of the fields.

    Raises:
        ValueError: an unknown name or a value that its field does not take, all at once; the message names the file.
    """
    fields = {field.name: field for field in dataclasses.fields(options_type) if field.name != OPTIONS_FILE}
    texts = read_option_file(path)
    faults = [f"{name}: no such option" for name in texts if name not in fields]
    values = {name: _converter(fields[name])(text) for name, text in texts.items() if name in fields}
    faults += [fault for name, value in values.items() for fault in _value_faults(fields[name], value)]
    if faults:
        raise ValueError(f"{OPTIONS_FILE}={path}: {'; '.join(faults)}")
    return values


def _with_file(options_type: type[Options], given: dict[str, Any]) -> dict[str, Any]:
    """The flags given, and for the rest what the option file says.

    `mlflow run` gives every flag, so with all of them there a value that is the default is nobody's wish.
    """
    path, fields = given.get(OPTIONS_FILE), dataclasses.fields(options_type)
    if path is None:
        return given
    if len(given) == len(fields):
        given = {field.name: given[field.name] for field in fields if given[field.name] != field.default}
    return file_values(options_type, path) | given


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One clear line instead of argparse's page of usage."""
        self.exit(2, f"{self.prog.removesuffix('.py')}: {message}\n")


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    required = field.default is dataclasses.MISSING
    parser.add_argument(
        f"--{field.name}",
        type=_converter(field),
        required=required,
        default=argparse.SUPPRESS,  # what is not given is the dataclass's own default, or an option file's
        help=f"{field.metadata.get('help', '')} (default: {'required' if required else to_text(field.default)})".replace(
            "%", "%%"
        ),
    )


def _converter(field: dataclasses.Field) -> Any:
    def convert(text: str) -> Any:
        try:
            return from_text(text, field.type)
        except ValueError:
            return text  # no such kind: reported with all other faults when the options check themselves

    return convert
