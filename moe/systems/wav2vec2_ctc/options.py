"""What is said of a CTC's network and of its regularisation; the defaults are those of a small one from random weights."""

import dataclasses
import json
import re
from pathlib import Path

from moe.experts.routed_lora import AdapterOptions, LoraOptions
from moe.options import Options, names_of, option
from moe.routing.losses import BalanceOptions
from moe.routing.options import RoutingOptions, TopKOptions, ViewOptions

SCRATCH = "scratch"
SHIPPED = "base/synthetic-en-ctc"  # a small one, trained on typical synthetic English
CONFIG, KIND, NETWORK_DIR = "config.json", "wav2vec2-bert", "network"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclasses.dataclass(frozen=True)
class ScratchOptions(Options):
    """The network that is made from random weights."""

    group = "ctc_model"

    ctc_width: int = option(144, "width of a network from scratch", low=8)
    ctc_layers: int = option(4, "layers of a network from scratch", low=1)
    ctc_heads: int = option(4, "attention heads of a network from scratch", low=1)
    ctc_ffn: int = option(288, "width of the feed-forward parts of a network from scratch", low=1)
    ctc_kernel: int = option(31, "frames that a convolution of a network from scratch reads; odd", low=1)
    ctc_frame_ms: int = option(40, "milliseconds of a frame of a network from scratch, a multiple of 10", low=10, high=80)

    def faults(self) -> list[str]:
        """Shapes that no network has."""
        found = []
        if self.ctc_width % self.ctc_heads:
            found.append(f"ctc_heads={self.ctc_heads}: must divide ctc_width={self.ctc_width}")
        if not self.ctc_kernel % 2:
            found.append(f"ctc_kernel={self.ctc_kernel}: must be odd")
        if self.ctc_frame_ms % 10:
            found.append(f"ctc_frame_ms={self.ctc_frame_ms}: must be a multiple of 10, the milliseconds between two mels")
        return found


@dataclasses.dataclass(frozen=True)
class RegularisationOptions(Options):
    """What keeps a CTC from learning its training data by heart; presets/document-004.yaml holds document 004's values."""

    group = "ctc_model"

    attention_dropout: float = option(0.05, "dropout of attention weights", low=0)
    hidden_dropout: float = option(0.05, "dropout of what enters the encoder, and of feed-forward outputs", low=0)
    feat_proj_dropout: float = option(0.05, "dropout of projected features", low=0)
    activation_dropout: float = option(0.0, "dropout inside feed-forward parts", low=0)
    conformer_conv_dropout: float = option(0.05, "dropout of convolutions", low=0)
    final_dropout: float = option(0.05, "dropout before the head", low=0)
    layerdrop: float = option(0.0, "share of the passes of an encoder layer that are skipped; never one of the adapter", low=0)
    mask_time_prob: float = option(0.0, "frames that training masks, as a share of the utterance's", low=0)
    mask_time_length: int = option(10, "frames of a masked span", low=1)
    mask_feature_prob: float = option(0.0, "projected features that training sets to 0, as a share of them", low=0)
    ctc_loss_reduction: str = option(
        "mean", "mean divides the loss of an utterance by its labels and averages; sum does neither", choices=("mean", "sum")
    )
    ctc_zero_infinity: bool = option(True, "an infinite loss counts as 0")

    def faults(self) -> list[str]:
        """Shares that leave nothing."""
        names = [field.name for field in dataclasses.fields(RegularisationOptions) if field.type is float]
        return [f"{name}={getattr(self, name):g}: must be below 1" for name in names if getattr(self, name) >= 1]

    def idle(self) -> dict[str, str]:
        """The length of spans that nobody draws."""
        return {} if self.mask_time_prob else {"mask_time_length": "mask_time_prob=0 masks nothing"}


@dataclasses.dataclass(frozen=True)
class CTCModelOptions(ScratchOptions, RegularisationOptions):
    """The network of a Wav2Vec2-BERT CTC."""

    group = "ctc_model"

    ctc_model: str | None = option(
        None,
        "scratch, or a Wav2Vec2-BERT to go on from: a folder or a hub name, e.g. facebook/w2v-bert-2.0 (none: the shipped small one on "
        "the synthetic English corpus, else scratch)",
    )
    add_adapter: bool = option(False, "halve the number of frames after the encoder by a layer of its own")

    def chosen_model(self, suits_shipped: bool) -> str:
        """The model in use: where none is named, the shipped one if that suits the corpus and no shape is asked for."""
        if self.ctc_model is not None:
            return self.ctc_model
        return SHIPPED if suits_shipped and not any(map(self.is_changed, names_of(ScratchOptions))) else SCRATCH

    def faults(self) -> list[str]:
        """A checkpoint that is none, or one of another kind."""
        fault = None if self.ctc_model in (None, SCRATCH) else checkpoint_fault(str(self.ctc_model))
        return [f"ctc_model={self.ctc_model}: {fault}"] if fault else []

    def idle(self) -> dict[str, str]:
        """The shape, where a checkpoint has one."""
        why = "a checkpoint has a shape of its own"
        return {} if self.ctc_model in (None, SCRATCH) else dict.fromkeys(names_of(ScratchOptions), why)


@dataclasses.dataclass(frozen=True)
class CTCExpertOptions(BalanceOptions, TopKOptions, ViewOptions, LoraOptions):
    """LoRA on the network's projections: one, or experts that a gate chooses among."""

    group = "ctc_model"

    ctc_experts: int = option(
        1, "experts: 1, or as many as the clusters of cluster_run_id, which come of Whisper's embeddings", low=1
    )
    ctc_lora_targets: str = option("linear_q,linear_v", "linear layers that carry LoRA, by the end of their name")

    def idle(self) -> dict[str, str]:
        """What one expert leaves nothing to do for."""
        if self.ctc_experts > 1:
            return {}
        nothing = dict.fromkeys(names_of(BalanceOptions, TopKOptions, ViewOptions), "ctc_experts=1 leaves nothing to route")
        return nothing | {"shared_r": "ctc_experts=1 has one LoRA; set lora_r"}

    @property
    def adapters(self) -> AdapterOptions:
        """Shape and place of the adapters; one LoRA has the rank of an expert."""
        shape = dataclasses.asdict(self.part(LoraOptions)) | ({"shared_r": None} if self.ctc_experts == 1 else {})
        return AdapterOptions(**shape, lora_targets=self.ctc_lora_targets)

    @property
    def routing(self) -> RoutingOptions:
        """What the gate reads, and how many experts it chooses."""
        return RoutingOptions(top_k=self.top_k, gate_layer=self.gate_layer, pooling=self.pooling)


def checkpoint_of(name: str) -> str:
    """Where the checkpoint is that a name stands for: in a trained CTC's folder it is a part."""
    part = Path(name) / NETWORK_DIR
    return str(part) if part.is_dir() else name


def checkpoint_fault(name: str) -> str | None:
    """Why a folder cannot be loaded, or a name be one of a hub; a hub is not asked."""
    folder = Path(checkpoint_of(name))
    if not folder.is_dir():
        return None if HUB_NAME.fullmatch(name) else f"no such folder, and no name of a hub model; {SCRATCH} needs neither"
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"needs a readable {CONFIG}"
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != KIND:
        return f"{CONFIG} says model_type={kind}: must be {KIND}"
    return None if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) else "holds no weights"
