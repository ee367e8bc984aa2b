"""A PEFT adapter as base model: the model it belongs on with its weights added, as if it had been saved whole."""

from pathlib import Path

from peft import PeftModel
from transformers import WhisperForConditionalGeneration
from transformers.utils import find_adapter_config_file

from moe.files import read_json
from moe.systems.whisper.checkpoint_weights import ADAPTER_WEIGHTS, CONFIG, weight_files


def model_below(name: str, local_files_only: bool = False) -> str | None:
    """The model that an adapter belongs on: in the same folder, or as its config names it; None for what is no adapter.

    Args:
        local_files_only: ask no hub.

    Raises:
        ValueError: the config names none.
    """
    path = find_adapter_config_file(name, local_files_only=local_files_only)
    if path is None:
        return None
    if (Path(name) / CONFIG).exists() and weight_files(Path(name)):
        return name
    below: str | None = read_json(Path(path)).get("base_model_name_or_path")
    if not below:
        raise ValueError(f"the adapter names no model that it belongs on: set base_model_name_or_path in {path}")
    return below


def adapter_fault(folder: Path) -> str | None:
    """Why an adapter folder cannot be read; None where it can."""
    if any((folder / name).exists() for name in ADAPTER_WEIGHTS):
        return None
    return f"the adapter has no weights ({' or '.join(ADAPTER_WEIGHTS)})"


def with_adapter(model: WhisperForConditionalGeneration, name: str) -> WhisperForConditionalGeneration:
    """The model with the adapter merged into its weights.

    Raises:
        ValueError: the adapter does not fit the model, or is none that can be merged.
    """
    try:
        merged: WhisperForConditionalGeneration = PeftModel.from_pretrained(model, name).merge_and_unload()
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"adapter {name} does not fit the model it names: {' '.join(str(error).split())[:200]}") from error
    return merged
