"""What a row scored, in files of its own: written by the process that evaluated it, read where the table is made."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pandas as pd

from analysis.systems import SystemScores
from benchmarks.quality.variants import Job
from moe.corpora.tables import write_table
from moe.files import read_json, write_json

UNTOLD = ("only", "seeds", "gather", "rows", "n_workers", "no_plot")  # options of which no score depends
UNKEPT = ("weight_", "probability_")  # columns of the routing: large, and in no table
FACTS = ("normaliser", "test_set_digest", "seed", "seconds", "gating_accuracy", "training_seconds", "dev_wer", "n_trainable",
         "n_utterances_seen", "device", "ablations")  # fmt: skip


def write_note(path: Path, job: Job, scores: SystemScores) -> None:
    """Keep the hypotheses of a row and what is known of it, beside the table of `path`."""
    folder = _folder(path, job)
    folder.mkdir(parents=True, exist_ok=True)
    table = scores.hypotheses
    write_table(folder / "hypotheses.parquet", table[[name for name in table if not name.startswith(UNKEPT)]])
    said = {name: getattr(scores, name) for name in ("name", "run_id", "system", "role", "control")}
    write_json(folder / "scores.json", said | {"metadata": {name: scores.metadata.get(name) for name in FACTS}})


def read_note(path: Path, job: Job) -> SystemScores | None:
    """What a row scored, in whatever process; None where it has not been evaluated."""
    folder = _folder(path, job)
    return _read(folder) if (folder / "scores.json").exists() else None


def read_notes(folder: Path) -> list[SystemScores]:
    """All rows that were kept below a folder, whatever their options."""
    return [_read(file.parent) for file in sorted(folder.glob("*/scores.json"))]


def _read(folder: Path) -> SystemScores:
    return SystemScores(**read_json(folder / "scores.json"), hypotheses=pd.read_parquet(folder / "hypotheses.parquet"))


def _folder(path: Path, job: Job) -> Path:
    """A folder for the row's name, its seed and the options that are not as by default."""
    name, seed, row = job
    names = [field.name for field in dataclasses.fields(row) if field.name not in UNTOLD and row.is_changed(field.name)]
    options = {option: getattr(row, option) for option in names}
    digest = hashlib.sha256(json.dumps([name, seed, options]).encode()).hexdigest()
    return path.with_name(f"{path.name}_rows") / digest[:16]
