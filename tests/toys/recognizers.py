"""Toy recognisers: a record, and what recognises with it."""

from pathlib import Path

from moe.experts.routed_lora import AdapterOptions
from moe.recognition.recognizer import WhisperRecognizer
from moe.routing.options import RoutingOptions
from moe.systems.whisper.base_model import load_base, save_base
from moe.systems.whisper_moe.folder import ModelRecord, SavedModel, build
from tests.toys.models import ALL_LINEARS, CONTEXT, N_EXPERTS, adapter_options, awaken, shared_base, toy_gate


def record_of(n_experts: int = N_EXPERTS, adapters: AdapterOptions = adapter_options(shared_r=2), **routing) -> ModelRecord:
    """The record of a mixture, or of one LoRA with `n_experts=0`."""
    return ModelRecord(
        "whisper_moe", n_experts, adapters, RoutingOptions(**routing), CONTEXT, "basic", "en", {"als": 1}, {"note": "toy", "n": 3}
    )


def recognizer(tmp_path: Path, n_experts: int = N_EXPERTS) -> WhisperRecognizer:
    """A recogniser on the toy base, which is saved in `tmp_path` and read back."""
    save_base(shared_base(), tmp_path)
    base, record = load_base(str(tmp_path)), record_of(n_experts, adapter_options(ALL_LINEARS))
    model = build(base, record, toy_gate(2 * base.model.config.d_model, n_experts) if n_experts else None)
    awaken(model.base)
    return WhisperRecognizer(SavedModel(model.eval(), base.processor, record))
