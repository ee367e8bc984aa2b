"""Entry point `embed`: pooled encoder embeddings, one vector per train and dev utterance.

Reads a `prepare` run (manifest) and a `pretrain` run (base model); writes the artifact `embeddings`. The test split is not touched:
evaluation routes it by itself. An interrupted run goes on where it was. Example:
    mlflow run . --env-manager local -e embed -P prepare_run_id=ID -P pretrain_run_id=ID
"""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas as pd

from moe.corpora.shard_cache import ShardOrderOptions
from moe.files import file_digest
from moe.options import option
from moe.routing.embeddings import Embeddings, embed
from moe.routing.options import ViewOptions
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper.encoder import embedder, layer_index
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.training import processes
from moe.training.dataset import SpeechDataset
from moe.training.precision import PrecisionOptions, precision
from moe.training.processes import ProcessOptions
from steps.inputs.corpus import Prepared, read_prepared
from steps.options.step_options import RunOptions, StagePercentOptions
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun


@dataclasses.dataclass(frozen=True)
class StepOptions(StagePercentOptions, ViewOptions, PrecisionOptions, ShardOrderOptions, ProcessOptions, RunOptions):
    """Embed the corpus."""

    prepare_run_id: str = option(help="run that made the manifest")
    pretrain_run_id: str = option(help="run that holds the base model")
    embedding_batch_size: int = option(32, "utterances embedded together", low=1)


def run(options: StepOptions) -> str:
    """Embed, log the store and return the run id."""
    return runs.in_run("embed", options, _work, f"embed · layer {options.gate_layer} · {options.pooling}")


def _work(step: StepRun, options: StepOptions) -> None:
    prepared = read_prepared(options.prepare_run_id, options)
    base = load_base(str(artifacts.upstream(options.pretrain_run_id, artifacts.BASE)))
    layer_index(base.model.model.encoder, options.layer)
    train = prepared.train(options.asr_percent, options.data_percent, options.stage_floor, options.seed)
    rows = pd.concat([train, prepared.rows("dev")]).sort_values("utterance_id", ignore_index=True)
    prepared.refuse_missing(rows, shards_together=options.shards_together)
    prepared.log_input(step, rows, "training")
    inputs = WhisperInputs(base.processor, options.part(AudioContextOptions))
    dataset = SpeechDataset(rows, prepared.root, inputs, shards_together=options.shards_together)
    folder = runs.work_dir(step) / artifacts.EMBEDDINGS
    started = time.perf_counter()
    read = embedder(base.model, options.layer, options.pooling, precision(options))
    embeddings = embed(read, dataset, folder, options.embedding_batch_size)
    if processes.number() == 0:  # it alone has the store
        _log(step, options, prepared, embeddings, folder, time.perf_counter() - started, float(dataset.durations.sum()))


def _log(
    step: StepRun, options: StepOptions, prepared: Prepared, embeddings: Embeddings, folder: Path, seconds: float, audio_s: float
) -> None:
    step.log_folder(folder, artifacts.EMBEDDINGS)
    n, size = embeddings.vectors.shape
    bytes_each = sum(file.stat().st_size for file in folder.iterdir()) / n
    step.log_metrics({"n_utterances": n, "n_dimensions": size, "seconds": seconds, "bytes_per_utterance": bytes_each})
    mapping = pd.DataFrame(
        {"utterance_id": embeddings.utterance_ids, "norm": np.linalg.norm(embeddings.vectors, axis=1).round(4)}
    )
    step.log_table(mapping.reset_index(names="row").head(200), "tables/mapping_head.json")
    step.set_tags({"moe.embeddings_digest": file_digest(folder / "embeddings.safetensors")})
    step.add_to_name(prepared.name, f"{n} vectors")
    step.describe(
        f"{n} vectors of {size} numbers{' of SYNTHETIC speech' if prepared.note else ''}, {bytes_each / 1024:.1f} KiB each on disk, in "
        f"{seconds:.1f} s ({audio_s / seconds:.0f} × real time).\n\nEncoder layer `{options.gate_layer}` "
        f"({'conv stem' if options.gate_layer == '0' else 'adapters off'}), `{options.pooling}` over the frames that hold audio. "
        "`embeddings/index.parquet` maps utterance ids to rows. The test split was not read."
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
