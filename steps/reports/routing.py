"""What `evaluate` says about a mixture's routing: who is sent where, how right the gate is, and whether choosing matters."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.calibration import expected_calibration_error, reliability, top_k_accuracy
from analysis.error_rates import rates_by
from analysis.gate_choices import speaker_decisions
from analysis.groups import several
from analysis.plots.errors import expert_wer_heatmap
from analysis.plots.gate import reliability_figure, speakers_figure
from analysis.plots.profiles import profiles_figure
from analysis.plots.routing import ablation_figure, load_heatmap
from analysis.profiles import exemplars, expert_profiles, group_shares, standard_scores
from analysis.routing import LEARNED, collapse, expert_load, load_by, load_entropy, regret, routing_entropy, routing_weights
from moe.systems.whisper_moe.backoff import BACKED_OFF
from steps.tracking.step_run import StepRun


def log_routing(
    step: StepRun, counted: pd.DataFrame, ablations: Mapping[str, pd.DataFrame], top_k: int, note: str
) -> dict[str, float]:
    """Log tables and figures of a mixture's routing. Loads and ways of routing are tables.

    Args:
        counted: counted hypotheses of the mixture as it routes.
        ablations: some of the utterances under every routing, by name, `learned` among them; may be empty.
        top_k: experts mixed per utterance.

    Returns:
        the metrics to log.
    """
    metrics = {"test/routing_entropy": routing_entropy(counted), "test/load_entropy": load_entropy(counted)}
    if BACKED_OFF in counted:
        metrics[f"test/{BACKED_OFF}"] = float(counted[BACKED_OFF].mean())
    step.log_table(expert_load(counted), "tables/expert_load.json")
    if step.plots and several(counted):
        figure = load_heatmap(load_by(counted), note=note, counts=counted["etiology"].value_counts())
        step.log_figure(figure, "plots/load_by_etiology.png")
    step.set_tags({"moe.collapse": collapse(counted).reason})
    _log_profiles(step, counted, note)
    if "cluster" in counted:
        metrics |= _gating(step, counted, top_k, note)
    return metrics | (_log_ablations(step, ablations, note) if ablations else {})


def _log_profiles(step: StepRun, counted: pd.DataFrame, note: str) -> None:
    """What each expert is for."""
    profiles = expert_profiles(counted)
    step.log_table(profiles.astype(str), "tables/expert_profiles.json")
    step.log_table(exemplars(counted).astype(str), "tables/exemplars.json")
    if step.plots:
        figure = profiles_figure(profiles, group_shares(counted), standard_scores(profiles, counted), note=note)
        step.log_figure(figure, "plots/expert_profiles.png")


def _log_ablations(step: StepRun, ablations: Mapping[str, pd.DataFrame], note: str) -> dict[str, float]:
    table = pd.concat([rates_by(part, None).assign(routing=name) for name, part in ablations.items()])
    table = table[["routing", "wer", "low", "high", "cer", "n_utterances", "n_words"]].sort_values("wer", ignore_index=True)
    step.log_table(table, "tables/ablations.json")
    singles = {int(name.rpartition("_")[2]): part for name, part in ablations.items() if name.startswith("expert_")}
    by_etiology = {f"expert {e}": rates_by(part, "etiology").set_index("group")["wer"] for e, part in sorted(singles.items())}
    if step.plots:
        title = f"WER by way of routing (n = {table['n_utterances'].iloc[0]} test utterances)"
        step.log_figure(ablation_figure(table, title, note), "plots/ablations.png")
    if step.plots and several(ablations[LEARNED]):
        step.log_figure(expert_wer_heatmap(pd.DataFrame(by_etiology).T, note=note), "plots/expert_wer.png")
    found = regret(ablations[LEARNED], singles)
    worst = found.per_utterance.assign(lost=lambda rows: rows["gate_errors"] - rows["best_errors"]).sort_values(
        "lost", ascending=False
    )
    step.log_table(worst, "tables/regret.json")
    return {"test/regret": found.regret, "test/best_expert_wer": found.best_wer}


def _gating(step: StepRun, counted: pd.DataFrame, top_k: int, note: str) -> dict[str, float]:
    """Accuracy of the gate against the clusters that the fitted object gives the test speakers, and how calibrated it is."""
    believed = counted[[f"probability_{expert}" for expert in range(routing_weights(counted).shape[1])]].to_numpy(np.float64)
    clusters = counted["cluster"].to_numpy(np.int64)
    error = expected_calibration_error(believed, clusters)
    step.log_table(reliability(believed, clusters), "tables/calibration.json")
    speakers = speaker_decisions(counted, believed)
    step.log_table(speakers, "tables/expert_by_speaker.json")
    if step.plots:
        step.log_figure(
            speakers_figure(speakers, "Where the gate sends test speakers, unseen in training", note), "plots/speakers.png"
        )
        step.log_figure(reliability_figure(reliability(believed, clusters), error, note=note), "plots/calibration.png")
    return {
        "test/gating_accuracy": top_k_accuracy(believed, clusters, 1),
        "test/gating_top_k_accuracy": top_k_accuracy(believed, clusters, min(top_k, believed.shape[1])),
        "test/calibration_error": error,
    }
