"""Which of several evaluated systems are registered, under which name, and which of them may become champion."""

import dataclasses
import re
from collections.abc import Sequence

import pandas as pd
from mlflow.entities.model_registry import ModelVersion

from analysis.error_rates import rates_by
from analysis.intervals import Difference
from analysis.promotion import Decision, Merit, decide, is_better, merit, size_words
from analysis.significance import speaker_difference
from analysis.systems import BASE, SystemScores, check_comparable, counted
from steps.registry import versions
from steps.reports.scores import corpus_of, read_scores

ANY = "any"


@dataclasses.dataclass(frozen=True)
class Judge:
    """What a decision needs.

    Attributes:
        scores: of every evaluation given.
        registered: name in the registry.
        max_group_regression: WER that a group may lose against the champion.
    """

    scores: Sequence[SystemScores]
    registered: str
    max_group_regression: float
    n_resamples: int
    seed: int

    def candidates(self, best: SystemScores) -> list[SystemScores]:
        """The best evaluation, and behind it its fair control unless it is significantly better: the last one may become champion.

        A control has one part where the system has several. So what a test cannot tell apart is no reason for the system.
        """
        control = self.control_of(best)
        return [best] if control is None or self._pays(best, control) else [best, control]

    def _pays(self, system: SystemScores, control: SystemScores) -> bool:
        """Whether it makes significantly fewer errors than its fair control; what cannot be compared is for `decide` to say."""
        return not _one_test_set(system, control) or is_better(self._against(system, control))

    def _against(self, system: SystemScores, other: SystemScores) -> Difference:
        return speaker_difference(counted(system), counted(other), self.n_resamples, self.seed)

    def control_of(self, system: SystemScores) -> SystemScores | None:
        """The evaluation of its fair control with the lowest WER, if there is one."""
        found = [each for each in self.scores if each.system == system.control]
        return min(found, key=wer, default=None)

    def decide(self, system: SystemScores) -> Decision:
        """May it become champion: by its own merit, then against the champion there is."""
        found = self._merit(system)
        if not found.deserved:
            return _decision(False, found.reason)
        champion = versions.champion(self.registered)
        if champion is None:
            return _decision(True, f"first champion: {found.reason}")
        name = f"version {champion.version}"
        try:
            theirs = _scores_of(champion)
        except (RuntimeError, ValueError) as error:
            return _decision(False, f"cannot be compared with {name}: {error}")
        if is_synthetic(theirs) != is_synthetic(system):
            return _between_worlds(system, name, found)
        if not _one_test_set(system, theirs):
            return _decision(True, f"{found.reason}; {name}, champion before, was scored on another test set")
        return decide(system, theirs, name, self.max_group_regression, self.n_resamples, self.seed)

    def _merit(self, system: SystemScores) -> Merit:
        base = min((each for each in self.scores if each.role == BASE), key=wer, default=None)
        return merit(system, base, self.control_of(system), self.n_resamples, self.seed)

    def behind_control(self, system: SystemScores, control: SystemScores) -> Decision:
        """Why a system gives way to its fair control."""
        found = self._against(system, control)
        size = size_words(found, f"its fair control, {control.name}, which is registered beside it")
        return _decision(False, size if found.value > 0 else f"not significantly better than a simpler system: {size}")


def best_system(scores: Sequence[SystemScores], system: str = ANY) -> SystemScores:
    """The evaluation of a system (or `any`) with the lowest WER.

    Raises:
        ValueError: none of the runs scored it.
    """
    found = [each for each in scores if system in (ANY, each.system)]
    if not found:
        there = ", ".join(sorted({each.system for each in scores}))
        raise ValueError(
            f"register_system={system}: none of the {len(scores)} evaluate runs scored it, they scored {there}: there is nothing to register"
        )
    return min(found, key=wer)


def registered_name(system: SystemScores) -> str:
    """Name in the registry, one for each system and corpus: `whisper-moe` for synthetic speech, `whisper-moe-recordings` for `recordings`."""
    corpus = re.sub(r"[^\w-]+", "-", corpus_of(system)).strip("-")
    name = system.system.replace("_", "-")
    return name if is_synthetic(system) or not corpus else f"{name}-{corpus}"


def is_synthetic(system: SystemScores) -> bool:
    """Whether it was scored on synthetic speech."""
    return bool(system.metadata["note"])


def wer(system: SystemScores) -> float:
    """WER over its whole test set."""
    return float(system.hypotheses["word_errors"].sum() / system.hypotheses["n_words"].sum())


def overall_rates(system: SystemScores) -> pd.Series:
    """Its rates with their intervals (`analysis.error_rates.rates_by`)."""
    return rates_by(counted(system), None).iloc[0]


def _between_worlds(system: SystemScores, champion: str, found: Merit) -> Decision:
    if is_synthetic(system):
        return _decision(False, f"scored on synthetic speech, and {champion} on real speech, whose place it does not take")
    return _decision(True, f"{found.reason}; {champion}, champion before, was scored on synthetic speech")


def _one_test_set(ours: SystemScores, theirs: SystemScores) -> bool:
    try:
        check_comparable([ours, theirs])
    except ValueError:
        return False
    return True


def _decision(promoted: bool, reason: str) -> Decision:
    return Decision(promoted, reason, None, pd.DataFrame())


def _scores_of(version: ModelVersion) -> SystemScores:
    """The evaluation that a registered version was judged by.

    Raises:
        ValueError: its tags name none.
    """
    run_id = version.tags.get("evaluate_run_id")
    if not run_id:
        raise ValueError(f"version {version.version} has no tag evaluate_run_id")
    return read_scores(run_id)
