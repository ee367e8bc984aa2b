"""Columns to break results down by, made from what the corpus gives: severity, duration, sex and how the utterance was read.

`with_groups` adds what can be derived and leaves the rest; `groupings` lists the columns worth a table, in order.
"""

import numpy as np
import pandas as pd

from analysis.hypotheses import groups_of

GROUP_COLUMNS = ("etiology", "severity_group", "sex", "language", "sentence_seen", "words_seen", "duration_group")
EVERY_GROUP = (
    "etiology",
    "corpus_domain",
    "severity_group",
    "speaker",
    "sex",
    "language",
    "sentence_seen",
    "words_seen",
    "duration_group",
)
COLUMN_NAMES = {
    "corpus_domain": "domain",
    "severity_group": "severity",
    "duration_group": "duration",
    "sentence_seen": "sentence in train",
    "words_seen": "words in train",
}  # in words, where they differ from the column
SEX_COLUMNS = ("sex", "gender")
SEX_NAMES = {"f": "female", "female": "female", "woman": "female", "m": "male", "male": "male", "man": "male"}
DURATION_EDGES_S = (0.0, 2.0, 5.0, 10.0, 20.0, 30.0, np.inf)
DURATION_NAMES = ("under 2 s", "2 to 5 s", "5 to 10 s", "10 to 20 s", "20 to 30 s", "over 30 s")
N_SEVERITY_VALUES = 7  # up to so many values are ratings and stay as they are; more are cut into thirds
SEVERITY_NAMES = ("low severity", "middle severity", "high severity")


def with_groups(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `duration_group`, `severity_group` and `sex` where their sources are there; other columns untouched."""
    made = {}
    if "duration_s" in table:
        bounds = pd.cut(table["duration_s"].astype(float), DURATION_EDGES_S, labels=DURATION_NAMES, right=False)
        made["duration_group"] = bounds
    if "severity" in table and table["severity"].notna().any():
        made["severity_group"] = severity_groups(table["severity"])
    source = next((column for column in SEX_COLUMNS if column in table), None)
    if source:
        made["sex"] = table[source].map(lambda value: SEX_NAMES.get(str(value).strip().lower()), na_action="ignore")
    return table.assign(**made)


def several(table: pd.DataFrame, column: str = "etiology") -> bool:
    """Whether rows are of two groups at least: a picture of one group shows nothing that a number does not."""
    return groups_of(table, column).nunique() > 1


def column_name(column: str) -> str:
    """What a column of groups is called in tables and pictures."""
    return COLUMN_NAMES.get(column, column.replace("_", " "))


def severity_groups(severity: pd.Series) -> pd.Series:
    """Ratings as they are; a continuous severity cut at its thirds by value, the same for every system of a test set."""
    known = severity.dropna()
    if known.nunique() <= N_SEVERITY_VALUES:
        return severity
    edges = np.quantile(known.astype(float), [1 / 3, 2 / 3])
    names = np.array(SEVERITY_NAMES, object)[np.searchsorted(edges, severity.astype(float).fillna(0), side="left")]
    categories = pd.CategoricalDtype(SEVERITY_NAMES, ordered=True)
    return pd.Series(names, index=severity.index).where(severity.notna()).astype(categories)


def groupings(table: pd.DataFrame) -> list[str]:
    """The columns of GROUP_COLUMNS that tell at least two groups apart."""
    return [column for column in GROUP_COLUMNS if column in table and table[column].nunique(dropna=False) > 1]
