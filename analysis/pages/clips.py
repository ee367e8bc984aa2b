"""Audio inside the error explorer: short recordings as MP3 data URIs, as many as a budget allows, the telling ones first."""

import base64
import io
from collections.abc import Callable

import numpy as np
import pandas as pd
import soundfile

SAMPLE_RATE = 16_000
MOST_MISSES = 20  # recordings in a row that no longer fit: the budget is spent
COMPRESSION = 0.7  # variable rate, 0 best to 1 smallest: about 4 KB by second


def clip_uri(waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> str:
    """A waveform, float (n_samples,) in −1 … 1, as the data URI of an MP3, which every browser plays: about 5 KB by second."""
    buffer = io.BytesIO()
    samples = np.clip(np.asarray(waveform, np.float32), -1, 1)
    soundfile.write(buffer, samples, sample_rate, format="MP3", compression_level=COMPRESSION, bitrate_mode="VARIABLE")
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def embed_clips(counted: pd.DataFrame, load: Callable[[str], np.ndarray], budget_mb: float, seed: int = 0) -> dict[str, str]:
    """Data URIs by utterance id, together no larger than the budget.

    Args:
        counted: counted hypotheses table.
        load: waveform of an utterance id, at 16 kHz.
        budget_mb: megabytes of the page; 0 embeds nothing and loads nothing.

    Half are the utterances with most errors, half are drawn at random, in turn until the budget is spent.
    """
    found, used, misses = {}, 0, 0
    for utterance_id in clip_order(counted, seed) if budget_mb else []:
        clip = clip_uri(load(utterance_id))
        if used + len(clip) > budget_mb * 1e6:
            misses += 1
            if misses == MOST_MISSES:
                break
            continue
        found[utterance_id], used, misses = clip, used + len(clip), 0
    return found


def clip_order(counted: pd.DataFrame, seed: int = 0) -> list[str]:
    """Every utterance id once: worst, random, second worst, …; the same for any order of the rows."""
    table = counted.sort_values("utterance_id")
    worst = table.sort_values(["word_errors", "n_words", "utterance_id"], ascending=[False, True, True])["utterance_id"]
    drawn = np.random.default_rng(seed).permutation(table["utterance_id"].to_numpy())
    return list(dict.fromkeys(name for pair in zip(worst, drawn, strict=True) for name in pair))
