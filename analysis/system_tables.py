"""The systems of a comparison, one row each: how good, how large, how dear, and what the seed alone does."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.error_rates import rates_by
from analysis.systems import PooledScores, counted


def systems_table(pooled: Sequence[PooledScores], base: PooledScores, n_resamples: int) -> pd.DataFrame:
    """One row per system.

    Returns:
        columns system, role, n_runs; sizes, gating accuracy, expert WER and costs (NaN where no run recorded them); the rates of
        `rates_by`; seed_wer_min, seed_wer_max; relative_change against the base.
    """
    rows = []
    for system in pooled:
        rates = rates_by(system.counted, None, n_resamples).drop(columns="group").iloc[0].to_dict()
        head = {"system": system.name, "role": system.role, "n_runs": len(system.runs)}
        rows.append({**head, **_costs(system), **_challenge(system), **rates, **_seed_range(system)})
    table = pd.DataFrame(rows)
    base_wer = table.loc[table["system"] == base.name, "wer"].iloc[0]
    return table.assign(relative_change=table["wer"] / base_wer - 1 if base_wer else np.nan)


NOISE = {"real_time_factor": 0.25, "utterances_per_s": 0.25, "training_hours": 0.25, "peak_memory_mb": 0.1}


def differs(table: pd.DataFrame, cost: str) -> bool:
    """Whether systems differ in a cost by more than what two measurements of one system do: `NOISE`, as a share of the smallest."""
    known = table[cost].dropna() if cost in table else pd.Series(dtype=float)
    return len(known) > 1 and known.max() > known.min() * (1 + NOISE.get(cost, 0.0))


def expert_table(pooled: Sequence[PooledScores]) -> pd.DataFrame:
    """WER of each expert alone: columns system, run_id, expert, wer; empty without mixtures."""
    rows = [
        {"system": system.name, "run_id": run.run_id, "expert": int(str(expert).removeprefix("expert_")), "wer": wer}
        for system in pooled
        for run in system.runs
        for expert, wer in run.expert_wer.items()
    ]
    return pd.DataFrame(rows, columns=["system", "run_id", "expert", "wer"])


def _costs(system: PooledScores) -> dict[str, object]:
    """Means over the runs of what each run recorded; NaN where none did."""
    expert_wer = [wer for run in system.runs for wer in run.expert_wer.values() if np.isfinite(wer)]
    seconds, audio = _mean(system, "seconds"), _mean(system, "audio_seconds")
    devices = dict.fromkeys(str(run.metadata["device"]) for run in system.runs if run.metadata.get("device"))
    return {
        "n_trainable": _mean(system, "n_trainable"),
        "n_total": _mean(system, "n_total"),
        "gating_accuracy": _mean(system, "gating_accuracy"),
        "expert_wer_min": min(expert_wer, default=np.nan),
        "expert_wer_max": max(expert_wer, default=np.nan),
        "utterances_per_s": len(system.counted) / seconds if seconds else np.nan,
        "real_time_factor": seconds / audio if audio else np.nan,
        "training_hours": _mean(system, "training_compute_seconds") / 3600,
        "training_device": next(
            (str(run.metadata["training_device"]) for run in system.runs if run.metadata.get("training_device")), ""
        ),
        "peak_memory_mb": _mean(system, "peak_memory_mb"),
        "device": ", ".join(devices),
    }


def _challenge(system: PooledScores) -> dict[str, float]:
    """The score by a challenge's rule, where all runs were scored by one."""
    scores = [run.metadata["challenge"] for run in system.runs if run.metadata.get("challenge")]
    if len(scores) < len(system.runs) or len({score["rule"] for score in scores}) > 1:
        return {}
    return {scores[0]["rule"]: float(np.mean([score["primary"] for score in scores]))}


def _mean(system: PooledScores, key: str) -> float:
    known = [float(run.metadata[key]) for run in system.runs if run.metadata.get(key) is not None]
    return float(np.mean(known)) if known else float("nan")


def _seed_range(system: PooledScores) -> dict[str, float]:
    """Lowest and highest WER among the runs of a system: what the seed alone does."""
    rates = [run["word_errors"].sum() / max(1, run["n_words"].sum()) for run in map(counted, system.runs)]
    return {"seed_wer_min": min(rates), "seed_wer_max": max(rates)}
