"""A domain-token Whisper's folder, which is enough by itself.

model.json   base/ (an ordinary Whisper with the domain tokens)   shared/ (a PEFT folder, where a LoRA was trained)   classifier/
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moe.experts.adapter_folders import SHARED, load_adapter, save_adapter
from moe.experts.routed_lora import AdapterOptions
from moe.files import write_whole_dir
from moe.routing.gate import Gate
from moe.system import Record, read_record, write_record
from moe.systems.domain_whisper.domains import Domains
from moe.systems.domain_whisper.model import DomainWhisper
from moe.systems.domain_whisper.prompts import Prompts, add_tokens, domain_token, token_table
from moe.systems.domain_whisper.unfreezing import UnfreezeOptions
from moe.systems.whisper.base_model import BaseModel, load_base, save_base
from moe.systems.whisper.features import AudioContextOptions

BASE_DIR, CLASSIFIER_DIR = "base", "classifier"


@dataclasses.dataclass(frozen=True)
class DomainShape:
    """What it takes to rebuild a recogniser beside its weights.

    Attributes:
        place: of the token in the prompt.
        confidence: probability below which the classifier gives no token.
        adapters: of its LoRA; None for none.
        conditioned: whether its tokens were trained; without, no utterance gets one.
    """

    domains: Domains
    place: str
    confidence: float
    unfreezing: UnfreezeOptions
    context: AudioContextOptions
    adapters: AdapterOptions | None = None
    conditioned: bool = True

    def plain(self) -> dict[str, Any]:
        """As values that JSON gives back the same."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "DomainShape":
        """The shape that a record holds as plain values."""
        given = dict(values)
        named: dict[str, Any] = given.pop("domains")
        domains = Domains(tuple(named["names"]), tuple(named["normal"]), named["kind"])
        kinds: dict[str, Any] = {"unfreezing": UnfreezeOptions, "context": AudioContextOptions, "adapters": AdapterOptions}
        made = {name: kinds[name](**value) if name in kinds and value is not None else value for name, value in given.items()}
        return cls(domains=domains, **made)


def save(folder: Path, model: DomainWhisper, base: BaseModel, base_dir: Path, classifier: Gate | None, record: Record) -> None:
    """Write a recogniser, whole or not at all; a base that carries a LoRA is read again from `base_dir`."""
    whole = base if model.adapters is None else _with_tokens(load_base(str(base_dir)), model.prompts.names)
    with torch.no_grad():
        token_table(whole.model).weight[model.n_old :] = model.rows.to(whole.model.dtype)
    with write_whole_dir(folder) as aside:
        save_base(whole, aside / BASE_DIR)
        if model.adapters is not None:
            save_adapter(model.base, SHARED, aside / SHARED, "../" + BASE_DIR)
        if classifier is not None:
            classifier.save(aside / CLASSIFIER_DIR)
        write_record(aside, record)


def load(folder: Path) -> tuple[DomainWhisper, BaseModel, Gate | None, Record]:
    """Read a recogniser from its folder alone.

    Raises:
        ValueError: the folder holds none, or an adapter that does not fit.
    """
    folder = Path(folder)
    record = read_record(folder)
    shape = DomainShape.of(record.shape)
    if not (folder / BASE_DIR).is_dir():  # without this its name would be looked for on a hub
        raise ValueError(f"{folder} holds no whole recogniser: {BASE_DIR} is missing")
    base = load_base(str(folder / BASE_DIR))
    prompts = Prompts(base.processor.tokenizer, shape.domains.names, shape.place)
    model = DomainWhisper(base.model.requires_grad_(False), prompts, shape.adapters)
    if shape.adapters is not None:
        load_adapter(model.base, SHARED, folder / SHARED)
    classifier = Gate.load(folder / CLASSIFIER_DIR) if (folder / CLASSIFIER_DIR).is_dir() else None
    return model.eval(), base, classifier, record


def _with_tokens(base: BaseModel, names: tuple[str, ...]) -> BaseModel:
    """The base with the tokens of these domains, which one that was saved here has already."""
    if domain_token(names[0]) not in base.processor.tokenizer.get_vocab():
        add_tokens(base, names)
    return base
