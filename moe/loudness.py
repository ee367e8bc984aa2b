"""How loud an utterance is, as people hear it: its level where somebody speaks, silence left out."""

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from moe.audio.waveforms import SAMPLE_RATE
from moe.corpora.manifest import read_utterance

FRAME_S = 0.02
GATE_DB = 40.0  # frames so far below the loudest are silence
FLOOR_DB = -120.0


def loudness_db(waveform: np.ndarray) -> float:
    """Root mean square in dB of full scale of the frames within 40 dB of the loudest; −120 for silence. (n_samples,) → ()."""
    size = round(FRAME_S * SAMPLE_RATE)
    padded = np.pad(np.asarray(waveform, np.float64), (0, -len(waveform) % size))
    power = (padded.reshape(-1, size) ** 2).mean(1)  # (n_frames,)
    spoken = power[power >= power.max(initial=0.0) * 10 ** (-GATE_DB / 10)]
    mean = float(spoken.mean()) if len(spoken) else 0.0
    return max(FLOOR_DB, 10 * np.log10(mean)) if mean > 0 else FLOOR_DB


def loudness_of(manifest: pd.DataFrame, root: Path) -> np.ndarray:
    """Loudness of each utterance of a manifest, (n_utterances,)."""
    rows = manifest.to_dict("records")
    return np.array([loudness_db(read_utterance(root, row)) for row in tqdm(rows, desc="loudness", unit="utterance")])
