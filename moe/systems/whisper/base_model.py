"""The base model: a Whisper checkpoint with its processor, whole, partial, or new.

A whole one is taken as it is, in any form that the hub has. A partial one (some tensors missing, or a table that does not fit the
tokenizer) is filled in: what is missing is named and initialised, for `moe.systems.whisper.pretraining` to train. A hub name is loaded
only where a user names one.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from moe.systems.whisper.adapted_base import model_below, with_adapter
from moe.systems.whisper.base_source import (
    GENERATION,
    MULTILINGUAL_VOCABULARY,
    TOKEN_TABLE,
    SmallShape,
    feature_extractor,
    has_processor,
    language_fault,
    partial_fault,
    resolve,
    shape_fault,
    whole_fault,
)
from moe.systems.whisper.checkpoint_weights import CONFIG, TIED, read_weights
from moe.systems.whisper.tokens import END, NO_TIMESTAMPS, START, TASK, generation_config, language_ids, token_ids


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A model, its processor, and the names of the tensors that no checkpoint provided."""

    model: WhisperForConditionalGeneration
    processor: WhisperProcessor
    missing: tuple[str, ...] = ()


def load_base(name: str, dropout: float | None = None) -> BaseModel:
    """A complete checkpoint: a folder, or a hub model that the user named; an adapter is merged into the model it belongs on.

    Args:
        dropout: in place of the checkpoint's; modules read it when they are made, and never again.

    Raises:
        ValueError: what keeps it from being taken as it is.
    """
    name = resolve(name)
    if fault := whole_fault(name):
        raise ValueError(f"base model {name}: {fault}")
    below = model_below(name)
    if below is None:
        return _with_prompt(BaseModel(_read_model(name, dropout).eval(), WhisperProcessor.from_pretrained(name)))
    model = _read_model(name, dropout) if below == name else load_base(below, dropout).model
    processor = WhisperProcessor.from_pretrained(name if has_processor(Path(name)) else below)
    return _with_prompt(BaseModel(with_adapter(model, name).eval(), processor))


def use_language(base: BaseModel, language: str) -> BaseModel:
    """The same base with the prompt of a language, for labels, decoding and scoring alike; a base of one language keeps its own prompt.

    Raises:
        ValueError: the base has no token for the language.
    """
    tokenizer = base.processor.tokenizer
    generation: Any = base.model.generation_config  # these fields are a Whisper's own
    known = language_ids(generation)
    if fault := language_fault(language, known):
        raise ValueError(fault)
    tokenizer.language, tokenizer.task = (language, TASK) if known else (None, None)
    if known:
        generation.language, generation.task = language, TASK
    return base


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
        folder: `config.json` and weights in any form (see `moe.systems.whisper.checkpoint_weights`).
        tokenizer: a new tokenizer, whose token table is then missing by definition; None keeps the checkpoint's own.

    Raises:
        ValueError: no config, no weights, no tokenizer, or tensors of the wrong shape.
    """
    if fault := partial_fault(str(folder), tokenizer is not None):
        raise ValueError(f"init_from={folder}: {fault}")
    weights = read_weights(folder)
    config = WhisperConfig.from_json_file(folder / CONFIG)
    if tokenizer is None:
        tokenizer = WhisperTokenizer.from_pretrained(folder)
    else:
        weights.pop(TOKEN_TABLE, None)
        weights.pop(TIED, None)
    model = _model(config, tokenizer, language)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if fault := shape_fault({name: tuple(tensor.shape) for name, tensor in weights.items()}, expected):
        raise ValueError(f"init_from={folder}: {fault}")
    missing = model.load_state_dict(weights, strict=False).missing_keys
    return BaseModel(
        model, WhisperProcessor(feature_extractor(folder), tokenizer), tuple(name for name in missing if name != TIED)
    )


def save_base(base: BaseModel, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write model, processor and generation config; float16 by default, which reads back with the same transcripts."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.to(dtype) for name, tensor in base.model.state_dict().items()}
    base.model.save_pretrained(folder, state_dict=state)
    _save_processor(base.processor, folder)


def _save_processor(processor: WhisperProcessor, folder: Path) -> None:
    """Without the tokenizer's language where transformers would read another token back; the generation config has it."""
    tokenizer = processor.tokenizer
    language, task = tokenizer.language, tokenizer.task
    if language and not _is_read_back(tokenizer):
        tokenizer.language = tokenizer.task = None
    processor.save_pretrained(folder)
    tokenizer.language, tokenizer.task = language, task


def _is_read_back(tokenizer: WhisperTokenizer) -> bool:
    """Whether the token of the tokenizer's language lies where transformers counts it: in the hub's order after the start token."""
    spoken, start = token_ids(tokenizer, f"<|{tokenizer.language}|>", START)
    return tokenizer.language in LANGUAGES and spoken == start + 1 + list(LANGUAGES).index(tokenizer.language)


def _model(config: WhisperConfig, tokenizer: WhisperTokenizer, language: str) -> WhisperForConditionalGeneration:
    end, start = token_ids(tokenizer, END, START)
    config.vocab_size = len(tokenizer)
    config.pad_token_id = config.bos_token_id = config.eos_token_id = end
    config.decoder_start_token_id = start
    config.suppress_tokens = config.begin_suppress_tokens = None  # defaults are ids of Whisper's own vocabulary
    model = WhisperForConditionalGeneration(config)
    model.generation_config = generation_config(tokenizer, config.max_target_positions, language)
    return model


def _read_model(name: str, dropout: float | None = None) -> WhisperForConditionalGeneration:
    """A whole model in float32; a folder's weights in any form, an adapter beside them left alone."""
    changes: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
    folder = Path(name)
    if not folder.is_dir():
        return WhisperForConditionalGeneration.from_pretrained(name, dtype=torch.float32, **changes)
    config = WhisperConfig.from_pretrained(folder, **changes)
    model = WhisperForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=read_weights(folder), dtype=torch.float32
    )
    if (folder / GENERATION).exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _with_prompt(base: BaseModel) -> BaseModel:
    """A base whose `generate` begins with our prompt, whatever its generation config lacks, or says of languages that it does not know."""
    generation: Any = base.model.generation_config
    vocabulary = base.processor.tokenizer.get_vocab()
    generation._from_model_config = None  # else who reads it back makes it anew of the model's config, which has none of this
    if generation.max_length is None:
        generation.max_length = base.model.config.max_target_positions
    if not getattr(generation, "lang_to_id", None) and base.model.config.vocab_size >= MULTILINGUAL_VOCABULARY:
        generation.is_multilingual = True
        generation.lang_to_id = {token: vocabulary[token] for code in LANGUAGES if (token := f"<|{code}|>") in vocabulary}
        generation.task_to_id = {task: vocabulary[f"<|{task}|>"] for task in ("transcribe", "translate")}
        generation.no_timestamps_token_id = vocabulary[NO_TIMESTAMPS]
    elif not language_ids(generation):
        vars(generation).pop("lang_to_id", None)  # `generate` would look for a language even among none, and find token 0
        generation.language = generation.task = None
        generation.no_timestamps_token_id = vocabulary[NO_TIMESTAMPS]
    return base


def read_training_record(folder: Path) -> dict[str, Any]:
    """How a base was made, as `pretrain` wrote it; empty for a model from elsewhere."""
    record = Path(folder) / "training.json"
    return dict(json.loads(record.read_text(encoding="utf-8"))) if record.exists() else {}
