"""From a folder, or from a model, to a system."""

from collections.abc import Mapping
from pathlib import Path

from moe.system import Record
from moe.systems.whisper.base_model import BaseModel
from moe.systems.whisper_moe.folder import BASE_DIR, load_model
from moe.systems.whisper_moe.mixture_system import WhisperMoESystem
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.system import WhisperSystem


def load(folder: Path) -> WhisperSystem:
    """A saved recogniser.

    Raises:
        ValueError: the folder holds none, or adapters that do not fit.
    """
    model, base, record = load_model(folder)
    return wrap(model, base, Path(folder) / BASE_DIR, record)


def wrap(
    model: WhisperMoE, base: BaseModel, base_dir: Path, record: Record, learning_rates: Mapping[str, float] | None = None
) -> WhisperSystem:
    """A model as a system: one that routes where it has experts."""
    kind = WhisperMoESystem if model.n_experts else WhisperSystem
    return kind(model, base, base_dir, record, learning_rates)
