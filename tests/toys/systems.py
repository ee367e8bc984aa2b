"""A small instance of every system in the table, by name: what the contract is tested on."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from moe.experts.routed_lora import AdapterOptions
from moe.system import System
from moe.systems.domain_whisper.system import NAME as DOMAIN
from moe.systems.steer_moe.system import NAME as STEER
from moe.systems.wav2vec2_ctc.folder import NAME as CTC
from moe.systems.whisper.base_model import save_base
from moe.systems.whisper_moe.folder import BASE, LORA, MIXTURE, WhisperShape, new_record
from tests.toys.ctc import toy_ctc
from tests.toys.domain import toy_domain
from tests.toys.models import CONTEXT, N_EXPERTS, adapter_options, shared_base
from tests.toys.recognizers import record_of, system_on
from tests.toys.steer import toy_steer


def _mixture(folder: Path) -> System:
    return _on_base(folder, record_of(N_EXPERTS))


def _lora(folder: Path) -> System:
    return _on_base(folder, record_of(0))


def _base(folder: Path) -> System:
    bare: AdapterOptions = dataclasses.replace(adapter_options(), shared_expert=False, shared_r=None)
    shape = WhisperShape(0, bare, record_shape().routing, CONTEXT)
    return _on_base(folder, new_record(BASE, shape, "en", "basic", {}))


def record_shape() -> WhisperShape:
    """The shape of the toy mixture."""
    return WhisperShape.of(record_of(N_EXPERTS).shape)


def _on_base(folder: Path, record) -> System:
    save_base(shared_base(), folder)
    system = system_on(folder, record)
    system.learning_rates = {"adapters": 1e-3, "gate": 1e-4}
    return system


INSTANCES: dict[str, Callable[[Path], System]] = {
    MIXTURE: _mixture,
    LORA: _lora,
    BASE: _base,
    STEER: toy_steer,
    CTC: lambda folder: toy_ctc(),
    DOMAIN: toy_domain,
}
