"""The hypotheses table: one row per utterance scored, reference beside hypothesis, both already normalised.

`evaluate` writes it, everything in this package reads it. `check_hypotheses` says early what is wrong with one; a failed
utterance is a row with an empty hypothesis and an `error`, never a missing row.
"""

import re
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

REQUIRED = ("utterance_id", "speaker", "reference", "hypothesis")
UNKNOWN = "unknown"  # the group of rows whose group column is empty: shown, never dropped
MAX_NAMED = 5  # ids named in an error message


def check_hypotheses(table: pd.DataFrame, columns: Sequence[str] = REQUIRED) -> None:
    """Refuse a table that cannot be scored.

    Raises:
        ValueError: a column is missing, the table is empty, an utterance_id occurs twice, or a reference, hypothesis or
            speaker is not a string.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(
            f"hypotheses table lacks the column(s) {', '.join(missing)}; it has {', '.join(map(str, table.columns))}"
        )
    if table.empty:
        raise ValueError("hypotheses table has no rows; at least one utterance is needed")
    repeated = table["utterance_id"][table["utterance_id"].duplicated()]
    if len(repeated):
        raise ValueError(f"hypotheses table holds utterance_id more than once: {name_some(repeated)}")
    for column in ("reference", "hypothesis", "speaker"):
        _check_strings(table, column)


def name_some(ids: Collection[str]) -> str:
    """The first few ids, sorted, and how many more there are."""
    names = sorted(str(name) for name in ids)
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def groups_of(table: pd.DataFrame, column: str | None) -> pd.Series:
    """The group of each row as text: the column's value, `unknown` where it is empty, `all` for no column.

    Returns:
        an ordered categorical: numbers by size, a categorical column in its own order, the rest by name; `unknown` last.

    Raises:
        ValueError: the table has no such column.
    """
    if column is None:
        return pd.Series(pd.Categorical(["all"] * len(table), ["all"], ordered=True), index=table.index)
    if column not in table.columns:
        raise ValueError(f"no column {column!r} to group by; the table has {', '.join(map(str, table.columns))}")
    values = table[column]
    names = [_group_name(value) for value in _in_order(values)]
    texts = values.astype(object).map(_group_name).where(values.notna(), UNKNOWN)
    categories = list(dict.fromkeys(name for name in names if name != UNKNOWN))
    if (texts == UNKNOWN).any():
        categories.append(UNKNOWN)
    return pd.Series(pd.Categorical(texts, categories, ordered=True), index=table.index)


def weight_columns(table: pd.DataFrame) -> list[str]:
    """The routing weight columns `weight_0` … in the order of the experts; empty for a system that does not route.

    Raises:
        ValueError: the numbers are not 0 … E−1.
    """
    numbers = sorted(int(name[7:]) for name in map(str, table.columns) if re.fullmatch(r"weight_\d+", name))
    if numbers != list(range(len(numbers))):
        raise ValueError(f"routing weight columns must be weight_0 … weight_{len(numbers) - 1}; found numbers {numbers}")
    return [f"weight_{number}" for number in numbers]


def _in_order(values: pd.Series) -> list:
    """The values that occur, without empty ones, in the order their groups are shown."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        present = set(values.dropna())
        return [category for category in values.cat.categories if category in present]
    present = values.dropna().unique().tolist()
    return sorted(present) if pd.api.types.is_numeric_dtype(values) else sorted(present, key=str)


def _group_name(value: object) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _check_strings(table: pd.DataFrame, column: str) -> None:
    wrong = ~table[column].map(lambda value: isinstance(value, str))
    if wrong.any():
        raise ValueError(
            f"{column} must be text ('' where nothing was recognised), but is not for utterance(s) "
            f"{name_some(table['utterance_id'][wrong])}"
        )
