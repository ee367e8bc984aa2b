"""The weights of a checkpoint folder in every form that the Hugging Face hub has: one file or shards with an index, safetensors or torch's own.

Torch's files are read as weights only: nothing in them is run.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from moe.files import read_json

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TIED = "proj_out.weight"  # tied to the token table: never in a checkpoint of its own
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIXES = ("model.", "proj_out.")
# what transformers and torch raise for a config of which no model can be made
NO_MODEL = (StrictDataclassError, TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, AssertionError)


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights: those that transformers would read, or any safetensors files of other names.

    Raises:
        ValueError: the index names a file that is not there.
    """
    for name in WEIGHTS:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            return _shards(index)
    return sorted(path for path in folder.glob("*.safetensors") if path.name not in ADAPTER_WEIGHTS)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors by the names of `WhisperForConditionalGeneration`, in float32.

    Raises:
        ValueError: a file is missing, or cannot be read as weights.
    """
    weights = {name: tensor.float() for path in weight_files(folder) for name, tensor in _read(path, "cpu").items()}
    return {_full_name(name): tensor for name, tensor in weights.items()}


def lacking_tensors(folder: Path) -> list[str]:
    """Names of the tensors that the config asks for and no file holds.

    Raises:
        ValueError: as `read_weights`, or the config is no Whisper's.
    """
    return sorted(set(expected_shapes(read_config(folder))) - set(held_shapes(folder)) - {TIED})


def read_config(folder: Path) -> str:
    """The config of a Whisper as JSON text.

    Raises:
        ValueError: it cannot be read, or is no Whisper's.
    """
    try:
        config = read_json(folder / CONFIG)
        if config.get("model_type", "whisper") != "whisper":
            raise ValueError(f"model_type={config['model_type']} is no Whisper")
    except (OSError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    return json.dumps(config)


def held_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that the files hold, by the names of `WhisperForConditionalGeneration`; from headers.

    Raises:
        ValueError: as `read_weights`.
    """
    parts = (
        safe_shapes(path) if path.suffix == ".safetensors" else _shapes_of(_read(path, "meta")) for path in weight_files(folder)
    )
    return {_full_name(name): shape for part in parts for name, shape in part.items()}


def safe_names(path: Path) -> list[str]:
    """Names of the tensors of a safetensors file, from its header.

    Raises:
        ValueError: it cannot be read.
    """
    return list(safe_shapes(path))


def safe_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file, from its header.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors ({error})") from error


def _shards(index: Path) -> list[Path]:
    shards = [index.parent / Path(name).name for name in sorted(set(read_json(index)["weight_map"].values()))]
    if missing := [path.name for path in shards if not path.exists()]:
        raise ValueError(f"{index}: {', '.join(missing)} of {len(shards)} files missing beside it")
    return shards


def _read(path: Path, device: str) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device=device)
        weights = torch.load(path, map_location=device, weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise ValueError(f"{path}: cannot be read as weights ({type(error).__name__})") from error
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path}: holds other things than weights")
    return weights


def _full_name(name: str) -> str:
    return name if name.startswith(PREFIXES) else f"model.{name}"


def _shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


@functools.lru_cache(maxsize=8)
def expected_shapes(config: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a config asks for, by name.

    Raises:
        ValueError: no model can be made of it.
    """
    try:
        with torch.device("meta"):
            return _shapes_of(WhisperForConditionalGeneration(WhisperConfig(**json.loads(config))).state_dict())
    except NO_MODEL as error:
        raise ValueError(f"{CONFIG}: no model can be made of it ({' '.join(str(error).split())[:200]})") from error
