"""Names of a whole corpus: forms of one name become one, and ids that do not tell utterances apart are replaced."""

import unicodedata
from collections.abc import Sequence

import pandas as pd

from moe.corpora.formats.columns import further_name
from moe.corpora.names import canonical

MOST_REPEATED = 0.05  # a column in which a larger share of the rows repeats an id names something else than utterances
SHOWN = 3


def tell_apart(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The table with ids made of the places where the corpus's own ids repeat; what it says stays in `corpus_id`.

    FLEURS is such a corpus: its `id` numbers the sentence. A few repeats are left, to be quarantined as duplicates.
    """
    claimed = table["place_id"] != ""
    ids = table["utterance_id"].where(claimed)
    repeated = ids.duplicated(keep=False) & claimed & ~table.duplicated(["utterance_id", "audio", "member"], keep=False)
    n_repeats = int(ids[claimed].duplicated().sum())
    if not repeated.any() or n_repeats <= MOST_REPEATED * int(claimed.sum()):
        return table.drop(columns="place_id")
    notes.append(
        f"the column of ids repeats in {n_repeats} of {int(claimed.sum())} rows (first {ids[repeated].iloc[0]!r}), so it is no id of "
        "utterances: ids are made of the places of the audio, and it is kept as corpus_id (id_column names another)"
    )
    return table.assign(corpus_id=ids, utterance_id=table["place_id"].where(claimed, table["utterance_id"])).drop(
        columns="place_id"
    )


def merge_forms(table: pd.DataFrame, columns: Sequence[str], notes: list[str]) -> None:
    """Write each name in its canonical form, in place; the corpus's own stays in `corpus_NAME` where any differs."""
    for column in columns:
        raw = table[column]
        forms = {name: canonical(name) for name in raw.unique()}
        if any(name != form for name, form in forms.items()):
            table[column], table[further_name(column)] = raw.map(forms).astype("str"), raw
        notes += _several_forms(column, forms) + _alike(column, sorted(set(forms.values())))


def _several_forms(column: str, forms: dict[str, str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name, form in forms.items():
        groups.setdefault(form, []).append(name)
    several = [f"{form!r} ({', '.join(map(ascii, sorted(names)))})" for form, names in sorted(groups.items()) if len(names) > 1]
    return [f"one {column} in several forms, read as one: {_first(several)}"] if several else []


def _alike(column: str, names: list[str]) -> list[str]:
    """Names that may be one by mistake: they differ in case, in spaces between words or in the width of letters (NFKC)."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    return (
        [f"each {column} that differs from another in case, spaces or width alone is kept apart: {_first(alike)}"]
        if alike
        else []
    )


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
