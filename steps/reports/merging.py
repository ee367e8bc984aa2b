"""What `experts` says about experts that were tested for differences and merged."""

import math
from collections.abc import Sequence

import pandas as pd

from analysis.report import percent
from moe.experts.alike import Merging
from moe.experts.pair_tests import Group, PairTest, least_speakers
from moe.training import processes
from steps.tracking.step_run import StepRun


def pairs_table(merging: Merging) -> pd.DataFrame:
    """One row for each pair that was tested: first, second, n_speakers, n_tokens, difference (nats per token), p_value, outcome."""
    rows = [
        {"first": _name(test.first), "second": _name(test.second), "n_speakers": test.n_speakers, "n_tokens": test.n_tokens,
         "difference": test.difference, "p_value": test.p_value, "outcome": _outcome(test)}
        for test in merging.tests
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["first", "second", "n_speakers", "n_tokens", "difference", "p_value", "outcome"])


def merging_line(merging: Merging, alpha: float, before: float, after: float) -> str:
    """What was found and what became of it, in a sentence or two.

    Args:
        before, after: dev WER of the experts as trained and as merged; NaN where nothing was merged.
    """
    n, unsure = len(merging.expert_of_cluster), [test for test in merging.last_tests if not test.can_tell]
    said = [
        f"{n} expert{'s' * (n > 1)}, of which {merging.n_that_differ} differ{'s' * (merging.n_that_differ == 1)} on dev (p ≤ {alpha:g})"
    ]
    if unsure:
        least, most = (each(test.n_speakers for test in unsure) for each in (min, max))
        said.append(
            f"the test cannot tell {len(unsure)} of {len(merging.last_tests)} pairs apart or alike: they have "
            f"{least if least == most else f'{least} to {most}'} dev speakers, {least_speakers(alpha)} are needed"
        )
    merged = [_name(group) for group in merging.groups if len(group) > 1]
    if not merged:
        return "; ".join([*said, "none is merged"])
    change = f"dev WER {percent(after)}, {percent(before)} before"
    if is_kept(before, after):
        return "; ".join([*said, f"merged {' and '.join(merged)}: {change}"])
    return "; ".join([*said, f"{' and '.join(merged)} merged would be worse: {change}; all {n} stay"])


def log_merging(step: StepRun, merging: Merging, wer: float, line: str) -> None:
    """The tests as metrics and as a table, and the line on the screen and in the run's tags."""
    metrics: dict[str, float] = {"dev/n_experts_that_differ": merging.n_that_differ}
    step.log_metrics(metrics if math.isnan(wer) else metrics | {"dev/wer_merged": wer})
    step.log_table(pairs_table(merging), "tables/expert_pairs.json")
    step.set_tags({"moe.merging": line})
    if processes.number() == 0:
        print(f"experts: {line}", flush=True)


def is_kept(before: float, after: float) -> bool:
    """Whether merged experts stay: where dev WER is not worse."""
    return not math.isnan(after) and after <= before


def _name(group: Group | Sequence[int]) -> str:
    return "+".join(map(str, group))


def _outcome(test: PairTest) -> str:
    return "differ" if test.differs else "alike" if test.is_alike else "too few speakers to tell"
