"""What a manifest holds, in tables: utterances, minutes, speakers, durations and words."""

import pandas as pd

from moe.corpora.manifest import SPLITS


def corpus_statistics(manifest: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Tables by name.

    Returns:
        `utterances`, `minutes`, `speakers`: etiology, one column per split, total.
        `durations` (seconds) and `words` (per reference): etiology, n, mean, min, median, p95, max.
    """
    words = manifest["reference"].str.count(r"\S+")
    return {
        "utterances": _by_split(manifest, manifest["utterance_id"], "count").astype({name: int for name in (*SPLITS, "total")}),
        "minutes": _by_split(manifest, manifest["duration_s"] / 60, "sum"),
        "speakers": _by_split(manifest, manifest["speaker"], "nunique").astype({name: int for name in (*SPLITS, "total")}),
        "durations": _spread(manifest["duration_s"], manifest["etiology"]),
        "words": _spread(words, manifest["etiology"]),
    }


def _by_split(manifest: pd.DataFrame, values: pd.Series, how: str) -> pd.DataFrame:
    cells = values.groupby([manifest["etiology"], manifest["split"]]).agg(how).unstack(fill_value=0)
    cells = cells.reindex(columns=list(SPLITS), fill_value=0).rename_axis(columns=None)
    cells["total"] = values.groupby(manifest["etiology"]).agg(how)
    return cells.reset_index()


def _spread(values: pd.Series, etiology: pd.Series) -> pd.DataFrame:
    grouped = values.astype(float).groupby(etiology)
    spread = grouped.agg(n="count", mean="mean", min="min", median="median", max="max")
    spread.insert(4, "p95", grouped.quantile(0.95))
    return spread.reset_index()
