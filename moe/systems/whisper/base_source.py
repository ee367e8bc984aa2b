"""A base model by its name, before it is loaded: where its small files are, and why it could not be taken, filled in or trained for a language.

Everything comes from headers and small files, so that it can be asked before any work.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.utils import cached_file

from moe.files import read_json
from moe.systems.whisper.adapted_base import adapter_fault, model_below
from moe.systems.whisper.checkpoint_weights import (
    CONFIG,
    TIED,
    WEIGHTS,
    expected_shapes,
    held_shapes,
    lacking_tensors,
    read_config,
    weight_files,
)
from moe.systems.whisper.features import window_seconds
from moe.systems.whisper.tokens import language_ids

SCRATCH = "scratch"
TOKEN_TABLE = "model.decoder.embed_tokens.weight"
GENERATION = "generation_config.json"
ENGLISH = "en"
MULTILINGUAL_VOCABULARY = 51_865  # tokens; the hub's multilingual models have at least so many, those of English alone one fewer
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
)  # transformers 5 writes the first, hub models have the second
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
HUB_TIMEOUT_S = 10
DOCUMENT_MODELS = {"v2": "openai/whisper-large-v2", "v3": "openai/whisper-large-v3"}


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


def is_from_scratch(record: Mapping[str, Any]) -> bool:
    """Whether a base was made here from random weights; such a small one takes rates that spoil a real Whisper.

    Args:
        record: how it was made (`read_training_record`).
    """
    return record.get("init_from") == SCRATCH


def resolve(name: str) -> str:
    """The documents' `v2` and `v3` as hub names; anything else unchanged."""
    return DOCUMENT_MODELS.get(name, name)


def whole_fault(name: str) -> str | None:
    """Why a base cannot be taken as it is; None for hub names and for folders with all weights, or an adapter, and a processor."""
    folder = Path(resolve(name))
    if not folder.is_dir():
        return None
    try:
        below = model_below(str(folder))
        if below is None or below == str(folder):
            return _folder_fault(folder) or (below and adapter_fault(folder))
        return adapter_fault(folder) or _below_fault(below)
    except ValueError as error:
        return str(error)


def is_complete(name: str) -> bool:
    """Does a base need no training?"""
    return whole_fault(name) is None


def partial_fault(name: str, makes_tokenizer: bool) -> str | None:
    """Why a checkpoint cannot be filled in, from the headers of its files; None where it can.

    Args:
        makes_tokenizer: whether a new tokenizer is made, whose token table then replaces the checkpoint's.
    """
    folder = Path(name)
    if not folder.is_dir():
        return "no such folder"
    try:
        if not weight_files(folder) or not (folder / CONFIG).exists():
            return f"needs {CONFIG} and weights ({', '.join(WEIGHTS)}, or shards with an index)"
        held, expected = held_shapes(folder), expected_shapes(read_config(folder))
    except ValueError as error:
        return str(error)
    if not makes_tokenizer and not any((folder / file).exists() for file in TOKENIZER_FILES):
        return f"has no tokenizer ({' or '.join(TOKENIZER_FILES)}); set tokenizer=characters or tokenizer=bpe, and one is made"
    ours = {TOKEN_TABLE, TIED}  # as many rows as the tokenizer has tokens
    return shape_fault({tensor: shape for tensor, shape in held.items() if tensor not in ours}, expected)


def _fetch_config(name: str) -> None:
    cached_file(name, CONFIG)


def _fetch_base_files(name: str) -> None:
    """Config and processor of a Whisper, or of the one below an adapter."""
    below = model_below(name) or name
    read_config(Path(str(cached_file(below, CONFIG))).parent)
    for file in (GENERATION, *PROCESSOR_FILES, *TOKENIZER_FILES, "merges.txt", "tokenizer_config.json"):
        cached_file(below, file, _raise_exceptions_for_missing_entries=False)


def hub_fault(name: str) -> str | None:
    """Why a base of the hub cannot be had; None where its config and processor, a few MB, are here or have just been fetched."""
    return None if name == SCRATCH else hub_model_fault(resolve(name), _fetch_base_files)


def hub_model_fault(name: str, fetch: Callable[[str], None] = _fetch_config) -> str | None:
    """Why a model of the hub cannot be had; None for a folder, and where its config is here or what is fetched of it has just been.

    Args:
        fetch: gets the small files of it that are asked for before any work.
    """
    if Path(name).is_dir() or small_files(name) is not None:
        return None
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)  # asked once: fetching tries again and again
        fetch(name)
    except HFValidationError:
        return "neither a folder nor a name that the hub can have"
    except RepositoryNotFoundError:
        return "the hub has no such model, or it wants a login (`hf auth login`)"
    except (HTTPError, OSError, ValueError) as error:
        return (
            f"not on this machine, and the hub does not give it ({' '.join(str(error).split())[:200]}); name the folder of a model instead, or "
            f"run `hf download {name}` where there is a connection and copy its cache"
        )
    return None


