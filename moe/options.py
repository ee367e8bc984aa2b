"""Options of a step: a frozen dataclass that checks itself and knows how to be a command line.

A field made by `option` carries its help text and what is allowed. Building the dataclass checks every field and reports all
faults in one `ValueError`, before any model is loaded. The flag, the MLproject key and the logged parameter are the field's own
name; `steps.options.command_line` reads them.
"""

import dataclasses
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

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
    common: bool = False,
) -> Any:
    """A field of an `Options` dataclass.

    Args:
        default: value when the flag is absent; without one the flag is required.
        help: one line, shown by `--help`, in MLproject and in docs/options.md.
        low, above, high: allowed range: low ≤ value ≤ high, value > above.
        choices: the closed set of allowed strings; of a field `int | str`, the words it takes beside numbers.
        common: one of the few that people set; `--help` shows these first.
    """
    return dataclasses.field(
        default=default,
        kw_only=default is dataclasses.MISSING,  # else a required field could not follow one with a default
        metadata={"help": help, "low": low, "above": above, "high": high, "choices": choices, "common": common},
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of every options dataclass."""

    def __post_init__(self) -> None:
        given = [(field, getattr(self, field.name)) for field in dataclasses.fields(self)]
        faults = [fault for field, value in given if value is not field.default for fault in value_faults(field, value)]
        faults = faults or [fault for found in self._of_every_class("faults") for fault in found] or self._idle_faults()
        if faults:
            raise ValueError("; ".join(dict.fromkeys(faults)))

    def faults(self) -> list[str]:
        """Faults that concern several fields together; asked, of every class above too, only when each field alone is good."""
        return []

    def idle(self) -> dict[str, str]:
        """Options that do nothing beside the others, each with the reason; asked like `faults`, and refused where not as by default."""
        return {}

    def all_idle(self) -> dict[str, str]:
        """What `idle` of this class and of every class above says."""
        return {name: why for found in reversed(self._of_every_class("idle")) for name, why in found.items()}

    def _of_every_class(self, method: str) -> list[Any]:
        return [vars(kind)[method](self) for kind in type(self).__mro__ if method in vars(kind)]

    def _idle_faults(self) -> list[str]:
        return [f"{name}={to_text(getattr(self, name))}: {why}" for name, why in self.all_idle().items() if self.is_changed(name)]

    @classmethod
    def unchecked(cls, given: Mapping[str, Any]) -> Self:
        """Options of which nothing has been checked, to ask what is `idle` among them; what is not given is the default, or None."""
        options = object.__new__(cls)
        for field in dataclasses.fields(cls):
            object.__setattr__(options, field.name, given.get(field.name, None if is_required(field) else field.default))
        return options

    @classmethod
    def asked(cls, **given: Any) -> Self:
        """The options for what was given, by name; a kind of options may have presets that fill in what was not given.

        Raises:
            ValueError: all faults.
        """
        missing = [field.name for field in dataclasses.fields(cls) if is_required(field) and field.name not in given]
        faults = [f"{name} is missing" for name in missing]
        try:
            options = cls(**dict.fromkeys(missing, NONE) | given)
        except ValueError as error:
            faults.append(str(error))
        if faults:
            raise ValueError("; ".join(faults))
        return options

    def is_changed(self, name: str) -> bool:
        """Whether an option is not as by default."""
        return bool(getattr(self, name) != type(self).__dataclass_fields__[name].default)

    def part(self, options_type: type[OptionsType]) -> OptionsType:
        """The fields that a smaller options dataclass has too, as one of that kind."""
        return options_type(**{field.name: getattr(self, field.name) for field in dataclasses.fields(options_type)})

    def as_parameters(self) -> dict[str, str]:
        """Every field as the text that is logged and that a command line accepts."""
        return {field.name: to_text(getattr(self, field.name), field.type) for field in dataclasses.fields(self)}

    def used_parameters(self) -> dict[str, str]:
        """Of `as_parameters` those that do something beside the others: what a run shows."""
        idle = self.all_idle()
        return {name: value for name, value in self.as_parameters().items() if name not in idle}


def names_of(*options_types: type[Options], but: Iterable[str] = ()) -> list[str]:
    """The names of the options of some classes, but for a few."""
    return [
        field.name for options_type in options_types for field in dataclasses.fields(options_type) if field.name not in set(but)
    ]


def listed(text: str, separator: str = ",") -> list[str]:
    """The parts of an option that is a list."""
    return [part.strip() for part in text.split(separator) if part.strip()]


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether an option has no default."""
    return field.default is dataclasses.MISSING


def allowed_text(field: dataclasses.Field[Any]) -> str:
    """What an option takes, in words: `a whole number, at least 1`."""
    bounds = [text for text, _ in _bounds(field.metadata).values()]
    return ", ".join([_kind_name(field.type, field.metadata.get("choices")), " and ".join(bounds)]).removesuffix(", ")


def to_text(value: Any, annotation: Any = None) -> str:
    """A value as a flag's text: None is `none`, truth is `true` or `false`; where None is allowed, the word none is in quotation marks."""
    if value is None:
        return NONE
    if isinstance(value, str) and type(None) in _kinds(annotation) and value.strip(' "').lower() == NONE:
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def from_text(text: str, annotation: Any) -> Any:
    """A flag's text as a value of `annotation` (bool, int, float, str, or one of them with None); `"none"` is the word.

    Raises:
        ValueError: the text is no such value.
    """
    kinds = _kinds(annotation)
    if type(None) in kinds and text.strip().lower() == NONE:
        return None
    if str in kinds and type(None) in kinds and text.strip(' "').lower() == NONE and text.strip().startswith('"'):
        return text.strip()[1:-1]
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


def value_faults(field: dataclasses.Field[Any], value: Any) -> list[str]:
    """What is wrong with a value of one field; empty where nothing is."""
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
    return isinstance(value, tuple(typing.get_origin(kind) or kind for kind in kinds)) or (
        float in kinds and isinstance(value, int)
    )


def _range_faults(name: str, value: float, allowed: Any) -> list[str]:
    if not math.isfinite(value):
        return [f"{name}={value}: must be finite"]
    broken = [text for word, (text, holds) in _bounds(allowed).items() if not holds(value, allowed[word])]
    return [f"{name}={value}: must be {' and '.join(broken)}"] if broken else []


def _bounds(allowed: Any) -> dict[str, tuple[str, Callable[[float, float], bool]]]:
    """The bounds a field has, each in words and as a comparison."""
    known = {"low": ("at least", operator.ge), "above": ("above", operator.gt), "high": ("at most", operator.le)}
    return {word: (f"{text} {allowed[word]}", holds) for word, (text, holds) in known.items() if allowed.get(word) is not None}
