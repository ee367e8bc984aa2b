"""What earlier runs left: artifact names, once for the step that writes and the steps that read, and the way to them by run id."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from moe.options import Options, is_required, listed, names_of
from steps.tracking.names import RUN_IDS, STEP_TAG
from steps.tracking.run_ids import whole_id
from steps.tracking.secrets import without_secrets
from steps.tracking.store import connect

MANIFEST = "manifest.parquet"
QUARANTINE = "tables/quarantine.parquet"
CORPUS = "corpus"
BASE = "base"
DECODER = "decoder"
EMBEDDINGS = "embeddings"
CLUSTERS = "clusters"
LABELS = "clusters/labels.parquet"
GATE = "gate"
EXPERTS = "experts"
EXPERTS_RECORD = "experts/experts.json"
MODEL = "model"
SCORES = "scores.json"
HYPOTHESES = "hypotheses.parquet"
COMPARISON = "comparison.parquet"
FINGERPRINT = "fingerprint.json"
TRACEBACK = "traceback.txt"
NONE_GIVEN = ("", "none")
READ_OF = {
    "synthesize_run_id": CORPUS,
    "prepare_run_id": MANIFEST,
    "pretrain_run_id": BASE,
    "embed_run_id": EMBEDDINGS,
    "cluster_run_id": LABELS,
    "gate_run_id": GATE,
    "experts_run_id": EXPERTS,
    "decoder_run_id": DECODER,
    "asr_run_id": MODEL,
    "baseline_run_id": MODEL,
    "match_run_id": MODEL,
    "model_run_id": MODEL,
    "evaluate_run_ids": SCORES,
}  # the artifact that a step reads of the run that an option names


def upstream(run_id: str | None, artifact: str) -> Path:
    """Local path of an artifact of a finished run; copied only where the store is not on this machine.

    Raises:
        RuntimeError: no such run, it did not finish, or it holds no such artifact.
    """
    run = _holding(run_id, artifact)
    folder = local_folder(run.info.artifact_uri)
    return downloaded(run.info.artifact_uri, artifact) if folder is None else folder / artifact


def refuse_unreadable(options: Options) -> None:
    """Refuse runs that an option names and nothing can be read of, before a step begins.

    Raises:
        RuntimeError: all of them, each with the option that names it.
    """
    faults = []
    for name in (name for name in names_of(type(options)) if name in READ_OF):
        for run_id in listed(getattr(options, name) or ""):
            if run_id in NONE_GIVEN and not is_required(type(options).__dataclass_fields__[name]):
                continue
            try:
                _holding(run_id, READ_OF[name])
            except RuntimeError as error:
                faults.append(f"{name}: {error}")
    if faults:
        raise RuntimeError("; ".join(faults))


def local_folder(artifact_uri: str) -> Path | None:
    """The folder of an artifact address that lies on this machine; None elsewhere."""
    repository = get_artifact_repository(artifact_uri)
    return Path(repository.artifact_dir) if isinstance(repository, LocalArtifactRepository) else None


def lineage(run_id: str) -> dict[str, str]:
    """Run id → step of a run and of every run it was made from, nearest first, read from the logged `…_run_id(s)` parameters."""
    client, found, waiting = connect().client, {}, [run_id]
    while waiting:
        current = whole_id(waiting.pop(0))  # `mlflow run` logs what it was given
        if current in found:
            continue
        run = client.get_run(current)
        found[current] = run.data.tags.get(STEP_TAG, "?")
        named = [value for key, value in sorted(run.data.params.items()) if key.endswith(RUN_IDS)]
        waiting += [part.strip() for value in named for part in value.split(",") if part.strip() not in NONE_GIVEN]
    return found


def _holding(run_id: str | None, artifact: str) -> Run:
    run = _finished(run_id, artifact)
    folder = local_folder(run.info.artifact_uri)
    if not (_is_listed(run, artifact) if folder is None else (folder / artifact).exists()):
        raise RuntimeError(f"{_words(run)} holds no {artifact!r} (expected at {run.info.artifact_uri})")
    return run


def _finished(run_id: str | None, artifact: str) -> Run:
    if run_id is None or run_id in NONE_GIVEN:
        raise RuntimeError(f"no run id given for the run that holds {artifact!r}")
    try:
        run = connect().client.get_run(whole_id(run_id))
    except (MlflowException, ValueError) as error:
        raise RuntimeError(
            f"no run {run_id!r} in {without_secrets(mlflow.get_tracking_uri())} (asked for its {artifact!r})"
        ) from error
    if run.info.status != "FINISHED":
        raise RuntimeError(f"{_words(run)} is {run.info.status}, not FINISHED; its {artifact!r} is not used")
    return run


def _words(run: Run) -> str:
    return f"run {run.info.run_id} (step {run.data.tags.get(STEP_TAG, 'unknown')}, {run.info.status})"


def _is_listed(run: Run, artifact: str) -> bool:
    folder = artifact.rpartition("/")[0]
    return any(file.path == artifact for file in connect().client.list_artifacts(run.info.run_id, folder or None))


@functools.cache
def downloaded(artifact_uri: str, artifact: str) -> Path:
    """A copy of an artifact, made once in a process."""
    folder = tempfile.mkdtemp(prefix="whisper-moe-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(get_artifact_repository(artifact_uri).download_artifacts(artifact, folder))
