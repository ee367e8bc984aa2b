"""What each expert is for: who is sent to it, how they speak, how well it does; and utterances to listen to.

Reads the hypotheses table of a mixture with whatever further columns there are (loudness_db, words_per_s, …), or utterances that were
routed and not yet recognised: then there is no WER.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.hypotheses import groups_of
from analysis.routing import chosen_experts, gate_probabilities, routing_weights

MEASURES = ("duration_s", "words_per_s", "loudness_db", "severity", "pitch_hz", "snr_db")


def expert_profiles(counted: pd.DataFrame, column: str = "etiology", measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """One row per expert over the utterances it wins.

    Returns:
        columns expert, n_utterances, share, n_speakers, main_group and main_share (the group that most of its utterances come
        from), top_speakers (the three with most utterances), wer (where utterances are recognised), mean_weight (of its own
        utterances), and the mean of each measure the table has; speaking rate is made from words and duration. An expert nobody is
        sent to keeps its row.
    """
    table = with_speaking_rate(counted).assign(_expert=chosen_experts(counted), _group=groups_of(counted, column).astype(str))
    present = [name for name in measures if name in table and table[name].notna().any()]
    weights = routing_weights(counted)
    rows = []
    for expert in range(weights.shape[1]):
        won = (table["_expert"] == expert).to_numpy()
        rows.append({"expert": expert, "n_utterances": int(won.sum()), "share": won.mean(), **_profile(table[won]),
                     "mean_weight": weights[won, expert].mean() if won.any() else np.nan,
                     **table.loc[won, present].astype(float).mean().to_dict()})  # fmt: skip
    return pd.DataFrame(rows)


def group_shares(counted: pd.DataFrame, column: str = "etiology") -> pd.DataFrame:
    """Where the utterances of each expert come from: rows experts, columns groups, rows summing to 1 (0 for an unused expert)."""
    n_experts = routing_weights(counted).shape[1]
    counts = pd.crosstab(chosen_experts(counted), groups_of(counted, column).astype(str).to_numpy())
    counts = counts.reindex(range(n_experts), fill_value=0)
    return counts.div(counts.sum(axis=1).clip(lower=1), axis=0).rename_axis("expert").rename_axis("group", axis=1)


def standard_scores(profiles: pd.DataFrame, counted: pd.DataFrame, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """How far each expert's mean lies from that of all utterances, in standard deviations of an utterance; rows experts."""
    table = with_speaking_rate(counted)
    present = [name for name in measures if name in profiles]
    spread = table[present].astype(float).std().replace(0, np.nan)
    return ((profiles.set_index("expert")[present] - table[present].astype(float).mean()) / spread).astype(float)


def exemplars(counted: pd.DataFrame, n_each: int = 3) -> pd.DataFrame:
    """Utterances to listen to: for each expert those the gate is surest of, of different speakers while there are any.

    Returns:
        rows of the table with columns expert and weight (the gate's probability), by expert and falling weight; ties by utterance_id.
    """
    weights, experts = gate_probabilities(counted), chosen_experts(counted)
    table = counted.assign(expert=experts, weight=weights[np.arange(len(experts)), experts])
    table = table.sort_values(["expert", "weight", "utterance_id"], ascending=[True, False, True], kind="stable")
    again = table.groupby(["expert", "speaker"], sort=False).cumcount()  # 0 for the first utterance of a speaker
    table = table.assign(_again=again).sort_values(
        ["expert", "_again", "weight", "utterance_id"], ascending=[True, True, False, True]
    )
    return table.groupby("expert", sort=True).head(n_each).drop(columns="_again").reset_index(drop=True)


def with_speaking_rate(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `words_per_s`: words of the reference by second, unless it is there already."""
    if "words_per_s" in table or "duration_s" not in table:
        return table
    return table.assign(words_per_s=table["n_words"] / table["duration_s"].where(table["duration_s"] > 0))


def _profile(won: pd.DataFrame) -> dict[str, object]:
    recognised = "word_errors" in won
    if won.empty:
        return {
            "n_speakers": 0,
            "main_group": "–",
            "main_share": np.nan,
            "top_speakers": "–",
            **({"wer": np.nan} if recognised else {}),
        }
    groups = won["_group"].value_counts().sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    speakers = won["speaker"].value_counts().sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    return {
        "n_speakers": len(speakers),
        "main_group": groups.index[0],
        "main_share": float(groups.iloc[0] / len(won)),
        "top_speakers": ", ".join(f"{name} ({count})" for name, count in speakers.head(3).items()),
        **({"wer": _word_error_rate(won)} if recognised else {}),
    }


def _word_error_rate(won: pd.DataFrame) -> float:
    n_words = won["n_words"].sum()
    return float(won["word_errors"].sum() / n_words) if n_words else float("nan")
