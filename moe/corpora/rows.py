"""The rows of a table as dictionaries, each made when it is asked for: those of a million utterances at once would take gigabytes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

BLOCK = 4096  # rows made together when all are gone through


class Rows(Sequence[dict[str, Any]]):
    """Rows as `DataFrame.to_dict("records")` gives them, but held as columns, which forked processes share."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self._arrays = {str(name): table[name].array for name in table.columns}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return list(Rows(self.table.iloc[place]))
        return {name: _plain(array[place]) for name, array in self._arrays.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), BLOCK):
            yield from self.table.iloc[start : start + BLOCK].to_dict("records")

    def column(self, name: str) -> list[Any]:
        """The values of one column, (N,)."""
        return self.table[name].tolist()

    def take(self, places: np.ndarray) -> "Rows":
        """Some of the rows, by places (n,)."""
        return Rows(self.table.iloc[places])

    def only(self, names: Sequence[str]) -> "Rows":
        """The same rows with those of these columns that there are."""
        return Rows(self.table[[name for name in names if name in self.table.columns]])


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
