"""Tiny corpora in every format, made with real encoders: the same eight utterances, whatever they lie in."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from moe.corpora.manifest import COLUMNS

ROW = dict.fromkeys(COLUMNS, "x") | {"member": None, "severity": float("nan"), "duration_s": 1.0, "split": "train", "gender": "f"}
RATE = 16_000
SUBTYPES = {"mp3": ("MP3", "MPEG_LAYER_III"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")}
UTTERANCES = pd.DataFrame(
    [
        (f"u{k}", f"sentence number {k}", f"s{k // 2}", ("als", "stroke")[k // 4], ("train", "train", "dev", "test")[k // 2])
        for k in range(8)
    ],
    columns=["id", "transcript", "speaker", "etiology", "split"],
)


def tone(number: int, seconds: float = 0.4, rate: int = RATE, n_channels: int = 1) -> np.ndarray:
    """A chord that no other number has, (n_samples,) or (n_samples, n_channels)."""
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200 + 7 * number) * time) + 0.2 * np.sin(2 * np.pi * (320 + 11 * number) * time)
    wave = wave.astype(np.float32)
    return wave if n_channels == 1 else np.stack([wave] * n_channels, axis=1)


def encode(wave: np.ndarray, container: str = "wav", rate: int = RATE, subtype: str | None = None) -> bytes:
    """A waveform as the bytes of an audio file."""
    if container in ("m4a", "aac"):
        return encode_aac(wave, rate, container)
    if subtype is None and container in ("wav", "flac", "aiff", "rf64"):
        wave = np.round(wave * 32768).astype(np.int16)  # else each container rounds in its own way
    name, default = SUBTYPES.get(container, (container.upper(), None))
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=name, subtype=subtype or default)
    return buffer.getvalue()


def encode_aac(wave: np.ndarray, rate: int, container: str = "m4a") -> bytes:
    """AAC in MP4 (`m4a`) or as a bare ADTS stream (`aac`)."""
    channels = np.atleast_2d(wave.T).astype(np.float32)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format={"m4a": "mp4", "aac": "adts"}[container]) as file:
        stream = file.add_stream("aac", rate=rate, layout="mono" if len(channels) == 1 else "stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return buffer.getvalue()


def audio_of(number: int) -> bytes:
    """The recording of utterance `number`: 0.4 s of FLAC."""
    return encode(tone(number), "flac")


def write_folder(root: Path) -> Path:
    """`manifest.csv` and flacs."""
    rows = []
    for number, row in UTTERANCES.iterrows():
        path = root / "wav" / f"{row.id}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(audio_of(number))
        rows.append({"path": f"wav/{row.id}.flac", **row})
    write_csv(root / "manifest.csv", rows)
    return root


def write_csv(path: Path, rows: list[dict]) -> None:
    """A table with the keys of the first row as its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_audiofolder(root: Path) -> Path:
    """`datasets`' audiofolder: a `metadata.csv` beside the audio of every split."""
    for split, rows in UTTERANCES.groupby("split"):
        for number, row in rows.iterrows():
            (root / split).mkdir(parents=True, exist_ok=True)
            (root / split / f"{row.id}.flac").write_bytes(audio_of(number))
        table = rows.rename(columns={"transcript": "transcription"}).assign(file_name=rows["id"] + ".flac").drop(columns="split")
        write_csv(root / split / "metadata.csv", table.to_dict("records"))
    return root


def sap_record(speaker: str, rows: pd.DataFrame) -> dict:
    """One contributor's JSON."""
    files = [
        {
            "Filename": f"{row.id}.flac",
            "Prompt": {"Prompt Text": "say it", "Transcript": row.transcript, "Category Description": "Novel Sentences"},
            "Ratings": [
                {"Dimension Description": "Intelligbility ", "Level": "3"},
                {"Dimension Description": "Intelligibility", "Level": ""},
            ],
        }
        for row in rows.itertuples()
    ]
    return {"Contributor ID": speaker, "Etiology": rows["etiology"].iloc[0], "Files": files}


def sap_files(speaker: str, rows: pd.DataFrame) -> dict[str, bytes]:
    """One contributor's folder: name → bytes."""
    return {
        f"{speaker}/{speaker}.json": json.dumps(sap_record(speaker, rows)).encode(),
        **{f"{speaker}/{row.id}.flac": audio_of(number) for number, row in rows.iterrows()},
    }


