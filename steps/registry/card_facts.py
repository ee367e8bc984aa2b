"""What a model card says that no table does: collected from the runs a recogniser was made of."""

from pathlib import Path

import pandas as pd
from mlflow.exceptions import MlflowException

from analysis.pages.model_card import CardFacts
from moe.files import read_json
from moe.serving.requests import ServiceOptions
from moe.systems.whisper_moe.folder import BASE_DIR, MODEL_FILE
from steps.tracking import artifacts
from steps.tracking.store import connect

LICENCE = "LICENSE"


def card_facts(name: str, model_run_id: str, model_dir: Path, policy: ServiceOptions, lineage: dict[str, str], decision: str) -> CardFacts:
    """Facts about the model of an `asr` or `baseline` run."""
    record = read_json(model_dir / MODEL_FILE)
    extractor = _extractor(model_dir / BASE_DIR)
    made_from = connect().client.get_run(model_run_id).data.params
    base, licence = _base(made_from.get("pretrain_run_id", ""))
    decoding = {"beams": str(policy.beam_size), "most tokens per second": f"{policy.max_tokens_per_s:g}"}
    if record["n_experts"]:
        decoding["experts mixed"] = f"{policy.top_k or record['routing']['top_k']} of {record['n_experts']}"
    decoding["audio context"] = record["context"]["audio_context"]
    corpus = _corpus(made_from.get("prepare_run_id", ""), record)
    return CardFacts(name, base, licence, record["language"], float(extractor["chunk_length"]), corpus, decoding, lineage, decision)


def _extractor(base_dir: Path) -> dict:
    path = base_dir / "preprocessor_config.json"
    return read_json(path) if path.exists() else read_json(base_dir / "processor_config.json")["feature_extractor"]


def _base(pretrain_run_id: str) -> tuple[str, str]:
    """What the base came from, and the first line of its licence where it has one."""
    try:
        source = connect().client.get_run(pretrain_run_id).data.params
    except MlflowException:
        return "", ""
    named = source.get("init_from", "none")
    name = source.get("whisper_model", "") if named == "none" else named
    try:
        text = artifacts.upstream(pretrain_run_id, f"{artifacts.BASE}/{LICENCE}").read_text(encoding="utf-8")
    except RuntimeError:
        return name, ""
    return name, next((line.strip() for line in text.splitlines() if line.strip()), "")


def _corpus(prepare_run_id: str, record: dict) -> dict[str, str]:
    """Amount of data by split, and how its transcripts were normalised."""
    try:
        manifest = pd.read_parquet(artifacts.upstream(prepare_run_id, artifacts.MANIFEST), columns=["split", "speaker", "duration_s"])
    except RuntimeError:
        return {"normaliser": record["normaliser"]}
    rows = manifest.groupby("split").agg(n=("speaker", "size"), speakers=("speaker", "nunique"), seconds=("duration_s", "sum"))
    said = {
        f"{split} split": f"{row.n} utterances, {row.speakers} speakers, {row.seconds / 3600:.2f} h" for split, row in rows.iterrows()
    }
    seen = record["information"].get("n_utterances_seen")
    trained = {"utterances heard in training, repeats counted": f"{seen:,}"} if seen else {}
    return said | {"speakers": "no speaker is in two splits"} | trained | {"normaliser of the transcripts": record["normaliser"]}
