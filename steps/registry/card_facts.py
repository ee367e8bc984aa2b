"""What a model card says that no table does: collected from the runs a recogniser was made of."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException

from analysis.pages.model_card import CardFacts
from moe.system import Ask, Needs, Record
from moe.systems.table import load_system
from steps.tracking import artifacts
from steps.tracking.store import connect

LICENCE = "LICENSE"


def card_facts(
    name: str, model_run_id: str, model_dir: Path, config: Mapping[str, Any], lineage: dict[str, str], decision: str
) -> CardFacts:
    """Facts about the model of a run.

    Args:
        config: how it is served, and what is asked of its system where a request says nothing.
    """
    system = load_system(model_dir)
    record, made_from = system.record, connect().client.get_run(model_run_id).data.params
    base, licence = _base(made_from.get("pretrain_run_id", ""))
    decoding = {"beams": str(config["beam_size"]), "most tokens per second": f"{config['max_tokens_per_s']:g}"}
    needs = system.needs() if isinstance(system, Needs) else None
    decoding |= {"a server must have": needs} if needs else {}
    asked = {field: str(config[field]) for field in _names(system.ask_type) if config.get(field) is not None}
    corpus = _corpus(made_from.get("prepare_run_id", ""), record)
    return CardFacts(
        name,
        base,
        licence,
        record.language,
        system.inputs.window_s,
        corpus,
        decoding | system.describe() | asked,
        lineage,
        decision,
    )


def _names(ask_type: type[Ask]) -> list[str]:
    return [field.name for field in dataclasses.fields(ask_type)]


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


def _corpus(prepare_run_id: str, record: Record) -> dict[str, str]:
    """Amount of data by split, and how its transcripts were normalised."""
    try:
        manifest = pd.read_parquet(
            artifacts.upstream(prepare_run_id, artifacts.MANIFEST), columns=["split", "speaker", "duration_s"]
        )
    except RuntimeError:
        return {"normaliser": record.normaliser}
    rows = manifest.groupby("split").agg(n=("speaker", "size"), speakers=("speaker", "nunique"), seconds=("duration_s", "sum"))
    said = {
        f"{row.Index} split": f"{row.n} utterances, {row.speakers} speakers, {row.seconds / 3600:.2f} h"
        for row in rows.itertuples()
    }
    seen = record.facts.get("n_utterances_seen")
    trained = {"utterances seen in training, repeats counted": f"{seen:,}"} if seen else {}
    return said | {"speakers": "no speaker is in two splits"} | trained | {"normaliser of the transcripts": record.normaliser}
