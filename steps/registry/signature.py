"""What a served model is asked and answers: its signature, and how it is logged."""

import contextlib
import dataclasses
import io
import sys
import tempfile
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import soundfile
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array, Object, Property

from moe.audio.sampling import SAMPLE_RATE
from moe.serving.requests import AUDIO, SPEAKER, nothing_asked
from moe.system import Ask
from steps.tracking import artifacts
from steps.tracking.store import project_root

CODE = ("moe",)
CARD = "model_card.md"
SERVING = (
    "mlflow", "torch", "transformers", "tokenizers", "safetensors", "peft", "numpy", "pandas", "soundfile", "soxr", "av", "tqdm",
    "jiwer", "pyarrow", "scipy", "scikit-learn", "fsspec", "accelerate", "joblib", "hdbscan", "silero-vad",
    "onnxruntime", "python-multipart",
)  # fmt: skip


def log_model(model_run_id: str, config: Mapping[str, Any], ask_type: type[Ask], card: str, registered_model: str) -> ModelInfo:
    """Log a run's recogniser to the active run as a pyfunc model, and register it.

    Args:
        config: how it is served by default, and what is asked of it where a request says nothing (`moe.serving.service.settings`).
        ask_type: what a request may ask of its system.
    """
    pins = (project_root() / "requirements.txt").read_text(encoding="utf-8").split()
    with tempfile.TemporaryDirectory() as temporary, _without_bytecode():
        card_path = Path(temporary) / CARD
        card_path.write_text(card, encoding="utf-8")
        return mlflow.pyfunc.log_model(
            name="recognizer",
            python_model=str(project_root() / "steps" / "registry" / "pyfunc_model.py"),
            artifacts={"model": str(artifacts.upstream(model_run_id, artifacts.MODEL)), "card": str(card_path)},
            code_paths=[str(project_root() / name) for name in CODE],
            signature=signature(ask_type),
            input_example=(pd.DataFrame({AUDIO: [example_audio()]}), {"beam_size": 0}),
            model_config=dict(config),
            pip_requirements=[pin for pin in pins if pin.split("==")[0] in SERVING],
            registered_model_name=registered_model,
        )


@contextlib.contextmanager
def _without_bytecode() -> Iterator[None]:
    """Inside the block what is imported leaves no `__pycache__`: MLflow tries the model where it is about to be copied from."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def signature(ask_type: type[Ask]) -> ModelSignature:
    """Audio bytes in; text, confidence, whether nobody speaks, expert weights, segments, words and timing out. Parameters 0 and `auto`: as evaluated."""
    numbers = {name: Property(name, DataType.double) for name in ("start_s", "end_s", "confidence", "audio_s", "seconds")}
    no_speech = Property("no_speech", DataType.boolean)
    segment = Object([numbers["start_s"], numbers["end_s"], Property("text", DataType.string), numbers["confidence"], no_speech])
    word = Object([Property("word", DataType.string), *(numbers[name] for name in ("start_s", "end_s", "confidence"))])
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "text"),
        ColSpec(DataType.double, "confidence"),
        ColSpec(DataType.boolean, "no_speech"),
        ColSpec(Array(DataType.double), "expert_weights"),
        ColSpec(Array(Array(DataType.double)), "expert_use"),
        ColSpec(DataType.string, "personal"),
        ColSpec(Array(segment), "segments"),
        ColSpec(Array(word), "words"),
        ColSpec(Object([numbers["audio_s"], numbers["seconds"]]), "timing"),
    ]
    asks = [ParamSpec(field.name, _type_of(field), nothing_asked(field)) for field in dataclasses.fields(ask_type)]
    usual = [
        ("return_routing", DataType.boolean, True),
        ("word_times", DataType.boolean, False),
        ("beam_size", DataType.long, 0),
        (SPEAKER, DataType.string, ""),
    ]
    params = [*asks, *(ParamSpec(*each) for each in usual)]
    return ModelSignature(Schema([ColSpec(DataType.binary, AUDIO)]), Schema(outputs), ParamSchema(params))


def _type_of(field: dataclasses.Field) -> DataType:
    kinds = typing.get_args(field.type) or (field.type,)
    types = {bool: DataType.boolean, int: DataType.long, float: DataType.double, str: DataType.string}
    return next(types[kind] for kind in kinds if kind in types)


def example_audio() -> bytes:
    """Half a second of a rising tone as wav: an example that is nobody's voice."""
    seconds = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * (200 + 400 * seconds) * seconds), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()
