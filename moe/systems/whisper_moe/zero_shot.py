"""The word error rate of a base model as it stands, which pretraining is watched by."""

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


def base_wer(base: BaseModel, dataset: SpeechDataset, context: AudioContextOptions) -> float:
    """WER of a base model; what trains in it is as before afterwards."""
    trains = {name: parameter.requires_grad for name, parameter in base.model.named_parameters()}
    shape = WhisperShape(0, AdapterOptions(shared_expert=False), RoutingOptions(), context)
    model = WhisperMoE(base.model, 0, shape.adapters, shape.routing)
    system = WhisperSystem(model, base, Path(), new_record(BASE, shape, "", "", {}))
    hypotheses = decode(system, dataset, DecodingOptions())
    for name, parameter in base.model.named_parameters():
        parameter.requires_grad_(trains[name])
    return word_error_rate(dataset.references, [hypothesis.text for hypothesis in hypotheses])
