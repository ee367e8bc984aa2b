"""What `evaluate` says about a mixture's routing: who is sent where, how right the gate is, and whether choosing matters."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.calibration import expected_calibration_error, top_k_accuracy
from analysis.error_rates import rates_by
from analysis.plots.errors import expert_wer_heatmap
from analysis.plots.profiles import profiles_figure
from analysis.plots.routing import ablation_figure, load_heatmap
from analysis.profiles import exemplars, expert_profiles, group_shares, standard_scores
from analysis.routing import collapse, expert_load, load_by, regret, routing_entropy, routing_weights
from steps.step_run import StepRun

LEARNED = "learned"


def log_routing(
    step: StepRun, counted: pd.DataFrame, ablations: Mapping[str, pd.DataFrame], top_k: int, note: str
) -> dict[str, float]:
    """Log tables and figures of a mixture's routing.

    Args:
        counted: counted hypotheses of the mixture as it routes.
        ablations: the same utterances under other routings, by name; may be empty.
        top_k: experts mixed per utterance.

    Returns:
        the metrics to log.
    """
    metrics = {f"test/load/expert_{row.expert}": row.load for row in expert_load(counted).itertuples()}
    metrics["test/routing_entropy"] = routing_entropy(counted)
    step.log_table(expert_load(counted), "tables/expert_load.json")
    step.log_figure(load_heatmap(load_by(counted), note=note, counts=counted["etiology"].value_counts()), "plots/load_by_etiology.png")
    step.set_tags({"moe.collapse": collapse(counted).reason})
    _log_profiles(step, counted, note)
    if "cluster" in counted:
        metrics |= _gating(counted, top_k)
    return metrics | (_log_ablations(step, counted, ablations, note) if ablations else {})


def _log_profiles(step: StepRun, counted: pd.DataFrame, note: str) -> None:
    """What each expert is for."""
    profiles = expert_profiles(counted)
    step.log_table(profiles.astype(str), "tables/expert_profiles.json")
    step.log_table(exemplars(counted).astype(str), "tables/exemplars.json")
    figure = profiles_figure(profiles, group_shares(counted), standard_scores(profiles, counted), note=note)
    step.log_figure(figure, "plots/expert_profiles.png")


def _log_ablations(step: StepRun, counted: pd.DataFrame, ablations: Mapping[str, pd.DataFrame], note: str) -> dict[str, float]:
    table = pd.concat([rates_by(part, None).assign(routing=name) for name, part in ablations.items()])
    table = table[["routing", "wer", "low", "high", "cer", "n_utterances", "n_words"]].sort_values("wer", ignore_index=True)
    step.log_table(table, "tables/ablations.json")
    step.log_figure(ablation_figure(table, note=note), "plots/ablations.png")
    singles = {int(name.rpartition("_")[2]): part for name, part in ablations.items() if name.startswith("expert_")}
    by_etiology = {f"expert {e}": rates_by(part, "etiology").set_index("group")["wer"] for e, part in sorted(singles.items())}
    step.log_figure(expert_wer_heatmap(pd.DataFrame(by_etiology).T, note=note), "plots/expert_wer.png")
    return {f"test/wer/routing/{row.routing}": row.wer for row in table.itertuples()} | {"test/regret": regret(counted, singles).regret}


def _gating(counted: pd.DataFrame, top_k: int) -> dict[str, float]:
    """Accuracy of the gate against the clusters that the fitted object gives the test speakers, and how calibrated it is."""
    weights, clusters = routing_weights(counted), counted["cluster"].to_numpy(np.int64)
    return {
        "test/gating_accuracy": top_k_accuracy(weights, clusters, 1),
        "test/gating_top_k_accuracy": top_k_accuracy(weights, clusters, min(top_k, weights.shape[1])),
        "test/calibration_error": expected_calibration_error(weights, clusters),
    }


def diagnosis(wer: Mapping[str, float]) -> str:
    """In words: does routing earn its keep, and if not, is it the gate, the clusters or the capacity?"""
    said = ", ".join(f"{name} {100 * value:.1f} %" for name, value in sorted(wer.items(), key=lambda pair: pair[1]))
    parts = [f"Routing: {said}."]
    best_fixed = min(value for name, value in wer.items() if name in ("oracle", "cluster", "uniform", "random"))
    if wer[LEARNED] <= min(wer["random"], wer["uniform"]) - 0.005:
        parts.append("The learned routing beats random and uniform routing: the experts differ and the gate knows whom to send where.")
    else:
        parts.append("The learned routing does not clearly beat random or uniform routing: the experts hardly differ.")
    if wer[LEARNED] - best_fixed > 0.01:
        parts.append("A better gate would gain: the best fixed routing is more than a point below the learned one.")
    return " ".join(parts)
