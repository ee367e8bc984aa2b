"""What a model can be trained on of a corpus: longer audio and references that it cannot learn are left out by name, never cut."""

import dataclasses
from collections.abc import Sequence

import pandas as pd

from moe.system import Inputs
from moe.training.dataset import refused
from steps.inputs.training import TrainingInputs
from steps.tracking.step_run import StepRun

INFEASIBLE = "tables/infeasible.json"
SPLITS = ("train", "dev")


def feasible(
    step: StepRun,
    given: TrainingInputs,
    inputs: Inputs,
    max_left_out: float,
    change: str | None = None,
    splits: Sequence[str] = SPLITS,
) -> TrainingInputs:
    """The same without what the model cannot take, which a table names with the reason.

    Decoding takes everything: it cuts what is longer than the window at quiet places.

    Args:
        max_left_out: share of the train utterances that may be left out; of dev all but one may.
        change: what the user can change beside `max_quarantined` and the corpus.
        splits: those that are searched; dev is left whole where its loss does not need what is refused.

    Raises:
        ValueError: there are more, or nothing is left.
    """
    rows = {split: getattr(given, split) for split in splits}
    left_out = {split: refused(part, inputs) for split, part in rows.items()}
    table = pd.concat([part.assign(split=split) for split, part in left_out.items()], ignore_index=True)
    step.log_table(table, INFEASIBLE)
    step.log_metrics({"n_infeasible": len(table)})
    for split, part in left_out.items():
        n_all = len(rows[split])
        if len(part) == n_all or (split == "train" and len(part) > max_left_out * n_all):
            raised = [f"raise max_quarantined to {share_to_allow(len(part), n_all):g}"] if len(part) < n_all else []
            ways = [*([change] if change else []), *raised, f"prepare the corpus without them ({INFEASIBLE})"]
            raise ValueError(
                f"max_quarantined={max_left_out:g}: {len(part)} of {n_all} {split} utterances {part['reason'][0]}, "
                f"e.g. {part['utterance_id'][:3].tolist()}; {', or '.join(ways)}"
            )
    kept = {
        split: part[~part["utterance_id"].isin(left_out[split]["utterance_id"])].reset_index(drop=True)
        for split, part in rows.items()
    }
    return dataclasses.replace(given, **kept)


def share_to_allow(n_left_out: int, n_all: int) -> float:
    """The least share in whole hundredths that is above this part."""
    return (100 * n_left_out // n_all + 1) / 100
