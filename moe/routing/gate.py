"""The gate: from an utterance's embedding to one logit for each expert.

The same small network serves after clustering, in joint training and in decoding, so it carries its own z-score statistics and its
temperature: whoever holds a gate needs nothing else to route.
"""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe.files import write_whole_dir

WEIGHTS_FILE, CONFIG_FILE = "gate.safetensors", "gate.json"


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """Shape of a gate."""

    input_dim: int
    n_experts: int
    hidden: int = 0  # units of the hidden layer; 0 makes the gate a softmax regression
    dropout: float = 0.0
    temperature: float = 1.0  # logits are divided by it
    expert_of_class: tuple[int, ...] | None = None  # of each class that it was trained on, where experts were merged since

    @property
    def n_classes(self) -> int:
        """Clusters that it was trained to tell apart."""
        return self.n_experts if self.expert_of_class is None else len(self.expert_of_class)


@torch.inference_mode()
def probabilities(gate: "Gate", embeddings: np.ndarray, calibrated: bool = True) -> np.ndarray:
    """A gate's distribution over experts for embeddings (N, input_dim): (N, n_experts).

    Args:
        calibrated: False takes the temperature away again, to show what it does.
    """
    logits = gate.eval()(torch.from_numpy(embeddings).to(gate.mean.device))
    return torch.softmax(logits * (1 if calibrated else gate.gate_config.temperature), -1).cpu().numpy()


class Gate(nn.Module):
    """Softmax regression, or one hidden layer, on z-scored embeddings."""

    mean: Tensor  # (input_dim,)
    scale: Tensor  # (input_dim,)

    def __init__(self, config: GateConfig, seed: int = 0) -> None:
        super().__init__()
        self.gate_config = config
        self.register_buffer("mean", torch.zeros(config.input_dim))
        self.register_buffer("scale", torch.ones(config.input_dim))
        self.hidden = _linear(config.input_dim, config.hidden) if config.hidden else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.output = _linear(config.hidden or config.input_dim, config.n_classes)
        self._initialise(torch.Generator().manual_seed(seed))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Gate logits (B, n_experts) of embeddings (B, input_dim)."""
        scaled = (embeddings.to(self.mean.dtype) - self.mean) / self.scale
        hidden = self.hidden(scaled)
        if self.gate_config.hidden:
            hidden = nn.functional.gelu(hidden)  # (B, hidden)
        logits: Tensor = self.output(self.dropout(hidden)) / self.gate_config.temperature  # (B, n_classes)
        return logits if self.gate_config.expert_of_class is None else self._joined(logits)

    def joined(self, expert_of_class: Sequence[int]) -> "Gate":
        """A gate over fewer experts: each has the sum of the probabilities of its classes.

        Args:
            expert_of_class: for each expert that this gate has the number of the one that it became, (n_experts,).
        """
        gate, so_far = copy.deepcopy(self), self.gate_config.expert_of_class or range(self.gate_config.n_experts)
        experts = tuple(int(expert_of_class[expert]) for expert in so_far)
        gate.gate_config = dataclasses.replace(self.gate_config, n_experts=max(experts) + 1, expert_of_class=experts)
        return gate

    def set_statistics(self, embeddings: Tensor) -> None:
        """Take the z-score statistics from embeddings (n, input_dim); a constant dimension keeps scale 1."""
        mean, scale = embeddings.double().mean(dim=0), embeddings.double().std(dim=0, unbiased=False)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(scale > 1e-6 * mean.abs().clamp(min=1.0), scale, torch.ones_like(scale)))

    def set_temperature(self, temperature: float) -> None:
        """Divide logits by `temperature` from now on; it is part of the configuration."""
        self.gate_config = dataclasses.replace(self.gate_config, temperature=temperature)

    def save(self, path: Path) -> None:
        """Write weights, statistics and configuration to a folder."""
        with write_whole_dir(path) as aside:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, aside / WEIGHTS_FILE)
            config = {name: value for name, value in dataclasses.asdict(self.gate_config).items() if value is not None}
            (aside / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Gate":
        """The gate saved in a folder, ready to route.

        Raises:
            ValueError: the folder holds no gate.
        """
        path = Path(path)
        missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (path / name).is_file()]
        if missing:
            raise ValueError(f"{path}: no gate there, {' and '.join(missing)} missing")
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        classes = config.pop("expert_of_class", None)
        gate = cls(GateConfig(**config, expert_of_class=None if classes is None else tuple(classes)))
        gate.load_state_dict(load_file(path / WEIGHTS_FILE))
        return gate.eval()

    def _joined(self, logits: Tensor) -> Tensor:
        """Logits of classes (B, n_classes) → of experts (B, n_experts): their softmax is the sum of that of the classes."""
        experts = torch.tensor(self.gate_config.expert_of_class, device=logits.device)
        parts = [logits[:, experts == expert].logsumexp(-1) for expert in range(self.gate_config.n_experts)]
        return torch.stack(parts, -1)

    def _initialise(self, generator: torch.Generator) -> None:
        for layer in (self.hidden, self.output):
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5  # as nn.Linear draws them, but from this gate's own seed
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.zeros_(layer.bias)


def _linear(n_in: int, n_out: int) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, n_in, n_out)  # its own start would draw from the global generator
