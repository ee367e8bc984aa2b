"""What a model can be trained on of a corpus: longer audio and longer references are left out by name, never cut."""

import dataclasses

import pandas as pd

from moe.audio.sampling import SAMPLE_RATE
from moe.system import Inputs
from steps.inputs.training import TrainingInputs
from steps.tracking.step_run import StepRun

LEFT_OUT = "tables/left_out.json"


def feasible(step: StepRun, given: TrainingInputs, inputs: Inputs, max_left_out: float) -> TrainingInputs:
    """The same without what the model cannot take, which a table names with the reason.

    Decoding takes everything: it cuts what is longer than the window at quiet places.

    Raises:
        ValueError: more than `max_left_out` of train, or all of train or dev.
    """
    reasons = {split: _reasons(rows, inputs) for split, rows in (("train", given.train), ("dev", given.dev))}
    parts = [rows[reasons[split].notna()].assign(split=split) for split, rows in (("train", given.train), ("dev", given.dev))]
    table = pd.concat(parts).assign(reason=pd.concat([reasons[split].dropna() for split in reasons]).to_numpy())
    step.log_table(table[["split", "utterance_id", "duration_s", "reason"]], LEFT_OUT)
    step.log_metrics({f"n_left_out/{split}": int(found.notna().sum()) for split, found in reasons.items()})
    for split, rows in (("train", given.train), ("dev", given.dev)):
        n_out, most = int(reasons[split].notna().sum()), max_left_out * len(rows) if split == "train" else len(rows) - 1
        if n_out > most or n_out == len(rows):
            first = table.loc[table["split"] == split, "reason"].iloc[0]
            raise ValueError(
                f"max_quarantined={max_left_out:g}: {n_out} of {len(rows)} {split} utterances {first}; raise it, or prepare the corpus "
                f"without them ({LEFT_OUT} names them)"
            )
    kept = {
        split: rows[reasons[split].isna()].reset_index(drop=True) for split, rows in (("train", given.train), ("dev", given.dev))
    }
    return dataclasses.replace(given, **kept)


def _reasons(rows: pd.DataFrame, inputs: Inputs) -> pd.Series:
    """Why each of the rows (N,) cannot be taken; None where it can."""
    window = inputs.window_s
    found = [
        f"are longer than the window of {window:g} s"
        if window is not None and row["duration_s"] > window
        else inputs.refusal(round(row["duration_s"] * SAMPLE_RATE), row["reference"])
        for row in rows.to_dict("records")
    ]
    return pd.Series(found, index=rows.index, dtype=object)
