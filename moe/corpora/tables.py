"""Tables are Parquet files, whole or absent."""

from pathlib import Path

import pandas as pd

from moe.files import write_whole


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet."""
    with write_whole(path) as aside:
        table.to_parquet(aside, index=False)
