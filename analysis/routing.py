"""How the gate uses the experts: load, entropy, what each group of speakers is sent to, and what a better gate would gain.

Reads the hypotheses table of a mixture (`weight_0` …, `expert`, `cluster`) and, for regret, the same utterances decoded with each
expert alone. A load, a share and an entropy lie between 0 and 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.hypotheses import groups_of, name_some, weight_columns

COLLAPSE_SHARE = 0.6


@dataclass(frozen=True)
class Collapse:
    """Whether one expert takes the traffic without its cluster being that large, and the sentence to show."""

    collapsed: bool
    reason: str


@dataclass(frozen=True)
class Regret:
    """What routing costs: WER of the gate's choice minus WER of the best single expert, utterance by utterance."""

    gate_wer: float
    best_wer: float
    n_utterances: int
    n_best_chosen: int  # utterances on which no single expert does better than the gate
    per_utterance: pd.DataFrame  # utterance_id, gate_errors, best_errors, best_expert

    @property
    def regret(self) -> float:
        """WER points that a perfect choice of one expert would save; negative where mixing beats every single expert."""
        return self.gate_wer - self.best_wer


def routing_weights(table: pd.DataFrame) -> np.ndarray:
    """Routing weights, shape (n_utterances, n_experts), rows summing to 1.

    Raises:
        ValueError: there are none, or a row is negative, not finite or does not sum to 1.
    """
    columns = weight_columns(table)
    if not columns:
        raise ValueError("no routing weights: the table has no column weight_0; is this a mixture?")
    weights = table[columns].to_numpy(np.float64)  # (N, E)
    wrong = ~np.isfinite(weights).all(axis=1) | (weights < -1e-6).any(axis=1) | (np.abs(weights.sum(axis=1) - 1) > 1e-3)
    if wrong.any():
        raise ValueError(f"routing weights must be ≥ 0 and sum to 1; they do not for {name_some(table['utterance_id'][wrong])}")
    return weights


def gate_probabilities(table: pd.DataFrame) -> np.ndarray:
    """The gate's whole distribution, (n_utterances, n_experts): columns `probability_0` …, else the routing weights.

    Weights are those of the top k alone, so that with one expert per utterance they say nothing of how sure the gate was.
    """
    columns = [name.replace("weight", "probability") for name in weight_columns(table)]
    if not columns or not set(columns) <= set(table.columns):
        return routing_weights(table)
    return routing_weights(table[["utterance_id", *columns]].rename(columns=lambda name: name.replace("probability", "weight")))


def chosen_experts(table: pd.DataFrame) -> np.ndarray:
    """The expert with the largest weight of each utterance, shape (n_utterances,): column `expert`, else the argmax."""
    if "expert" in table.columns:
        return table["expert"].to_numpy(np.int64)
    return routing_weights(table).argmax(axis=1)


def expert_load(table: pd.DataFrame) -> pd.DataFrame:
    """One row per expert: `n_utterances` and `share` it wins, and `load`, its mean routing weight."""
    weights = routing_weights(table)
    won = np.bincount(chosen_experts(table), minlength=weights.shape[1])
    return pd.DataFrame(
        {"expert": np.arange(weights.shape[1]), "n_utterances": won, "share": won / len(table), "load": weights.mean(axis=0)}
    )


def entropy(shares: np.ndarray) -> np.ndarray:
    """Entropy of distributions (…, E) by its maximum, (…,): 0 one expert only, 1 all alike; 0 for a single expert."""
    shares = np.asarray(shares, np.float64)
    if shares.shape[-1] == 1:
        return np.zeros(shares.shape[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, -shares * np.log(shares), 0.0)
    return terms.sum(axis=-1) / np.log(shares.shape[-1])


def routing_entropy(table: pd.DataFrame) -> float:
    """Mean over utterances of the entropy of the gate's distribution: how undecided the gate is."""
    return float(entropy(gate_probabilities(table)).mean())


def load_entropy(table: pd.DataFrame) -> float:
    """Entropy of the mean routing weights: how evenly the experts are used."""
    return float(entropy(routing_weights(table).mean(axis=0)))


def load_by(table: pd.DataFrame, column: str = "etiology") -> pd.DataFrame:
    """Mean routing weights of each group: rows groups (sorted), columns `expert_0` …; rows sum to 1."""
    weights = pd.DataFrame(routing_weights(table), index=table.index)
    means = weights.groupby(groups_of(table, column), observed=True).mean()
    means.index = means.index.astype(str)
    means.columns = [f"expert_{expert}" for expert in means.columns]
    return means.rename_axis("group")


def collapse(table: pd.DataFrame, limit: float = COLLAPSE_SHARE) -> Collapse:
    """Whether an expert wins more than `limit` of the utterances, unless its cluster holds that share of them.

    The larger of an expert's share of wins and its mean weight counts. Without a column `cluster` no share is excused.
    """
    load = expert_load(table)
    use = np.maximum(load["share"], load["load"])
    expert = int(use.argmax())
    share, cluster_share = float(use[expert]), _cluster_share(table, expert)
    said = f"expert {expert} takes {share:.0%} of the load"
    if share <= limit or len(load) == 1:
        return Collapse(False, f"{said}, {'the only expert' if len(load) == 1 else f'within the limit of {limit:.0%}'}")
    if cluster_share > limit:
        return Collapse(False, f"{said}, and its cluster holds {cluster_share:.0%} of the utterances")
    return Collapse(True, f"{said}, above {limit:.0%}, while its cluster holds {cluster_share:.0%} of the utterances")


def regret(gate: pd.DataFrame, experts: Mapping[int, pd.DataFrame]) -> Regret:
    """Regret of the gate against the best single expert of each utterance.

    Args:
        gate: counted table of the mixture as it routes.
        experts: counted table of the same utterances for each expert alone.

    Raises:
        ValueError: no experts, or an expert was scored on other utterances.
    """
    if not experts:
        raise ValueError("regret needs the counted table of at least one expert; got none")
    order = gate.sort_values("utterance_id")
    numbers = sorted(experts)
    errors = np.stack([_errors_in_order(order["utterance_id"], number, experts[number]) for number in numbers], axis=1)  # (N, E)
    best, n_words, gate_errors = errors.min(axis=1), order["n_words"].sum(), order["word_errors"].to_numpy()
    per_utterance = pd.DataFrame(
        {
            "utterance_id": order["utterance_id"].to_numpy(),
            "gate_errors": gate_errors,
            "best_errors": best,
            "best_expert": np.asarray(numbers)[errors.argmin(axis=1)],
        }
    )
    gate_wer, best_wer = (float(total / n_words) if n_words else float("nan") for total in (gate_errors.sum(), best.sum()))
    return Regret(gate_wer, best_wer, len(order), int((gate_errors <= best).sum()), per_utterance)


def _errors_in_order(utterance_ids: pd.Series, expert: int, counted: pd.DataFrame) -> np.ndarray:
    errors = counted.set_index("utterance_id")["word_errors"]
    different = set(utterance_ids) ^ set(errors.index)
    if different:
        raise ValueError(f"expert {expert} was scored on other utterances than the gate; they differ in {name_some(different)}")
    return errors.loc[utterance_ids].to_numpy()


def _cluster_share(table: pd.DataFrame, expert: int) -> float:
    if "cluster" not in table.columns:
        return 0.0
    return float((table["cluster"] == expert).mean())


LEARNED = "learned"