def small_files(name: str) -> Path | None:
    """The folder with the config and the processor of a base, of an adapter those of the model below it: its own, or the hub cache's.

    None where they are not on this machine.
    """
    name = resolve(name)
    if (Path(name) / CONFIG).exists():
        return Path(name)
    try:
        found = None if Path(name).is_dir() else cached_file(
            name, CONFIG, local_files_only=True,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if found is not None:
            return Path(found).parent
        below = model_below(name, local_files_only=True)
    except (OSError, ValueError):
        return None  # `whole_fault` says it, or `hub_model_fault` of a name that no hub can have
    return None if below is None or below == name else small_files(below)


def base_window_s(base: str) -> float | None:
    """Seconds that a base takes at once, a hub's if it was downloaded before; None where that shows when it is loaded."""
    if base == SCRATCH:
        return SmallShape().window_s
    folder = small_files(base)
    try:
        return None if folder is None else window_seconds(feature_extractor(folder))
    except OSError:
        return None


def language_fault(language: str, known: Iterable[str]) -> str | None:
    """Why a base that has tokens for the languages `known` cannot be trained for a language; None where it can."""
    known = list(known) or [ENGLISH]  # without any it is one of the hub's that know English alone
    if language in known:
        return None
    return f"language={language}: the base has {', '.join(known)}; name a base that has it (whisper_model), or make one (init_from=scratch)"


def known_languages(name: str) -> list[str] | None:
    """The languages that a base has tokens for, empty where it needs none; None where its files are not on this machine."""
    if Path(name).is_dir() and whole_fault(name):
        tokens = WhisperTokenizer.from_pretrained(name).get_vocab() if partial_fault(name, makes_tokenizer=False) is None else {}
        return [code for code in LANGUAGES if f"<|{code}|>" in tokens] if tokens else None
    folder = small_files(name)
    return None if folder is None else folder_languages(folder)


def folder_languages(folder: Path) -> list[str]:
    """The languages that a base in a folder has tokens for; an adapter has those of the model below it."""
    below = model_below(str(folder))
    if below is not None and below != str(folder):
        return folder_languages(Path(below))
    if (folder / GENERATION).exists():
        return list(language_ids(GenerationConfig.from_pretrained(folder)))
    return list(LANGUAGES) if read_json(folder / CONFIG).get("vocab_size", 0) >= MULTILINGUAL_VOCABULARY else []


def has_processor(folder: Path) -> bool:
    """Whether a feature extractor and a tokenizer are there."""
    return all(any((folder / name).exists() for name in names) for names in (PROCESSOR_FILES, TOKENIZER_FILES))


def _folder_fault(folder: Path) -> str | None:
    if not (folder / CONFIG).exists() or not weight_files(folder):
        return f"no model there: needs {CONFIG} and weights ({', '.join(WEIGHTS)}, or shards with an index)"
    if lacking := lacking_tensors(folder):
        shown = ", ".join(lacking[:3])
        return f"the checkpoint is partial, {len(lacking)} tensors are missing ({shown}); name it as init_from instead, and what it lacks is trained"
    if not has_processor(folder):
        return f"no processor there ({' or '.join(PROCESSOR_FILES)}, {' or '.join(TOKENIZER_FILES)}): copy it from the model it was made of"
    return None


def _below_fault(below: str) -> str | None:
    """An adapter in a folder reaches for no hub: the model below it is a folder, or has been downloaded before."""
    folder = Path(below)
    if folder.is_dir():
        return (fault := whole_fault(below)) and f"the model below the adapter, {below}: {fault}"
    if small_files(below) is not None:
        return None
    return f"the adapter belongs on {below}, which is not on this machine: `hf download {below}` brings it"


def feature_extractor(folder: Path) -> WhisperFeatureExtractor:
    """The checkpoint's own feature extractor; without one, the usual one of Whisper, which takes 30 s."""
    if any((folder / name).exists() for name in PROCESSOR_FILES):
        return WhisperFeatureExtractor.from_pretrained(folder)
    return WhisperFeatureExtractor(feature_size=WhisperConfig.from_json_file(folder / CONFIG).num_mel_bins)


def shape_fault(held: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """Tensors that a checkpoint holds otherwise than its config asks for, the first few."""
    faults = [
        f"{name} is {shape}, config.json asks for {expected.get(name, 'no such tensor')}"
        for name, shape in held.items()
        if shape != expected.get(name)
    ]
    return "; ".join(faults[:5]) or None