def sap_split(rows: pd.DataFrame) -> str:
    """SAP has Train and Dev only."""
    return "Dev" if rows["split"].iloc[0] == "dev" else "Train"


def write_sap(root: Path) -> Path:
    """The extracted tree."""
    for speaker, rows in UTTERANCES.groupby("speaker"):
        for name, data in sap_files(speaker, rows).items():
            path = root / sap_split(rows) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def write_sap_tars(root: Path) -> Path:
    """The release: one tar a split, in it one tar a contributor."""
    for split in ("Train", "Dev"):
        inner = {
            f"{speaker}.tar": tar_bytes(sap_files(speaker, rows))
            for speaker, rows in UTTERANCES.groupby("speaker")
            if sap_split(rows) == split
        }
        (root / f"SAP_{split}.tar").parent.mkdir(parents=True, exist_ok=True)
        (root / f"SAP_{split}.tar").write_bytes(tar_bytes(inner))
    return root


def tar_bytes(files: dict[str, bytes]) -> bytes:
    """An uncompressed tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def shard_files(rows: pd.DataFrame) -> dict[str, bytes]:
    """Members of a WebDataset shard."""
    return {
        name: data
        for number, row in rows.iterrows()
        for name, data in (
            (f"{row.id}.flac", audio_of(number)),
            (f"{row.id}.txt", row.transcript.encode()),
            (f"{row.id}.domain", row.etiology.encode()),
            (f"{row.id}.json", json.dumps({"speaker": row.speaker, "sentence_type": "read"}).encode()),
        )
    }


def write_webdataset(root: Path) -> Path:
    """One shard a split, and `metadata.json`."""
    shards = []
    for split, rows in UTTERANCES.groupby("split"):
        folder = root / {"dev": "val_small"}.get(split, split)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "000000.tar").write_bytes(tar_bytes(shard_files(rows)))
        shards.append({"filename": f"{folder.name}/000000.tar", "samples": len(rows)})
    (root / "metadata.json").write_text(json.dumps({"total_samples": 8, "shards": shards}))
    return root


def arrow_table(rows: pd.DataFrame) -> pa.Table:
    """Audio as `datasets` stores it: a struct of bytes and path."""
    audio = [{"bytes": audio_of(number), "path": f"{row.id}.flac"} for number, row in rows.iterrows()]
    columns = {name: pa.array(rows[name].tolist()) for name in ("id", "transcript", "speaker", "etiology")}
    return pa.table({"audio": pa.array(audio, pa.struct({"bytes": pa.binary(), "path": pa.string()})), **columns})


def write_parquet(root: Path) -> Path:
    """One file a split, two rows a row group."""
    for split, rows in UTTERANCES.groupby("split"):
        (root / "data").mkdir(parents=True, exist_ok=True)
        name = {"dev": "validation"}.get(split, split)
        pq.write_table(arrow_table(rows), root / "data" / f"{name}-00000-of-00001.parquet", row_group_size=2)
    return root


def write_openslr(root: Path) -> Path:
    """OpenSLR 54: no etiology, no split."""
    lines = []
    for number, row in UTTERANCES.iterrows():
        path = root / "data" / row.id[:2] / f"{row.id}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(audio_of(number))
        lines.append(f"{row.id}\t{row.speaker}{chr(9) * (1 + number % 2)}{row.transcript}\n")
    (root / "utt_spk_text.tsv").write_text("".join(lines))
    return root


def write_hf(root: Path) -> Path:
    """A dataset saved to disk."""
    import datasets

    parts = {split: datasets.Dataset(arrow_table(rows)) for split, rows in UTTERANCES.groupby("split")}
    datasets.DatasetDict(parts).save_to_disk(str(root))
    return root


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "folder": ("folder", write_folder),
    "audiofolder": ("folder", write_audiofolder),
    "sap": ("sap", write_sap),
    "sap_tars": ("sap", write_sap_tars),
    "webdataset": ("webdataset", write_webdataset),
    "parquet": ("parquet", write_parquet),
    "openslr": ("openslr", write_openslr),
    "hf": ("hf", write_hf),
}
