"""Whom a gate sends where: its decisions by group, and by speaker, all of them unseen.

Reads rows of utterances (speaker, etiology, cluster) and the gate's probabilities (n_utterances, n_experts) for them. Shares and
entropies lie between 0 and 1.
"""

import numpy as np
import pandas as pd

from analysis.hypotheses import groups_of
from analysis.routing import entropy


def decisions_by(table: pd.DataFrame, probabilities: np.ndarray, column: str = "etiology") -> pd.DataFrame:
    """How the utterances of each group are decided, one row per group; `probabilities` (N, E) are the gate's.

    Returns:
        columns group, n_utterances, n_speakers, accuracy (share sent to their own cluster's expert), confidence (mean of the largest
        probability), entropy (of the gate's distribution), expert (the one that most are sent to) and `expert_0` …: shares of the
        utterances sent there, summing to 1.
    """
    chosen = _decided(table, probabilities).assign(group=groups_of(table, column).to_numpy())
    rows = []
    for group, part in chosen.groupby("group", observed=True, sort=True):
        sent = np.bincount(part["expert"], minlength=probabilities.shape[1])
        means = part[["right", "confidence", "entropy"]].mean()
        rows.append(
            {
                "group": str(group),
                "n_utterances": len(part),
                "n_speakers": part["speaker"].nunique(),
                "accuracy": means["right"],
                "confidence": means["confidence"],
                "entropy": means["entropy"],
                "expert": int(sent.argmax()),
                **{f"expert_{expert}": share for expert, share in enumerate(sent / len(part))},
            }
        )
    return pd.DataFrame(rows)


def speaker_decisions(table: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """One row per speaker, by etiology and name: which expert, how decided; `probabilities` (N, E) are the gate's.

    Returns:
        as `decisions_by`, with speaker and etiology for group, agreement (share of the speaker's utterances that go to the same
        expert) and, in `expert_0` …, the gate's mean probabilities.
    """
    found = decisions_by(table, probabilities, "speaker").rename(columns={"group": "speaker"}).drop(columns="n_speakers")
    speakers = table["speaker"].astype(str).to_numpy()
    means = pd.DataFrame(probabilities).groupby(speakers).mean().loc[found["speaker"]].to_numpy()  # (n_speakers, E)
    experts = [f"expert_{expert}" for expert in range(probabilities.shape[1])]
    found.insert(1, "etiology", found["speaker"].map(table["etiology"].astype(str).groupby(speakers).first()))
    found.insert(4, "agreement", found[experts].max(axis=1))
    found[experts] = means
    return found.sort_values(["etiology", "speaker"], ignore_index=True)


def _decided(table: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    experts = probabilities.argmax(axis=1)
    right = experts == table["cluster"].to_numpy() if "cluster" in table else np.full(len(table), np.nan)
    return pd.DataFrame(
        {
            "speaker": table["speaker"].astype(str).to_numpy(),
            "expert": experts,
            "right": np.asarray(right, float),
            "confidence": probabilities.max(axis=1),
            "entropy": entropy(probabilities),
        }
    )
