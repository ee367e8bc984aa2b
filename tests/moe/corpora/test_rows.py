"""Rows made one by one are those that pandas makes at once."""

import numpy as np
import pandas as pd

from moe.corpora.rows import BLOCK, Rows

TABLE = pd.DataFrame(
    {
        "text": pd.array(["a", None, "ü"], dtype="str"),
        "number": [1.5, np.nan, 3.0],
        "count": [1, 2, 3],
        "flag": [True, False, True],
        "anything": [{"a": 1}, None, "x"],
    }
)


def same(ours, theirs) -> bool:
    return [{name: (type(value), repr(value)) for name, value in row.items()} for row in ours] == [
        {name: (type(value), repr(value)) for name, value in row.items()} for row in theirs
    ]


def test_rows_are_those_of_pandas_one_by_one_in_turn_and_in_part() -> None:
    rows, expected = Rows(TABLE), TABLE.to_dict("records")
    assert len(rows) == 3 and same([rows[0], rows[1], rows[-1]], expected) and same(list(rows), expected)
    assert same(rows[::-1], expected[::-1]) and same(list(rows.take(np.array([2, 0]))), [expected[2], expected[0]])
    assert rows.column("count") == [1, 2, 3] and list(rows.only(["count", "none"])) == [{"count": n} for n in (1, 2, 3)]


def test_more_rows_than_are_made_together_come_in_their_order() -> None:
    n = 2 * BLOCK + 3
    assert [row["n"] for row in Rows(pd.DataFrame({"n": range(n)}))] == list(range(n))
