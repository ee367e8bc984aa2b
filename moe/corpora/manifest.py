"""The manifest: one Parquet table with a row per utterance, the only thing later stages know of a corpus.

Audio stays where it is: a row names a file below the corpus root, or a shard and the member inside it, and `read_utterance`
decodes it when a loader asks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moe.audio.waveforms import load_audio
from moe.corpora.locations import Root, read_file
from moe.corpora.shards import read_member
from moe.corpora.tables import write_table

TEXT_COLUMNS = (
    "utterance_id",
    "audio",
    "member",
    "transcript",
    "reference",
    "speaker",
    "etiology",
    "split",
    "language",
    "audio_digest",
)
NUMBER_COLUMNS = ("severity", "duration_s")
COLUMNS = (
    "utterance_id", "audio", "member", "transcript", "reference", "speaker", "etiology", "severity", "split", "duration_s",
    "language", "audio_digest",
)  # fmt: skip
SPLITS = ("train", "dev", "test")
UNKNOWN = "unknown"  # an etiology or a speaker the corpus does not tell


def read_manifest(path: str | Path) -> pd.DataFrame:
    """The manifest in a Parquet file, checked.

    Raises:
        ValueError: no such file, not Parquet, or not a manifest.
    """
    if not Path(path).is_file():
        raise ValueError(f"manifest {path}: no such file")
    try:
        manifest = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"manifest {path}: not a Parquet table ({error})") from error
    return check_manifest(manifest)


def write_manifest(path: str | Path, manifest: pd.DataFrame) -> None:
    """Write a manifest as Parquet, sorted by utterance id, whole or not at all.

    Raises:
        ValueError: it is not a manifest.
    """
    write_table(Path(path), check_manifest(manifest))


def check_manifest(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest sorted by utterance id with its columns in order, if it is one.

    Raises:
        ValueError: a column is missing, an id is empty or double, a split is none of train, dev and test, or a number is wrong.
    """
    missing = [name for name in COLUMNS if name not in manifest.columns]
    if missing:
        raise ValueError(f"manifest: column {', '.join(missing)} missing (there are {', '.join(map(str, manifest.columns))})")
    faults = _value_faults(manifest)
    if faults:
        raise ValueError("manifest: " + "; ".join(faults))
    further = [name for name in manifest.columns if name not in COLUMNS]
    manifest = manifest[[*COLUMNS, *further]]
    if not manifest["utterance_id"].is_monotonic_increasing:
        manifest = manifest.sort_values("utterance_id", kind="stable")
    return manifest.reset_index(drop=True)


def _value_faults(manifest: pd.DataFrame) -> list[str]:
    ids, faults = manifest["utterance_id"], []
    if ids.isna().any() or (ids == "").any():
        faults.append("an utterance_id is empty")
    if ids.duplicated().any():
        faults.append(f"utterance_id {ids[ids.duplicated()].iloc[0]!r} is there twice")
    wrong = sorted(set(manifest["split"].dropna()) - set(SPLITS)) + (["none"] if manifest["split"].isna().any() else [])
    if wrong:
        faults.append(f"split {wrong[0]!r} is none of {', '.join(SPLITS)}")
    durations = pd.to_numeric(manifest["duration_s"], errors="coerce")
    if not (durations > 0).all():
        faults.append(f"duration_s of {ids[~(durations > 0)].iloc[0]!r} is not above 0")
    return faults


def read_bytes(root: Root, row: Mapping[str, Any]) -> bytes:
    """The encoded audio of one utterance: its own file, or its member of a shard.

    Args:
        root: the corpus root, a folder or an fsspec address.
        row: a manifest row, or any mapping with `audio` and `member`.

    Raises:
        OutsideRoot, FileNotFoundError, ValueError: as `storage.read_file` and `shards.read_member`.
    """
    member = row["member"]
    return read_member(root, row["audio"], member) if isinstance(member, str) and member else read_file(root, row["audio"])


def read_utterance(root: Root, row: Mapping[str, Any]) -> np.ndarray:
    """The waveform of one utterance, float32, 16 kHz, mono, shape (n_samples,); `channel` of the row is the one to take, if there is one.

    Raises:
        AudioError: as `load_audio`; else as `read_bytes`.
    """
    channel = row.get("channel")
    return load_audio(read_bytes(root, row), int(channel) if isinstance(channel, str) and channel.isdigit() else "mix")
