"""Toy recognisers: a record, the system that it describes, and what recognises with it."""

from pathlib import Path

from moe.experts.routed_lora import AdapterOptions
from moe.recognition.recognizer import Recognizer
from moe.routing.options import RoutingOptions
from moe.system import Record
from moe.systems.whisper.base_model import load_base, save_base
from moe.systems.whisper_moe.building import wrap
from moe.systems.whisper_moe.folder import LORA, MIXTURE, WhisperShape, new_record
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.system import WhisperSystem
from tests.toys.models import ALL_LINEARS, CONTEXT, N_EXPERTS, adapter_options, awaken, shared_base, toy_gate


def record_of(n_experts: int = N_EXPERTS, adapters: AdapterOptions = adapter_options(shared_r=2), **routing) -> Record:
    """The record of a mixture, or of one LoRA with `n_experts=0`."""
    shape = WhisperShape(n_experts, adapters, RoutingOptions(**routing), CONTEXT, {"als": 1})
    return new_record(MIXTURE if n_experts else LORA, shape, "en", "basic", {"note": "toy", "n": 3})


def system_on(base_dir: Path, record: Record) -> WhisperSystem:
    """A trained-looking system on a saved base."""
    base, shape = load_base(str(base_dir)), WhisperShape.of(record.shape)
    gate = toy_gate(2 * base.model.config.d_model, shape.n_experts) if shape.n_experts else None
    model = WhisperMoE(base.model, shape.n_experts, shape.adapters, shape.routing, gate)
    awaken(model.base)
    return wrap(model.eval(), base, base_dir, record)


def recognizer(tmp_path: Path, n_experts: int = N_EXPERTS) -> Recognizer:
    """A recogniser on the toy base, which is saved in `tmp_path` and read back."""
    save_base(shared_base(), tmp_path)
    return Recognizer(system_on(tmp_path, record_of(n_experts, adapter_options(ALL_LINEARS))))
