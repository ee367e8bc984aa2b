"""The systems: one row each. Evaluation, comparison, registration, transcription and serving find them here."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from moe.system import Ask, Record, System, read_record
from moe.systems.domain_whisper import system as domain_whisper
from moe.systems.domain_whisper.asks import DomainAsk, served
from moe.systems.steer_moe import system as steer_moe
from moe.systems.steer_moe.asks import SteerAsk
from moe.systems.wav2vec2_ctc import building as wav2vec2_ctc
from moe.systems.wav2vec2_ctc.asks import CTCAsk
from moe.systems.wav2vec2_ctc.beams import missing_extra
from moe.systems.whisper_moe import building as whisper_moe
from moe.systems.whisper_moe import mixture_system
from moe.systems.whisper_moe.asks import MixtureAsk, WhisperAsk


@dataclasses.dataclass(frozen=True)
class Row:
    """How a system is read from its folder, and what may be asked of it.

    Attributes:
        refuse: raises ValueError for what a recogniser with this record cannot be asked, before it is loaded; rows are those of the
            manifest, None where there is none.
        served: what is asked in serving, where evaluation asked this.
        missing_for_beams: what to install before beams can be searched; None for nothing.
    """

    load: Callable[[Path], System]
    ask_type: type[Ask]
    refuse: Callable[[Record, Any, pd.DataFrame | None], None] = lambda record, ask, rows: None
    served: Callable[[Any], Ask] = lambda ask: ask
    missing_for_beams: Callable[[], str | None] = lambda: None


SYSTEMS = {
    "whisper_moe": Row(whisper_moe.load, MixtureAsk, mixture_system.refuse),
    "single_lora": Row(whisper_moe.load, WhisperAsk),
    "zero_shot": Row(whisper_moe.load, WhisperAsk),
    "steer_moe": Row(steer_moe.load, SteerAsk),
    "wav2vec2_ctc": Row(wav2vec2_ctc.load, CTCAsk, wav2vec2_ctc.refuse, missing_for_beams=missing_extra),
    "domain_whisper": Row(domain_whisper.load, DomainAsk, domain_whisper.refuse, served),
}


def load_system(folder: Path) -> System:
    """The recogniser that a folder holds.

    Raises:
        ValueError: it holds none, or one of a system that is not in the table.
    """
    return row_of(read_record(folder)).load(Path(folder))


def row_of(record: Record) -> Row:
    """The row of the system that a record names.

    Raises:
        ValueError: it is not in the table.
    """
    if record.system not in SYSTEMS:
        raise ValueError(f"a model of the system {record.system!r}: this code knows {', '.join(SYSTEMS)}")
    return SYSTEMS[record.system]


def beam_fault(system: str, beam_size: int) -> str | None:
    """Why a system of the table cannot search so many beams on this machine; None where it can."""
    missing = SYSTEMS[system].missing_for_beams() if beam_size > 1 else None
    return f"beam_size={beam_size}: {system}: {missing}" if missing else None
