"""A base model as it stands: as a recogniser, and its word error rate, which pretraining is watched by."""

from pathlib import Path

from moe.experts.routed_lora import AdapterOptions
from moe.recognition.decoding import decode
from moe.routing.options import RoutingOptions
from moe.system import DecodingOptions
from moe.systems.whisper.base_model import BaseModel
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.folder import BASE, WhisperShape, new_record
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.system import WhisperSystem
from moe.text.error_rates import word_error_rate
from moe.training.dataset import SpeechDataset


def base_system(
    base: BaseModel, base_dir: Path, language: str, normaliser: str, context: AudioContextOptions | None = None
) -> WhisperSystem:
    """A base model as a recogniser, without adapters; nothing in it trains.

    Args:
        base_dir: where it is copied from when the recogniser is saved.
        context: by default as in every system.
    """
    shape = WhisperShape(0, AdapterOptions(shared_expert=False), RoutingOptions(), context or AudioContextOptions())
    model = WhisperMoE(base.model, 0, shape.adapters, shape.routing)
    return WhisperSystem(model, base, base_dir, new_record(BASE, shape, language, normaliser, {}))


def base_wer(base: BaseModel, dataset: SpeechDataset, context: AudioContextOptions) -> float:
    """WER of a base model; what trains in it is as before afterwards."""
    trains = {name: parameter.requires_grad for name, parameter in base.model.named_parameters()}
    hypotheses = decode(base_system(base, Path(), "", "", context), dataset, DecodingOptions())
    for name, parameter in base.model.named_parameters():
        parameter.requires_grad_(trains[name])
    return word_error_rate(dataset.references, [hypothesis.text for hypothesis in hypotheses])
