"""The language model that writes: any causal one that transformers loads, with its tokenizer, and what is known of where it is from."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moe.files import folder_digest, read_json, write_json
from moe.systems.steer_moe.language_model import token_table

RECORD = "decoder.json"
PROMPT = "write this:"  # of a decoder that is made here
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
WEIGHTS = ("*.safetensors", "*.bin")
NOT_COPIED = "a folder that was not copied is on no server; raise copy_decoder_mb, or name a hub's model"
HEADS = ("ForCausalLM", "LMHeadModel")  # of the names of classes
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclasses.dataclass(frozen=True)
class DecoderRecord:
    """What `decoder.json` says of a language model.

    Attributes:
        name: the folder or hub name that it was taken from, or `scratch`.
        revision: the commit of a hub's repository; None for a folder.
        digest: of its files.
        is_copied: whether its files lie beside the record.
        textual_prompt: the instruction that it was trained with, if any.
        facts: how it was made, for one that was made here.
    """

    name: str
    revision: str | None
    digest: str
    is_copied: bool
    textual_prompt: str = ""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def needs(self) -> str | None:
        """What a server must have beside the model's folder.

        Raises:
            ValueError: it could not get it anywhere.
        """
        if self.is_copied:
            return None
        if self.revision is None:
            raise ValueError(f"llm={self.name}: {NOT_COPIED}")
        return f"the language model {self.name}, revision {self.revision}, in its Hugging Face cache"


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A language model, its tokenizer and its record."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    record: DecoderRecord

    @property
    def n_text(self) -> int:
        """Ids that are text; those above are never written."""
        return len(self.tokenizer)

    @property
    def end(self) -> int:
        """Id of the end of text."""
        return int(self.tokenizer.eos_token_id)  # `read_decoder` refuses a tokenizer without

    @property
    def width(self) -> int:
        """Width of its embeddings."""
        return int(token_table(self.model).shape[1])

    @property
    def n_positions(self) -> int | None:
        """Positions that it was made for; None where it says none."""
        return positions_of(self.model.config)


def positions_of(config: PretrainedConfig) -> int | None:
    """Positions that a model with this config was made for; None where it says none."""
    text = config.get_text_config()
    return next((int(found) for name in POSITIONS if (found := getattr(text, name, None))), None)


def decoder_fault(name: str) -> str | None:
    """Why a folder cannot be the decoder; None where it can, and for names of a hub, which is not asked."""
    folder = Path(name)
    if not folder.is_dir():
        return "no such folder" if name.startswith((".", "/", "base/")) else None
    if not (folder / "config.json").is_file() or not any(path for kind in WEIGHTS for path in folder.glob(kind)):
        return "no model there: needs config.json and weights (*.safetensors)"
    return _head_fault(read_json(folder / "config.json")) or _tokenizer_fault(folder)


def _head_fault(config: Mapping[str, Any]) -> str | None:
    """A kind of model without causal head, or one that was saved without its head or with another: its head would be drawn at random."""
    wanted, saved = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(config.get("model_type"))), config.get("architectures") or []
    if wanted is None:
        return f"model_type={config.get('model_type')} has no causal head"
    if saved and not any(name == wanted or name.endswith(HEADS) for name in saved):
        return f"architectures={','.join(saved)} has no causal head; needs {wanted}"
    return None


def _tokenizer_fault(folder: Path) -> str | None:
    """No tokenizer, one without an end of text, or one of another model, with ids that the token table has no row for."""
    if not any((folder / file).exists() for file in TOKENIZER_FILES):
        return f"no tokenizer there: needs {' or '.join(TOKENIZER_FILES)}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None:
        return "its tokenizer has no end of text (eos_token)"
    n_ids = max(tokenizer.vocab_size, tokenizer.eos_token_id + 1)  # others may have been added and never used, as for padding
    n_rows = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "vocab_size", n_ids)
    return f"its tokenizer has {n_ids} tokens, its token table {n_rows} rows" if n_ids > n_rows else None


def megabytes(folder: Path) -> float:
    """Size of a language model's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != RECORD) / 1e6


def take_decoder(name: str, folder: Path, copy_mb: float) -> DecoderRecord:
    """Write the record of a language model to a new folder, and its files where they take at most `copy_mb`.

    Raises:
        ValueError: it is no causal language model with a tokenizer and an end of text.
    """
    found = Path(name) if Path(name).is_dir() else Path(snapshot_download(name))
    if fault := decoder_fault(str(found)):
        raise ValueError(f"llm={name}: {fault}")
    is_copied = megabytes(found) <= copy_mb
    if is_copied:
        shutil.copytree(found, folder)
    else:
        folder.mkdir(parents=True)
    known = read_json(found / RECORD) if (found / RECORD).exists() else {}
    record = DecoderRecord(
        name,
        None if Path(name).is_dir() else found.name,  # the hub's cache names a snapshot's folder by its commit
        content_digest(found),
        is_copied,
        known.get("textual_prompt", ""),
        known.get("facts", {}),
    )
    write_json(folder / RECORD, dataclasses.asdict(record))
    return record


def save_decoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, textual_prompt: str, facts: dict[str, Any]
) -> DecoderRecord:
    """Write a language model that was made here, in float16."""
    state = {name: tensor.to(torch.float16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    record = DecoderRecord("scratch", None, content_digest(folder), True, textual_prompt, facts)
    write_json(folder / RECORD, dataclasses.asdict(record))
    return record


def content_digest(folder: Path) -> str:
    """Digest of a language model's files, its record left out."""
    return folder_digest(folder, but=(RECORD,))


def files_of(folder: Path) -> Path:
    """Where the files lie of the language model that a folder with a record holds or names."""
    record = DecoderRecord(**read_json(folder / RECORD))
    if record.is_copied:
        return folder
    return Path(record.name) if Path(record.name).is_dir() else Path(snapshot_download(record.name, revision=record.revision))


def read_decoder(folder: Path) -> Decoder:
    """The language model that a folder with a record holds or names, frozen, in float32.

    Raises:
        ValueError: it is not what the record says, or cannot write.
    """
    record, found = DecoderRecord(**read_json(folder / RECORD)), files_of(folder)
    if not record.is_copied and content_digest(found) != record.digest:
        raise ValueError(f"the language model {record.name} has changed: its files are not those that training used")
    if fault := decoder_fault(str(found)):
        raise ValueError(f"language model {found}: {fault}")
    config = AutoConfig.from_pretrained(found)
    model = AutoModelForCausalLM.from_pretrained(found, config=config, dtype=torch.float32)
    model.generation_config = GenerationConfig()  # its own may sample
    return Decoder(model.requires_grad_(False).eval(), AutoTokenizer.from_pretrained(found), record)
