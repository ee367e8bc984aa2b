"""What steering did: use of each vector, entropies, strength, by layer; and what the document claims of them, checked."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from moe.system import EXPERT_USE, Hypothesis
from moe.systems.steer_moe.model import Encoded
from moe.systems.steer_moe.steering import Steering

ENTROPY, STRENGTH, FRAMES = "decision_entropy", "steering_strength", "n_frames"  # details of a hypothesis, beside EXPERT_USE
LOWEST_SCALE, HIGHEST_SCALE = 0.05, 0.2  # between which the document says the scales settle
MOST_USE = 0.8  # of a layer's frames that one vector may have


@dataclasses.dataclass(frozen=True)
class Use:
    """What L layers did in B utterances, over their valid frames.

    Attributes:
        use: share of each vector, (B, L, E). entropy: mean entropy of single decisions in nats, (B, L).
        strength: mean ‖steering‖ / ‖h‖, (B, L). n_frames: valid frames, (B,).
    """

    use: np.ndarray
    entropy: np.ndarray
    strength: np.ndarray
    n_frames: np.ndarray

    @classmethod
    def join(cls, parts: Sequence["Use"]) -> "Use":
        """That of all utterances."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(cls)))

    @classmethod
    def of_hypotheses(cls, hypotheses: Sequence[Hypothesis]) -> "Use":
        """As kept among the details of hypotheses."""
        return cls(
            *(np.array([each.details[name] for each in hypotheses], float) for name in (EXPERT_USE, ENTROPY, STRENGTH, FRAMES))
        )

    def details(self, row: int) -> dict[str, Any]:
        """Of one utterance, as plain values."""
        values = {EXPERT_USE: self.use, ENTROPY: self.entropy, STRENGTH: self.strength, FRAMES: self.n_frames}
        return {name: np.round(value[row], 6).tolist() for name, value in values.items()}

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean over all valid frames: (B, …) → (…)."""
        weights = self.n_frames.reshape(-1, *[1] * (values.ndim - 1))
        return np.asarray((values * weights).sum(0) / weights.sum())


def use_of(encoded: Encoded) -> Use:
    """What the layers did in an encoded batch."""
    valid, n_frames = encoded.valid[:, :, None].float(), encoded.valid.sum(1)  # (B, T, 1), (B,)
    rows = []
    for each in encoded.passes:
        weights = each.weights.detach().float()
        entropy = -(weights * weights.clamp_min(1e-12).log()).sum(-1, keepdim=True)  # (B, T, 1)
        means = [(value * valid).sum(1) / n_frames[:, None] for value in (weights, entropy, each.strength[:, :, None])]
        rows.append([_numbers(mean) for mean in means])
    use, entropies, strengths = (np.stack(parts, 1) for parts in zip(*rows, strict=True))
    return Use(use, entropies[..., 0], strengths[..., 0], _numbers(n_frames))


def measures(steering: Steering, use: Use, etiologies: Sequence[str] | None = None) -> dict[str, float]:
    """Metrics by name, for every layer and as their mean; use by etiology and its mutual information (nats) where etiologies (B,) are known."""
    mean_use = use.mean(use.use)  # (L, E)
    values = {"scale": _numbers(steering.scales), "norm": _numbers(steering.vectors.norm(dim=-1).mean(-1))}  # (L,) each
    values |= {"strength": use.mean(use.strength), "entropy_of_decisions": use.mean(use.entropy)}
    values["entropy_of_use"] = np.array([_entropy(shares) for shares in mean_use])
    found: dict[str, float] = {}
    for layer, shares in zip(steering.layers, mean_use, strict=True):
        found |= {f"steering/use/layer_{layer}/expert_{e}": float(share) for e, share in enumerate(shares)}
    if etiologies is not None:
        by_etiology, values["mutual_information"] = _by_etiology(steering, use, np.asarray(etiologies))
        found |= by_etiology
    for name, value in values.items():
        found[f"steering/{name}"] = float(value.mean())
        found |= {f"steering/{name}/layer_{layer}": float(each) for layer, each in zip(steering.layers, value, strict=True)}
    return found


def _by_etiology(steering: Steering, use: Use, etiologies: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Use by etiology, and the mutual information of each layer's use with it, (L,)."""
    found: dict[str, float] = {}
    joint = [(name, use.n_frames[etiologies == name]) for name in sorted(set(etiologies))]
    shares = np.stack([(use.use[etiologies == name] * n[:, None, None]).sum(0) for name, n in joint]) / use.n_frames.sum()
    information = []
    for layer, table in zip(steering.layers, shares.swapaxes(0, 1), strict=True):  # (etiologies, E), adds up to 1
        information.append(_entropy(table.sum(0)) + _entropy(table.sum(1)) - _entropy(table))
        for (name, _), row in zip(joint, table / table.sum(1, keepdims=True), strict=True):
            found |= {f"steering/use_by_etiology/layer_{layer}/{name}/expert_{e}": float(v) for e, v in enumerate(row)}
    return found, np.array(information)


def warnings(values: dict[str, float]) -> list[str]:
    """Where the measures are not as the document says that they should be, in words."""
    found = []
    for name, value in values.items():
        layer = name.rpartition("layer_")[2].partition("/")[0]
        if name.startswith("steering/scale/") and not LOWEST_SCALE <= abs(value) <= HIGHEST_SCALE:
            found.append(f"layer {layer}: scale {value:.3f} is outside {LOWEST_SCALE} to {HIGHEST_SCALE}")
        if name.startswith("steering/use/") and value > MOST_USE and f"steering/use/layer_{layer}/expert_1" in values:
            found.append(f"layer {layer}: expert {name.rpartition('_')[2]} has {100 * value:.0f} % of the frames")
    return found


def _entropy(shares: np.ndarray) -> float:
    """Entropy of shares that add up to 1, in nats."""
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
