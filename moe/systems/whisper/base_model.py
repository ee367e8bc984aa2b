"""The base model: a Whisper checkpoint with its processor, whole, partial, or new.

A partial checkpoint (some tensors missing, or a table that does not fit the tokenizer) is filled in: what is missing is named and
initialised, for `moe.systems.whisper.pretraining` to train. A hub name is loaded only where a user names one.
"""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from moe.systems.whisper.tokens import END, START, generation_config

SCRATCH = "scratch"
TOKEN_TABLE = "model.decoder.embed_tokens.weight"
TIED = "proj_out.weight"  # tied to the token table: never in a checkpoint of its own
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")  # transformers 5 writes the first, hub models have the second
DOCUMENT_MODELS = {"v2": "openai/whisper-large-v2", "v3": "openai/whisper-large-v3"}


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A model, its processor, and the names of the tensors that no checkpoint provided."""

    model: WhisperForConditionalGeneration
    processor: WhisperProcessor
    missing: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SmallShape:
    """Shape of the model made from scratch (measured recipe: 1.85 M parameters, 40 ms per encoder frame, 4 s window)."""

    d_model: int = 144
    encoder_layers: int = 4
    decoder_layers: int = 2
    heads: int = 4
    dropout: float = 0.05
    window_s: int = 4
    hop_length: int = 320
    n_mels: int = 80
    max_target_positions: int = 64


def resolve(name: str) -> str:
    """The documents' `v2` and `v3` as hub names; anything else unchanged."""
    return DOCUMENT_MODELS.get(name, name)


def load_base(name: str) -> BaseModel:
    """A complete checkpoint: a folder, or a hub model that the user named.

    Raises:
        ValueError: a folder without model or processor.
    """
    name = resolve(name)
    if Path(name).is_dir() and not (Path(name) / "model.safetensors").exists():
        raise ValueError(f"base model {name}: no model.safetensors there")
    if Path(name).is_dir() and not _has_processor(Path(name)):
        raise ValueError(f"base model {name}: no processor there ({' or '.join(PROCESSOR_FILES)})")
    model = WhisperForConditionalGeneration.from_pretrained(name, dtype=torch.float32)
    return BaseModel(model.eval(), WhisperProcessor.from_pretrained(name))


def is_complete(name: str) -> bool:
    """Does a base need no training? True for hub names and for folders with a whole model and a processor."""
    folder = Path(resolve(name))
    if not folder.is_dir():
        return True
    return (folder / "model.safetensors").exists() and _has_processor(folder)


def new_base(tokenizer: WhisperTokenizer, shape: SmallShape, language: str) -> BaseModel:
    """A small Whisper with random weights; every tensor is missing."""
    extractor = WhisperFeatureExtractor(
        feature_size=shape.n_mels, hop_length=shape.hop_length, chunk_length=shape.window_s, n_fft=400
    )
    config = WhisperConfig(
        num_mel_bins=shape.n_mels,
        d_model=shape.d_model,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.d_model,
        decoder_ffn_dim=4 * shape.d_model,
        max_source_positions=extractor.nb_max_frames // 2,
        max_target_positions=shape.max_target_positions,
        dropout=shape.dropout,
    )
    model = _model(config, tokenizer, language)
    missing = tuple(name for name, _ in model.named_parameters())
    return BaseModel(model, WhisperProcessor(extractor, tokenizer), missing)


def complete_base(folder: Path, tokenizer: WhisperTokenizer | None, language: str) -> BaseModel:
    """A partial checkpoint with its missing tensors initialised and named.

    Args:
        folder: `config.json` and one or more safetensors files.
        tokenizer: a new tokenizer, whose token table is then missing by definition; None keeps the checkpoint's own.

    Raises:
        ValueError: no config, no weights, no tokenizer, or tensors of the wrong shape.
    """
    weights = _read_weights(folder)
    config = WhisperConfig.from_json_file(folder / "config.json")
    if tokenizer is None:
        tokenizer = WhisperTokenizer.from_pretrained(folder)
    else:
        weights.pop(TOKEN_TABLE, None)
        weights.pop(TIED, None)
    model = _model(config, tokenizer, language)
    _check_shapes(folder, weights, model)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    return BaseModel(model, WhisperProcessor(extractor, tokenizer), tuple(name for name in missing if name != TIED))


def save_base(base: BaseModel, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write model, processor and generation config; float16 by default, which reads back with the same transcripts."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.to(dtype) for name, tensor in base.model.state_dict().items()}
    base.model.save_pretrained(folder, state_dict=state)
    base.processor.save_pretrained(folder)


def _has_processor(folder: Path) -> bool:
    return any((folder / name).exists() for name in PROCESSOR_FILES)


def _model(config: WhisperConfig, tokenizer: WhisperTokenizer, language: str) -> WhisperForConditionalGeneration:
    end, start = tokenizer.convert_tokens_to_ids([END, START])
    config.vocab_size = len(tokenizer)
    config.pad_token_id = config.bos_token_id = config.eos_token_id = end
    config.decoder_start_token_id = start
    config.suppress_tokens = config.begin_suppress_tokens = None  # defaults are ids of Whisper's own vocabulary
    model = WhisperForConditionalGeneration(config)
    model.generation_config = generation_config(tokenizer, config.max_target_positions, language)
    return model


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if not folder.is_dir():
        raise ValueError(f"init_from={folder}: no such folder")
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").exists():
        raise ValueError(f"init_from={folder}: needs config.json and at least one .safetensors file")
    weights = {name: tensor.float() for file in files for name, tensor in load_file(file).items()}
    return {name if name.startswith(("model.", "proj_out.")) else f"model.{name}": tensor for name, tensor in weights.items()}


def _check_shapes(folder: Path, weights: dict[str, Tensor], model: WhisperForConditionalGeneration) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    faults = [
        f"{name} is {tuple(tensor.shape)}, config.json asks for {expected.get(name, 'no such tensor')}"
        for name, tensor in weights.items()
        if tuple(tensor.shape) != expected.get(name)
    ]
    if faults:
        raise ValueError(f"init_from={folder}: {'; '.join(faults[:5])}")


def read_training_record(folder: Path) -> dict:
    """How a base was made, as `pretrain` wrote it; empty for a model from elsewhere."""
    record = Path(folder) / "training.json"
    return json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
