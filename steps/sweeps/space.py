"""The space of a sweep: options of the chain, each with a list of values or a range.

top_k: [1, 2]                                              one of these
shared_share: {low: 0.2, high: 0.8}                        any number between, or any whole number
expert_learning_rate: {low: 1e-4, high: 1e-2, log: true}   the same, evenly on a logarithmic scale
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from moe.options import from_text, value_faults
from steps.options.command_line import unknown, value_of
from steps.options.option_files import Texts, texts_of

EXAMPLE = "top_k: [1, 2], or shared_share: {low: 0.2, high: 0.8}"
LOW, HIGH, LOG = "low", "high", "log"


@dataclasses.dataclass(frozen=True)
class Values:
    """An option that takes one of a list of values."""

    name: str
    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Range:
    """An option that takes a number from low to high, both included; whole numbers where both are whole."""

    name: str
    low: float
    high: float
    log: bool = False


Dimension = Values | Range


def read_space(text: str, fields: Mapping[str, dataclasses.Field[Any]], fixed: Mapping[str, str]) -> list[Dimension]:
    """What a sweep varies.

    Args:
        text: a YAML table of options, each with a list or a range.
        fields: the options of the chain.
        fixed: those that a sweep does not vary, each with the reason.

    Raises:
        ValueError: all faults of all options.
    """
    found, faults = list[Dimension](), list[str]()
    for name, said in _table(text).items():
        try:
            if name not in fields:
                raise ValueError(unknown(name, fields))
            if name in fixed:
                raise ValueError(f"{name} is not varied: {fixed[name]}")
            found.append(_dimension(fields[name], said))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("; ".join(faults))
    return found


def size_of_grid(dimensions: list[Dimension]) -> int:
    """Combinations of the values.

    Raises:
        ValueError: a range has no end of values; all of them are named.
    """
    n, faults = 1, list[str]()
    for dimension in dimensions:
        if isinstance(dimension, Range):
            faults.append(f"{dimension.name} is a range: sampler=grid takes lists alone; name the values")
        else:
            n *= len(dimension.values)
    if faults:
        raise ValueError("; ".join(faults))
    return n


def refused(dimensions: Sequence[Dimension], fault: Callable[[dict[str, Any]], str]) -> list[str]:
    """Values, and ends of ranges, that no trial can have: neither beside the options as given nor beside any value of one other option.

    Args:
        fault: what is wrong with options that have these values; empty where nothing is.
    """
    found = []
    for dimension in dimensions:
        beside = [{other.name: value} for other in dimensions if other is not dimension for value in _ends(other)]
        for value in _ends(dimension):
            faults = (fault({dimension.name: value} | other) for other in [{}, *beside])
            if (first := next(faults)) and all(faults):
                found.append(first)
    return list(dict.fromkeys(found))


def _ends(dimension: Dimension) -> tuple[Any, ...]:
    return (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension.values


def _table(text: str) -> dict[str, Texts]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"space: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"space={text}: must be a table such as {{{EXAMPLE}}}")
    if not root.value:
        raise ValueError(f"nothing to vary: the options file gives an option a list or a range, such as {EXAMPLE}")
    return {str(name.value): texts_of(value) for name, value in root.value}


def _dimension(field: dataclasses.Field[Any], said: Texts) -> Dimension:
    if isinstance(said, dict):
        return _range(field, said)
    return _values(field, said if isinstance(said, list) else [said])


def _values(field: dataclasses.Field[Any], texts: list[str]) -> Values:
    values = [value_of(field, text) for text in texts]
    faults = [fault for value in values for fault in value_faults(field, value)]
    faults += [f"{field.name}: {value} is there twice" for value in dict.fromkeys(values) if values.count(value) > 1]
    if faults or not values:
        raise ValueError("; ".join(faults) or f"{field.name}: the list is empty")
    return Values(field.name, tuple(values))


def _range(field: dataclasses.Field[Any], texts: dict[str, str]) -> Range:
    name = field.name
    if not {LOW, HIGH} <= set(texts) <= {LOW, HIGH, LOG}:
        raise ValueError(f"{name}: a range has {LOW}, {HIGH} and perhaps {LOG}, not {', '.join(texts) or 'nothing'}")
    low, high = (value_of(field, texts[end]) for end in (LOW, HIGH))
    faults = [fault for value in (low, high) for fault in value_faults(field, value)]
    if not faults and not all(_is_number(value) for value in (low, high)):
        faults.append(f"{name}: a range is of numbers, not from {low} to {high}; give a list")
    try:
        log = bool(from_text(texts.get(LOG, "false"), bool))
    except ValueError as error:
        faults.append(f"{name}: {LOG}: {error}")
    if faults:
        raise ValueError("; ".join(faults))
    return _checked(Range(name, low, high, log))


def _checked(found: Range) -> Range:
    faults = [] if found.low < found.high else [f"{found.name}: {LOW}={found.low} must be below {HIGH}={found.high}"]
    if found.log and found.low <= 0:
        faults.append(f"{found.name}: {LOW}={found.low} must be above 0 on a logarithmic scale")
    if faults:
        raise ValueError("; ".join(faults))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
