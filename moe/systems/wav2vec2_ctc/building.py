"""A CTC made new, or read from its folder, as the system that it is: one that routes where it has experts."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from moe.experts.rank_split import split_ranks
from moe.routing.losses import BalanceOptions
from moe.system import Record
from moe.systems.wav2vec2_ctc.asks import CTCAsk, ask_fault
from moe.systems.wav2vec2_ctc.folder import NAME, CTCShape, known_vocabulary, load_model, module_of
from moe.systems.wav2vec2_ctc.mixture import CTCMixture
from moe.systems.wav2vec2_ctc.mixture_system import CTCMixtureSystem
from moe.systems.wav2vec2_ctc.model import CTCModel, new_network
from moe.systems.wav2vec2_ctc.options import CTCExpertOptions, CTCModelOptions
from moe.systems.wav2vec2_ctc.system import TITLE, CTCSystem
from moe.systems.wav2vec2_ctc.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """How fast the network and the gate learn; 0 is not at all."""

    network: float = 0.0
    gate: float = 0.0


def build(
    options: CTCModelOptions,
    vocabulary: Vocabulary,
    language: str,
    normaliser: str,
    rates: LearningRates = LearningRates(),
    experts: CTCExpertOptions | None = None,
) -> CTCSystem:
    """An untrained one; what it draws comes from torch's generator.

    Args:
        experts: LoRA, one or routed; None for none. The gate of experts comes later.

    Raises:
        ValueError: a checkpoint that cannot be taken, or targets that it does not have.
    """
    keeps_head = options.ctc_model is not None and known_vocabulary(Path(options.ctc_model)) == vocabulary
    made = new_network(options, len(vocabulary), keeps_head)
    shape = CTCShape(str(options.ctc_model))
    if experts:
        n_experts = experts.ctc_experts if experts.ctc_experts > 1 else 0
        adapters = split_ranks(experts.adapters, n_experts) if n_experts else experts.adapters
        shape = dataclasses.replace(shape, n_experts=n_experts, adapters=adapters, routing=experts.routing)
    module = module_of(made.network, shape, balance=experts.part(BalanceOptions) if experts else None)
    return _wrap(module, vocabulary, new_record(shape, language, normaliser), made.missing, rates)


def new_record(shape: CTCShape, language: str, normaliser: str) -> Record:
    """The record of a CTC of this shape."""
    kind = f", {shape.n_experts} experts" if shape.n_experts else ", one LoRA" if shape.adapters else ""
    role = "mixture" if shape.n_experts else "candidate"
    return Record(NAME, TITLE + kind, role, language, normaliser, shape=dataclasses.asdict(shape))


def refuse(record: Record, ask: CTCAsk, rows: pd.DataFrame | None) -> None:
    """Refuse more experts than there are; asked of the record, before anything is loaded.

    Raises:
        ValueError: naming how many there are.
    """
    if fault := ask_fault(ask, CTCShape.of(record.shape).n_experts, record.title):
        raise ValueError(fault)


def load(folder: Path) -> CTCSystem:
    """A saved one.

    Raises:
        ValueError: the folder holds no whole one.
    """
    module, vocabulary, language_model, record = load_model(folder)
    system = _wrap(module, vocabulary, record)
    system.language_model = language_model
    return system


def _wrap(
    module: CTCModel,
    vocabulary: Vocabulary,
    record: Record,
    missing: Sequence[str] = (),
    rates: LearningRates = LearningRates(),
) -> CTCSystem:
    if isinstance(module, CTCMixture):
        return CTCMixtureSystem(module, vocabulary, record, missing, rates.network, rates.gate)
    return CTCSystem(module, vocabulary, record, missing, rates.network)
