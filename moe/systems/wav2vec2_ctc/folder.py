"""A CTC's folder, which is enough by itself: network, adapters as PEFT folders, gate, vocabulary, language model, `model.json`.

model.json   vocab.json   language_model.json   network/   shared/   expert_0/ …   gate/
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Wav2Vec2BertForCTC

from moe.experts.adapter_folders import load_adapter, map_adapters, save_adapter
from moe.experts.routed_lora import AdapterOptions
from moe.files import write_whole, write_whole_dir
from moe.routing.gate import Gate
from moe.routing.losses import BalanceOptions
from moe.routing.options import RoutingOptions
from moe.system import Record, read_record, write_record
from moe.systems.wav2vec2_ctc.language_model import LanguageModel
from moe.systems.wav2vec2_ctc.mixture import CTCMixture
from moe.systems.wav2vec2_ctc.model import CTCModel
from moe.systems.wav2vec2_ctc.options import NETWORK_DIR
from moe.systems.wav2vec2_ctc.vocabulary import Vocabulary

NAME = "wav2vec2_ctc"
GATE_DIR, VOCABULARY, LANGUAGE_MODEL = "gate", "vocab.json", "language_model.json"
BASE_LAYER = ".base_layer"


@dataclasses.dataclass(frozen=True)
class CTCShape:
    """What it takes to rebuild a CTC beside its weights.

    Attributes:
        n_experts: 0 without; with `adapters` that is one LoRA.
    """

    ctc_model: str
    n_experts: int = 0
    adapters: AdapterOptions | None = None
    routing: RoutingOptions = RoutingOptions()
    expert_of_etiology: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "CTCShape":
        """The shape that a record holds as plain values."""
        kinds = {"adapters": AdapterOptions, "routing": RoutingOptions}
        return cls(**{name: kinds[name](**value) if name in kinds and value else value for name, value in values.items()})


def module_of(
    network: Wav2Vec2BertForCTC, shape: CTCShape, gate: Gate | None = None, balance: BalanceOptions | None = None
) -> CTCModel:
    """The module that a shape makes of a network; adapters are as they begin."""
    if shape.n_experts and shape.adapters:
        return CTCMixture(network, shape.adapters, shape.n_experts, shape.routing, gate, balance)
    return CTCModel(network, shape.adapters)


def plain_name(name: str) -> str:
    """A parameter's name in the network without adapters."""
    return name.replace(BASE_LAYER, "")


def save_model(
    folder: Path, module: CTCModel, vocabulary: Vocabulary, language_model: LanguageModel | None, record: Record
) -> None:
    """Write a recogniser, whole or not at all."""
    with write_whole_dir(folder) as aside:
        module.network.save_pretrained(aside / NETWORK_DIR, state_dict=_without_adapters(module))
        if module.adapters:
            map_adapters(module.network, lambda name: save_adapter(module.network, name, aside / name, f"../{NETWORK_DIR}"))
        if isinstance(module, CTCMixture) and module.gate is not None:
            module.gate.save(aside / GATE_DIR)
        vocabulary.save(aside / VOCABULARY)
        if language_model is not None:
            language_model.save(aside / LANGUAGE_MODEL)
        write_record(aside, record)


def load_model(folder: Path) -> tuple[CTCModel, Vocabulary, LanguageModel | None, Record]:
    """Read a recogniser from its folder alone.

    Raises:
        ValueError: the folder holds no whole one, or adapters that do not fit.
    """
    folder = Path(folder)
    record = read_record(folder)
    shape = CTCShape.of(record.shape)
    for name in (NETWORK_DIR, VOCABULARY):  # without the folder its name would be looked for on a hub
        if not (folder / name).exists():
            raise ValueError(f"{folder} holds no whole recogniser: {name} is missing")
    network = Wav2Vec2BertForCTC.from_pretrained(folder / NETWORK_DIR, dtype=torch.float32)
    module = module_of(network, shape, Gate.load(folder / GATE_DIR) if shape.n_experts else None)
    if shape.adapters:
        map_adapters(network, lambda name: load_adapter(network, name, folder / name))
    path = folder / LANGUAGE_MODEL
    return module.eval(), Vocabulary.load(folder / VOCABULARY), LanguageModel.load(path) if path.exists() else None, record


def halve(folder: Path) -> None:
    """Keep a recogniser's network in half precision, at half the size; it is computed with in single precision all the same."""
    path = Path(folder) / NETWORK_DIR / "model.safetensors"
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}
    with write_whole(path) as aside:
        save_file(tensors, aside, {"format": "pt"})


def known_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a trained CTC; None where the folder is a checkpoint without one."""
    path = Path(folder) / VOCABULARY
    return Vocabulary.load(path) if path.exists() else None


def _without_adapters(module: nn.Module) -> dict[str, Tensor]:
    """The network's own weights under the names they have without adapters."""
    network: Any = module.network
    own = {plain_name(name): tensor for name, tensor in network.state_dict().items()}
    return {name: tensor for name, tensor in own.items() if not name.endswith(("lora_A", "lora_B", "shared_A", "shared_B"))}
