"""A Wav2Vec2-BERT CTC of a few thousand parameters over the toy corpus of chords."""

from pathlib import Path

import pandas as pd
import torch

from moe.audio.augmentation import AugmentationOptions
from moe.experts.routed_lora import routed_layers
from moe.routing.gate import Gate, GateConfig
from moe.systems.wav2vec2_ctc.building import LearningRates, build
from moe.systems.wav2vec2_ctc.mixture_system import CTCMixtureSystem
from moe.systems.wav2vec2_ctc.options import CTCExpertOptions, CTCModelOptions
from moe.systems.wav2vec2_ctc.system import CTCSystem, part_of
from moe.systems.wav2vec2_ctc.training import train_only
from moe.systems.wav2vec2_ctc.vocabulary import Vocabulary
from moe.training.dataset import SpeechDataset
from tests.toys.models import WORDS

SMALL = {"ctc_width": 16, "ctc_layers": 2, "ctc_heads": 2, "ctc_ffn": 16, "ctc_kernel": 3, "ctc_frame_ms": 20}
MASKS = AugmentationOptions(n_masks=0, gain=0.0)


def toy_options(**changes) -> CTCModelOptions:
    """A small network without dropout."""
    still = dict.fromkeys(
        ("attention_dropout", "hidden_dropout", "feat_proj_dropout", "conformer_conv_dropout", "final_dropout"), 0.0
    )
    return CTCModelOptions(**SMALL | still | changes)


def toy_ctc(learning_rate: float = 1e-2, seed: int = 0, **changes) -> CTCSystem:
    """A CTC with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    system = build(toy_options(**changes), Vocabulary.of(WORDS, 1), "en", "basic", LearningRates(learning_rate))
    torch.nn.init.normal_(system.module.network.lm_head.weight, std=1.0)  # else every output says nearly the same
    system.module.eval()
    return system


def ctc_dataset(
    system: CTCSystem, manifest: pd.DataFrame, root: Path, masks: bool = False, trains: bool = False
) -> SpeechDataset:
    """The manifest as inputs of a CTC."""
    return SpeechDataset(manifest, root, system.inputs, MASKS if masks else None, seed=3, trains=trains)


def toy_mixture(learning_rate: float = 1e-2, n_experts: int = 3, gated: bool = True, **changes) -> CTCMixtureSystem:
    """One with experts that differ, and a gate that answers differently for different chords."""
    torch.manual_seed(1)
    experts = CTCExpertOptions(**{"ctc_experts": n_experts, "lora_r": 2, "shared_r": None, "gate_layer": "0"} | changes)
    rates = LearningRates(learning_rate, learning_rate)
    system = build(toy_options(), Vocabulary.of(WORDS, 1), "en", "basic", rates, experts)
    assert isinstance(system, CTCMixtureSystem)
    torch.nn.init.normal_(system.module.network.lm_head.weight, std=1.0)
    for _, layer in routed_layers(system.module.network):
        torch.nn.init.normal_(layer.lora_B, std=0.5)
    n_read = 16 * (2 if experts.pooling == "mean_std" else 1)
    if gated:
        system.module.gate = Gate(GateConfig(n_read, n_experts), 1)
        torch.nn.init.normal_(system.module.gate.output.weight, std=2.0)
    train_only(system.module.network, {name for name, _ in system.module.network.named_parameters() if part_of(name) == "lora"})
    system.module.eval()
    return system
