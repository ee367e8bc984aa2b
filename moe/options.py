"""Options of a step: a frozen dataclass that checks itself and knows how to be a command line.

A field made by `option` carries its help text and what is allowed. Building the dataclass checks every field and reports all
faults in one `ValueError`, before any model is loaded. `parse` turns `--name value` flags into the dataclass; the flag, the
MLproject key and the logged parameter are the field's own name. Where there is a field `options_file`, that file gives what flags
do not.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

NONE = "none"  # how None is written on a command line and in MLproject, where `null` would mean "required"

OptionsType = TypeVar("OptionsType", bound="Options")


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A field of an `Options` dataclass.

    Args:
        default: value when the flag is absent; without one the flag is required.
        help: one line, shown by `--help` and in MLproject.
        low, above, high: allowed range: low ≤ value ≤ high, value > above.
        choices: the closed set of allowed strings; of a field `int | str`, the words it takes beside numbers.
    """
    return dataclasses.field(
        default=default,
        metadata={"help": help, "low": low, "above": above, "high": high, "choices": choices},
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of every options dataclass."""

    def __post_init__(self) -> None:
        faults = [fault for field in dataclasses.fields(self) for fault in _field_faults(self, field)]
        faults = faults or [
            fault for kind in type(self).__mro__ if "faults" in vars(kind) for fault in vars(kind)["faults"](self)
        ]
        if faults:
            raise ValueError("; ".join(dict.fromkeys(faults)))

    def faults(self) -> list[str]:
        """Faults that concern several fields together; asked, of every class above too, only when each field alone is good."""
        return []

    def is_changed(self, name: str) -> bool:
        """Whether an option is not as by default."""
        return getattr(self, name) != type(self).__dataclass_fields__[name].default

    def part(self, options_type: type[OptionsType]) -> OptionsType:
        """The fields that a smaller options dataclass has too, as one of that kind."""
        return options_type(**{field.name: getattr(self, field.name) for field in dataclasses.fields(options_type)})

    def as_parameters(self) -> dict[str, str]:
        """Every field as the text that is logged and that a command line accepts."""
        return {field.name: to_text(getattr(self, field.name)) for field in dataclasses.fields(self)}


def to_text(value: Any) -> str:
    """A value as a flag's text: None is `none`, truth is `true` or `false`."""
    if value is None:
        return NONE
    return str(value).lower() if isinstance(value, bool) else str(value)


def from_text(text: str, annotation: Any) -> Any:
    """A flag's text as a value of `annotation` (bool, int, float, str, or one of them with None).

    Raises:
        ValueError: the text is no such value.
    """
    kinds = _kinds(annotation)
    if type(None) in kinds and text.strip().lower() == NONE:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    if str in kinds and not _is_number(text):
        return text
    if kind is bool:
        return _truth(text)
    return _whole_number(text) if kind is int else kind(text)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    if isinstance(annotation, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _kind_name(annotation: Any, words: Sequence[str] | None = None) -> str:
    text = ", ".join(words) if words else "text"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: text, type(None): NONE}
    return " or ".join(names[kind] for kind in _kinds(annotation))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _truth(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.strip().lower()]
    except KeyError as error:
        raise ValueError(f"{text!r} is neither true nor false") from error


def _whole_number(text: str) -> int:
    number = float(text)
    if not number.is_integer():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text) if text.strip().lstrip("+-").isdigit() else int(number)


def _field_faults(options: Options, field: dataclasses.Field) -> list[str]:
    return _value_faults(field, getattr(options, field.name))


def _value_faults(field: dataclasses.Field, value: Any) -> list[str]:
    name, kinds, allowed = field.name, _kinds(field.type), field.metadata
    if value is None:
        return [] if type(None) in kinds else [f"{name} is missing"]
    words = allowed.get("choices")
    if words and isinstance(value, str) and value not in words:
        only = len(set(kinds) - {type(None)}) == 1
        return [f"{name}={value!r}: must be " + (f"one of {', '.join(words)}" if only else _kind_name(field.type, words))]
    if not _is_kind(value, field.type):
        return [f"{name}={value!r}: must be {_kind_name(field.type, words)}"]
    return _range_faults(name, value, allowed) if isinstance(value, (int, float)) else []


def _is_kind(value: Any, annotation: Any) -> bool:
    kinds = _kinds(annotation)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def _range_faults(name: str, value: float, allowed: Any) -> list[str]:
    bounds = []
    if not math.isfinite(value):
        return [f"{name}={value}: must be finite"]
    if allowed.get("low") is not None and value < allowed["low"]:
        bounds.append(f"at least {allowed['low']}")
    if allowed.get("above") is not None and value <= allowed["above"]:
        bounds.append(f"above {allowed['above']}")
    if allowed.get("high") is not None and value > allowed["high"]:
        bounds.append(f"at most {allowed['high']}")
    return [f"{name}={value}: must be {' and '.join(bounds)}"] if bounds else []
