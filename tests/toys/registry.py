"""A store with a toy mixture and evaluations of it, without any training: what registering and serving start from."""

import contextlib
import dataclasses
import functools
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from analysis.error_rates import count_errors
from moe.experts.routed_lora import AdapterOptions
from moe.files import write_json
from moe.options import Options, option
from moe.routing.options import RoutingOptions
from moe.systems.whisper.base_model import load_base, save_base
from moe.systems.whisper_moe.building import wrap
from moe.systems.whisper_moe.folder import BASE, CONTROLS, LORA, MIXTURE, ROLES, TITLES, WhisperShape, new_record
from moe.systems.whisper_moe.model import WhisperMoE
from steps.tracking import artifacts, runs
from steps.tracking.names import is_by_group
from tests.toys.corpora import RATE, encode
from tests.toys.models import CONTEXT, N_EXPERTS, adapter_options, awaken, shared_base, toy_gate, toy_wave

WORDS = ("oak", "elm", "fig", "ash", "yew", "bay", "fir", "box")
GROUPS = ("als", "stroke", "typical")
N_SPEAKERS, N_EACH = 12, 6  # utterances of each speaker
WRONG = {"als": 0.5, "stroke": 0.4, "typical": 0.2}
BETTER = {"als": 0.25, "stroke": 0.2, "typical": 0.1}
WORSE = {"als": 0.7, "stroke": 0.6, "typical": 0.3}
MOST_METRICS, PER_SYSTEM = 30, ("test/wer/", "test/sapc")
POOR = {"als": 0.95, "stroke": 0.9, "typical": 0.85}


@contextlib.contextmanager
def toy_store(empty_store: Path, folder: Path) -> Iterator[Path]:
    """As the fixture `store`, for all tests of a module."""
    folder.mkdir()
    with (
        contextlib.closing(sqlite3.connect(empty_store)) as source,
        contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as copy,
    ):
        source.backup(copy)
        copy.execute(
            "update experiments set artifact_location = replace(artifact_location, ?, ?)", (str(empty_store.parent), str(folder))
        )
        copy.commit()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield folder
        assert crowded_runs(folder) == {}
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)


def crowded_runs(store: Path) -> dict[str, list[str]]:
    """Runs with more metrics than a person looks through, or with one of a group that is no system, and those metrics."""
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as database:
        own = "select run_uuid || ' ' || name as run, key from latest_metrics join runs using (run_uuid) where key not like 'system/%'"
        by_run = {str(run): sorted(keys) for run, keys in pd.read_sql(own, database).groupby("run")["key"]}
    grouped = {run: [key for key in keys if is_by_group(key) and not key.startswith(PER_SYSTEM)] for run, keys in by_run.items()}
    return {run: grouped[run] or keys for run, keys in by_run.items() if grouped[run] or len(keys) > MOST_METRICS}


@dataclasses.dataclass(frozen=True)
class ToyOptions(Options):
    """Parameters of a toy run."""

    model_run_id: str = option("none", "")
    prepare_run_id: str = option("none", "")
    beam_size: int = option(1, "")
    max_tokens_per_s: float = option(2.0, "")
    decoding_top_k: int | None = option(None, "")


def write_toy_model(folder: Path, n_experts: int = N_EXPERTS) -> Path:
    """A whole recogniser as a folder."""
    base_dir = folder.parent / "toy_base"
    save_base(shared_base(), base_dir)
    base = load_base(str(base_dir))
    adapters: AdapterOptions = adapter_options(shared_r=2)
    shape = WhisperShape(n_experts, adapters, RoutingOptions(), CONTEXT, {"als": 1})
    gate = toy_gate(2 * base.model.config.d_model, n_experts) if n_experts else None
    model = WhisperMoE(base.model, n_experts, adapters, shape.routing, gate)
    awaken(model.base)
    facts = {"n_trainable": 1234, "n_utterances_seen": 99, "seed": 0}
    record = new_record(MIXTURE if n_experts else LORA, shape, "en", "basic", facts)
    wrap(model.eval(), base, base_dir, record).save(folder)
    return folder


def log_toy_asr(folder: Path) -> str:
    """A finished run that holds the toy mixture as artifact `model`: its id."""
    with runs.step_run("asr", ToyOptions()) as step:
        step.log_folder(write_toy_model(folder / "model"), artifacts.MODEL)
    mlflow.end_run()
    return step.run_id


def log_toy_evaluation(
    model_run_id: str, wrong: Mapping[str, float], seed: int = 0, system: str = MIXTURE, digest: str = "d1", **changes
) -> str:
    """A finished evaluation in which a share `wrong[etiology]` of all words is wrong: its id."""
    scores = {
        "system": system, "title": TITLES[system], "role": ROLES[system], "control": CONTROLS.get(system), "normaliser": "basic-1", "test_set_digest": digest, "prepare_run_id": "none", "note": "toy",
        "expert_wer": {"expert_0": 0.4}, "ablations": {}, "n_trainable": 1234, "seed": seed,
    } | changes  # fmt: skip
    with runs.step_run("evaluate", ToyOptions(model_run_id=model_run_id)) as step, tempfile.TemporaryDirectory() as temporary:
        write_json(Path(temporary) / artifacts.SCORES, scores)
        step.log_file(Path(temporary) / artifacts.SCORES)
        step.log_table(count_errors(toy_hypotheses(wrong, seed)), artifacts.HYPOTHESES)
    mlflow.end_run()
    return step.run_id


def log_toy_rivals(model_run_id: str, wrong: Mapping[str, float] = POOR, **changes) -> list[str]:
    """Finished evaluations of the base model and of one LoRA on the test set of `log_toy_evaluation`: their ids."""
    return [log_toy_evaluation(model_run_id, wrong, number, system, **changes) for number, system in enumerate((BASE, LORA), 50)]


def toy_hypotheses(wrong: Mapping[str, float], seed: int = 0) -> pd.DataFrame:
    """Twelve speakers, six utterances each; the references are the same whatever the seed."""
    random, rows = np.random.default_rng(seed), []
    for speaker in range(N_SPEAKERS):
        group = GROUPS[speaker % len(GROUPS)]
        for number in range(N_EACH):
            reference = [WORDS[(speaker + number + place) % len(WORDS)] for place in range(8)]
            said = ["oops" if random.random() < wrong[group] else word for word in reference]
            row = {"utterance_id": f"s{speaker:02d}_{number}", "speaker": f"s{speaker:02d}", "etiology": group, "duration_s": 1.5}
            rows.append(row | {"language": "en", "reference": " ".join(reference), "hypothesis": " ".join(said)})
    return pd.DataFrame(rows)


@functools.cache
def toy_recording(number: int = 0, seconds: float = 0.5, container: str = "wav") -> bytes:
    """Encoded audio."""
    return encode(toy_wave(number, seconds), container, RATE)
