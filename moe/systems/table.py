"""The systems: one row each. Evaluation, comparison, registration, transcription and serving find them here."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from moe.system import Ask, System, read_record
from moe.systems.domain_whisper import system as domain_whisper
from moe.systems.domain_whisper.asks import DomainAsk
from moe.systems.wav2vec2_ctc import building as wav2vec2_ctc
from moe.systems.wav2vec2_ctc.system import CTCAsk
from moe.systems.whisper_moe import system as whisper_moe
from moe.systems.whisper_moe.asks import MixtureAsk, WhisperAsk


@dataclasses.dataclass(frozen=True)
class Row:
    """How a system is read from its folder, and what may be asked of it."""

    load: Callable[[Path], System]
    ask_type: type[Ask]


SYSTEMS = {
    "whisper_moe": Row(whisper_moe.load, MixtureAsk),
    "single_lora": Row(whisper_moe.load, WhisperAsk),
    "zero_shot": Row(whisper_moe.load, WhisperAsk),
    "wav2vec2_ctc": Row(wav2vec2_ctc.load, CTCAsk),
    "domain_whisper": Row(domain_whisper.load, DomainAsk),
}


def load_system(folder: Path) -> System:
    """The recogniser that a folder holds.

    Raises:
        ValueError: it holds none, or one of a system that is not in the table.
    """
    name = read_record(folder).system
    if name not in SYSTEMS:
        raise ValueError(f"{folder} holds a model of the system {name!r}: this code knows {', '.join(SYSTEMS)}")
    return SYSTEMS[name].load(Path(folder))
