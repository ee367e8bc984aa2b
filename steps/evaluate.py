"""Entry point `evaluate`: score one recogniser on the test split, which no other step reads.

Reads a `prepare` run and the model of an `asr` or `baseline` run; writes `hypotheses.parquet` and `scores.json`. For a mixture also the
routing ablations: oracle by etiology, by cluster, random, uniform, and each expert alone. Example:
    mlflow run . -e evaluate -P prepare_run_id=ID -P asr_run_id=ID
"""

import dataclasses
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.error_rates import count_errors, rates_by
from analysis.explorer import explorer_html
from analysis.flags import flag_counts, flag_hypotheses
from analysis.groups import with_groups
from analysis.plots.errors import forest_figure
from analysis.report import markdown_table, percent_interval
from moe.ablations import policies
from moe.base_model import BaseModel
from moe.batches import SpeechDataset
from moe.clustering import UtteranceClusters
from moe.decoding import DecodingOptions, Hypothesis, RoutingPolicy, decode
from moe.files import write_json
from moe.leaks import seen_sentences
from moe.options import option
from moe.saved_model import SavedModel, load_model
from moe.text import normalise
from steps import tracking
from steps.prepared import Prepared, read_prepared
from steps.routing_report import LEARNED, diagnosis, log_routing
from steps.step_run import StepRun
from steps.training_data import embeddings_of, speech_set

GROUPS = ("etiology", "speaker", "sentence_seen", "duration_group", "severity_group", "sex")
SPEAKER_COLUMNS = ("sex", "gender", "age")  # where the corpus tells them
KINDS = {"whisper_moe": "moe", "single_lora": "lora", "zero_shot": "base"}


@dataclasses.dataclass(frozen=True)
class StepOptions(DecodingOptions):
    """Score a recogniser on the test split."""

    prepare_run_id: str = option("none", "run that made the manifest")
    asr_run_id: str | None = option(None, "mixture to score")
    baseline_run_id: str | None = option(None, "baseline to score")
    decoding_top_k: int | None = option(None, "experts mixed in decoding (none: as in training)", low=1)
    ablations: bool = option(True, "for a mixture: score the routing ablations too")
    seed: int = option(42, "seed of everything drawn", low=0)

    def faults(self) -> list[str]:
        """Exactly one recogniser."""
        if (self.asr_run_id is None) == (self.baseline_run_id is None):
            return ["give exactly one of asr_run_id and baseline_run_id"]
        return []

    @property
    def model_run_id(self) -> str:
        """The run whose model is scored."""
        return self.asr_run_id or self.baseline_run_id


@dataclasses.dataclass(frozen=True)
class Scene:
    """What all decodings of one evaluation share."""

    saved: SavedModel
    prepared: Prepared
    rows: pd.DataFrame
    dataset: SpeechDataset
    clusters: np.ndarray | None
    options: StepOptions


def run(options: StepOptions) -> str:
    """Score the recogniser, log hypotheses and figures, and return the run id."""
    saved = load_model(tracking.upstream(options.model_run_id, tracking.MODEL))
    name = f"evaluate · {saved.record.system} · seed {saved.record.information.get('seed', options.seed)}"
    with tracking.step_run("evaluate", options, name) as step:
        prepared = read_prepared(options.prepare_run_id)
        scene = set_scene(options, saved, prepared)
        prepared.log_input(step, scene.rows, "test")
        started = time.perf_counter()
        hypotheses = hypotheses_table(scene, _decode(scene, None, "test"))
        seconds = time.perf_counter() - started
        counted = count_errors(hypotheses)
        ablations = run_ablations(scene, counted) if options.ablations and saved.record.n_experts else {}
        _log(step, scene, counted, ablations, seconds)
    return step.run_id


def set_scene(options: StepOptions, saved: SavedModel, prepared: Prepared) -> Scene:
    """The test split as a dataset, with embeddings and clusters where the model has experts."""
    rows = prepared.rows("test")
    record = saved.record
    if not record.n_experts:
        base = BaseModel(saved.model.base, saved.processor)
        return Scene(saved, prepared, rows, speech_set(prepared, rows, base), None, options)
    if options.decoding_top_k:
        saved.model.phase = dataclasses.replace(saved.model.phase, top_k=min(options.decoding_top_k, record.n_experts))
    base = BaseModel(saved.model.base, saved.processor)
    vectors = embeddings_of(prepared, rows, base, record.routing, record.context, None).select(rows["utterance_id"])
    folder = tracking.upstream(options.model_run_id, tracking.MODEL) / tracking.CLUSTERS
    clusters = None
    if folder.is_dir():
        clusters = UtteranceClusters.load(folder).assign(vectors, rows["speaker"].to_numpy())[0]
    dataset = speech_set(prepared, rows, base, extras={"embedding": vectors})
    return Scene(saved, prepared, rows, dataset, clusters, options)


def _decode(scene: Scene, policy: RoutingPolicy | None, title: str) -> list[Hypothesis]:
    return decode(
        scene.saved.model, scene.dataset, scene.saved.record.context, scene.options.part(DecodingOptions), policy, title=title
    )


