"""The scores of one evaluation run, whether several may be compared, and what becomes of runs that differ only by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.error_rates import COUNT_COLUMNS, UNITS, count_errors
from analysis.groups import with_groups
from analysis.hypotheses import name_some

BASE, CONTROL, MIXTURE = "base", "control", "mixture"  # roles; a base is what changes are measured against
OTHER_PLACE = 3  # among the colours


@dataclass(frozen=True)
class SystemScores:
    """What one evaluation run found.

    Args:
        name: as shown; runs of one name are the same system under several seeds and are pooled.
        run_id: the evaluation run.
        system: row of the table of systems.
        role: `base` (what changes are measured against), `control`, `mixture` or `candidate`.
        control: the system that is its fair control, if any; the verdict compares the two.
        hypotheses: the hypotheses table, counted or not.
        metadata: normaliser, test_set_digest; where known n_trainable, n_total, gating_accuracy, seconds (of decoding),
            audio_seconds, training_compute_seconds, training_device, peak_memory_mb, seed; `number` of a further system (`colour_place`).
        expert_wer: WER of each expert alone, by expert or by name.
        history: epoch and metrics, for the learning curves; None where there was no training.
    """

    name: str
    run_id: str
    system: str
    role: str
    hypotheses: pd.DataFrame
    control: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    expert_wer: Mapping[Any, float] = field(default_factory=dict)
    history: pd.DataFrame | None = None


@dataclass(frozen=True)
class PooledScores:
    """A system and its runs; error columns of `counted` are means over the runs, so that one seed and three weigh the same."""

    name: str
    system: str
    role: str
    control: str | None
    counted: pd.DataFrame
    runs: tuple[SystemScores, ...]


def check_comparable(systems: Sequence[SystemScores]) -> None:
    """Refuse to compare what was not scored alike.

    Raises:
        ValueError: fewer than two systems, different normalisers, different test sets (by digest, utterances or references); the
            message names the runs and the difference.
    """
    if len(systems) < 2:
        raise ValueError(f"nothing to compare: {len(systems)} system(s) given, at least two are needed")
    first, *others = systems
    for other in others:
        for key in ("normaliser", "test_set_digest"):
            ours, theirs = first.metadata.get(key), other.metadata.get(key)
            if ours != theirs:
                raise ValueError(
                    f"{other.name} ({other.run_id}) has {key} {theirs!r}, {first.name} ({first.run_id}) has {ours!r}"
                    f"{_test_set_difference(first, other)}; only runs scored alike can be compared"
                )
        difference = _test_set_difference(first, other)
        if difference:
            raise ValueError(
                f"{other.name} ({other.run_id}) and {first.name} ({first.run_id}) differ{difference}; cannot be compared"
            )


def pool(systems: Sequence[SystemScores]) -> list[PooledScores]:
    """Runs of one name together, in the order names first appear; runs in the order of their seed.

    Raises:
        ValueError: runs of one name are of different systems.
    """
    by_name: dict[str, list[SystemScores]] = {}
    for system in systems:
        by_name.setdefault(system.name, []).append(system)
    return [_pooled(name, runs) for name, runs in by_name.items()]


def counted(system: SystemScores) -> pd.DataFrame:
    """Counted hypotheses with group columns, sorted by utterance_id; counts them if `evaluate` did not."""
    table = system.hypotheses
    table = table if set(COUNT_COLUMNS) <= set(table.columns) and "word_errors" in table else count_errors(table)
    return with_groups(table.sort_values("utterance_id", ignore_index=True))


def colour_place(role: str, number: int = 0) -> int:
    """Place of a system among the colours, in every picture.

    Args:
        role: base, control and mixture each have a place of their own.
        number: of a further system among them.
    """
    return {BASE: 0, CONTROL: 1, MIXTURE: 2}.get(role, OTHER_PLACE + number)


def colour_places(systems: Sequence[PooledScores]) -> dict[str, int]:
    """Place of each system among the colours, by name: base, control and mixture have theirs, the others come behind."""
    found: dict[str, int] = {}
    for system in systems:
        place = colour_place(system.role, system.runs[0].metadata.get("number", 0))
        found[system.name] = place if place not in found.values() else max(OTHER_PLACE - 1, *found.values()) + 1
    return found


def pairs_of(systems: Sequence[PooledScores], base: str) -> list[tuple[str, str]]:
    """Names of the pairs that a verdict speaks of: each system and the base, each system and its fair control."""
    others = [system for system in systems if system.name != base]
    pairs = [(system.name, base) for system in others]
    return pairs + [(a.name, b.name) for a in others for b in others if a.control is not None and a.control == b.system]


def asked_pairs(systems: Sequence[PooledScores], base: str, against: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """The pairs that are tested for a verdict: those of `pairs_of`, or every system and each of the systems `against`.

    Raises:
        ValueError: `against` names a system that is not there.
    """
    if against is None:
        return pairs_of(systems, base)
    unknown = [name for name in against if name not in {system.system for system in systems}]
    if unknown:
        there = ", ".join(dict.fromkeys(system.system for system in systems))
        raise ValueError(f"compare_against={','.join(unknown)}: none of the runs scored it; there are {there}")
    pairs: list[tuple[str, str]] = []
    for other in (system for system in systems if system.system in against):
        names = [system.name for system in systems if system is not other]
        pairs += [(name, other.name) for name in names if (other.name, name) not in pairs]
    return pairs


def _pooled(name: str, runs: list[SystemScores]) -> PooledScores:
    found = sorted({run.system for run in runs})
    if len(found) > 1:
        raise ValueError(f"runs named {name!r} are of different systems: {', '.join(found)}; give them different names")
    runs = sorted(runs, key=lambda run: (str(run.metadata.get("seed", "")), run.run_id))
    tables = [counted(run) for run in runs]
    if len(tables) > 1:
        columns = [*COUNT_COLUMNS, *(f"{unit}_errors" for unit in UNITS)]
        means = sum(table[columns].astype(float) for table in tables) / len(tables)
        tables = [tables[0].assign(**{column: means[column] for column in columns})]
    return PooledScores(name, runs[0].system, runs[0].role, runs[0].control, tables[0], tuple(runs))


def _test_set_difference(first: SystemScores, other: SystemScores) -> str:
    ours, theirs = (run.hypotheses.set_index("utterance_id")["reference"].sort_index() for run in (first, other))
    said = ""
    for ids, name in ((ours.index.difference(theirs.index), first.name), (theirs.index.difference(ours.index), other.name)):
        if len(ids):
            said += f"; {len(ids)} utterance(s) only in {name}: {name_some(ids)}"
    shared = ours.index.intersection(theirs.index)
    changed = shared[ours[shared].to_numpy() != theirs[shared].to_numpy()]
    return said + (f"; {len(changed)} reference(s) differ: {name_some(changed)}" if len(changed) else "")
