"""A synthetic corpus as WebDataset shards in the layout of document 003: `train`, `train_normal`, `val_small`, `val_small_normal`, ….

Each sample is `<key>.flac`, `<key>.txt` and `<key>.json` with speaker, etiology, severity and language; each folder has a `metadata.json`.
"""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd

from moe.files import write_json

SAMPLES_PER_SHARD = 250
FOLDERS = {"train": "train", "dev": "val_small", "test": "test"}
NORMAL = "typical"
COLUMNS = ("speaker", "etiology", "severity", "language")


def pack(folder: Path, samples_per_shard: int = SAMPLES_PER_SHARD) -> None:
    """Put the recordings of a corpus in `folder` into shards, in place of its folder `audio`; `manifest.csv` stays."""
    rows = pd.read_csv(folder / "manifest.csv")
    names = rows["split"].map(FOLDERS) + (rows["etiology"] == NORMAL).map({True: "_normal", False: ""})
    for name, part in rows.groupby(names):
        starts = range(0, len(part), samples_per_shard)
        shards = {f"shard_{number:06d}.tar": part.iloc[start : start + samples_per_shard] for number, start in enumerate(starts)}
        (folder / name).mkdir()
        for shard, samples in shards.items():
            _write_shard(folder / name / shard, samples.to_dict("records"), folder)
        listed = [{"filename": shard, "samples": len(samples)} for shard, samples in shards.items()]
        write_json(folder / name / "metadata.json", {"total_samples": len(part), "shards": listed})
    shutil.rmtree(folder / "audio")


def _write_shard(path: Path, samples: list[dict[str, Any]], folder: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            key, record = sample["utterance_id"], {name: sample[name] for name in COLUMNS}
            _add(tar, f"{key}.flac", (folder / sample["path"]).read_bytes())
            _add(tar, f"{key}.txt", sample["transcript"].encode())
            _add(tar, f"{key}.json", json.dumps(record, ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member whose header says nothing of when and by whom: the same corpus gives the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