def hypotheses_table(scene: Scene, hypotheses: list[Hypothesis]) -> pd.DataFrame:
    """One row per test utterance: reference and hypothesis by the corpus's normaliser, who spoke, and how it was routed."""
    wanted = ["utterance_id", "speaker", "etiology", "severity", "duration_s", "language", "reference"]
    wanted += [name for name in SPEAKER_COLUMNS if name in scene.rows]
    table = scene.rows[wanted].reset_index(drop=True)
    seen = seen_sentences(scene.prepared.manifest)
    table["sentence_seen"] = seen[scene.prepared.manifest["split"] == "test"].to_numpy()
    table["hypothesis"] = [normalise(scene.prepared.normaliser, hypothesis.text) for hypothesis in hypotheses]
    table["error"] = None
    if scene.saved.record.n_experts:
        weights = np.stack([hypothesis.routing_weights for hypothesis in hypotheses])
        table = table.join(pd.DataFrame(weights, columns=[f"weight_{expert}" for expert in range(weights.shape[1])]))
        table["expert"] = weights.argmax(1)
        if scene.clusters is not None:
            table["cluster"] = scene.clusters
    return table


def run_ablations(scene: Scene, learned: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Counted hypotheses under each routing; `learned` is the gate's own."""
    tables = {LEARNED: learned}
    record = scene.saved.record
    found = policies(scene.rows, record.n_experts, record.expert_of_etiology, scene.clusters, scene.options.seed)
    for name, policy in found.items():
        tables[name] = count_errors(hypotheses_table(scene, _decode(scene, policy, f"test, routing {name}")))
    return tables


def _log(step: StepRun, scene: Scene, counted: pd.DataFrame, ablations: dict[str, pd.DataFrame], seconds: float) -> None:
    note, metrics = scene.prepared.note, {}
    overall = rates_by(counted, None)
    metrics |= {f"test/{name}": float(overall.iloc[0][name]) for name in ("wer", "cer", "low", "high")}
    grouped = with_groups(counted)
    for column in [name for name in GROUPS if name in grouped and grouped[name].notna().any()]:
        rates = rates_by(grouped, column)
        step.log_table(rates, f"tables/wer_by_{column}.json")
        metrics |= {f"test/wer/{column}/{row.group}": row.wer for row in rates.itertuples() if row.wer == row.wer}
        if column != "speaker":
            step.log_figure(forest_figure(rates, f"WER by {column.replace('_', ' ')}", note), f"plots/wer_by_{column}.png")
    shown = ["utterance_id", "etiology", "speaker", "reference", "hypothesis", "word_errors", "n_words"]
    step.log_table(counted[shown].sort_values("word_errors", ascending=False), "tables/hypotheses.json")
    step.log_table(counted, tracking.HYPOTHESES)
    step.log_table(flag_counts(flag_hypotheses(counted)), "tables/flags.json")
    step.log_text(explorer_html(flag_hypotheses(counted), note=note), "explorer.html")
    routing = log_routing(step, counted, ablations, scene.saved.model.phase.top_k, note) if scene.saved.record.n_experts else {}
    scores = _scores(scene, counted, ablations, routing, seconds)
    with tempfile.TemporaryDirectory() as temporary:
        write_json(Path(temporary) / tracking.SCORES, scores)
        step.log_file(Path(temporary) / tracking.SCORES)
    audio_s = float(counted["duration_s"].sum())
    step.log_metrics(metrics | routing | {"seconds": seconds, "real_time_factor": seconds / audio_s, "n_utterances": len(counted)})
    step.describe(_description(scene, overall, rates_by(counted, "etiology"), ablations, routing))


def _scores(
    scene: Scene, counted: pd.DataFrame, ablations: dict[str, pd.DataFrame], routing: dict[str, float], seconds: float
) -> dict:
    """What `compare` needs beside the hypotheses."""
    record = scene.saved.record
    experts = {name: float(rates_by(part, None).iloc[0]["wer"]) for name, part in ablations.items() if name.startswith("expert_")}
    return {
        "system": record.system,
        "kind": KINDS[record.system],
        "normaliser": scene.prepared.normaliser_version,
        "test_set_digest": scene.prepared.digest,
        "prepare_run_id": scene.options.prepare_run_id,
        "note": scene.prepared.note,
        "gating_accuracy": routing.get("test/gating_accuracy"),
        "expert_wer": experts,
        "ablations": {name: float(rates_by(part, None).iloc[0]["wer"]) for name, part in ablations.items()},
        "seconds": seconds,
        "audio_seconds": float(counted["duration_s"].sum()),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **record.information,
    }


def _description(
    scene: Scene, overall: pd.DataFrame, by_etiology: pd.DataFrame, ablations: dict[str, pd.DataFrame], routing: dict[str, float]
) -> str:
    row = overall.iloc[0]
    lines = [
        f"## Test of {scene.saved.record.system}{', SYNTHETIC speech' if scene.prepared.note else ''}",
        f"WER {percent_interval(row['wer'], row['low'], row['high'])} (95 %, bootstrap over {row['n_speakers']} speakers), "
        f"{row['n_utterances']} utterances, {row['n_words']} words.",
        "",
        markdown_table(by_etiology[["group", "n_utterances", "n_speakers", "wer", "low", "high", "cer"]]),
    ]
    if ablations:
        wer = {name: rates_by(part, None).iloc[0]["wer"] for name, part in ablations.items()}
        lines += ["", diagnosis(wer)]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    tracking.command(run, StepOptions)


if __name__ == "__main__":
    main()
