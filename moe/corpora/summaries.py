"""What a manifest holds, in tables: utterances, minutes, speakers, durations and words."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from moe.audio.sampling import SAMPLE_RATE
from moe.corpora.locations import Root
from moe.corpora.manifest import SPLITS, read_utterance
from moe.corpora.rows import Rows
from moe.progress import counted


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


FRAME_S = 0.02
GATE_DB = 40.0  # frames so far below the loudest are silence
FLOOR_DB = -120.0


def loudness_db(waveform: np.ndarray) -> float:
    """Root mean square about the mean, in dB of full scale, of the frames within 40 dB of the loudest; −120 for silence. (n_samples,) → ()."""
    size = round(FRAME_S * SAMPLE_RATE)
    centred = np.asarray(waveform, np.float64) - (np.mean(waveform, dtype=np.float64) if len(waveform) else 0.0)
    padded = np.pad(centred, (0, -len(waveform) % size))
    power = (padded.reshape(-1, size) ** 2).mean(1)  # (n_frames,)
    spoken = power[power >= power.max(initial=0.0) * 10 ** (-GATE_DB / 10)]
    mean = float(spoken.mean()) if len(spoken) else 0.0
    return max(FLOOR_DB, 10 * np.log10(mean)) if mean > 0 else FLOOR_DB


def loudness_of(manifest: pd.DataFrame, root: Root, reached: Callable[[int], None] | None = None) -> np.ndarray:
    """Loudness of each utterance of a manifest, (n_utterances,).

    Args:
        reached: is told the number of each utterance before it is read.
    """
    found = np.zeros(len(manifest))
    for number, row in enumerate(counted(Rows(manifest), "loudness", "utterances")):
        if reached is not None:
            reached(number)
        found[number] = loudness_db(read_utterance(root, row))
    return found
