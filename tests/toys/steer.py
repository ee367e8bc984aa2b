"""A SteerMoE of a few thousand parameters: the toy Whisper, and a tiny language model with random weights over the same tokens."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from moe.systems.steer_moe.decoder import save_decoder
from moe.systems.steer_moe.decoder_training import DecoderOptions, new_decoder, plain_tokenizer
from moe.systems.steer_moe.options import SteerModelOptions
from moe.systems.steer_moe.parts import BASE_DIR, DECODER_DIR, Sources
from moe.systems.steer_moe.system import SteerSystem, build
from moe.systems.steer_moe.training import SteerTrainingOptions, TrainedSteer, train
from moe.systems.whisper.base_model import save_base
from moe.training.dataset import SpeechDataset
from tests.toys.models import CONTEXT, shared_base, tokenizer, write_corpus
from tests.toys.training import plan, training

RATES = {"vectors": 1e-2, "scales": 3e-3, "routers": 2e-3, "projector": 1e-3}
PROMPT = "say:"
N_UNITS = 5  # ids above the text's


def toy_tokenizer() -> PreTrainedTokenizerBase:
    """The toy base's own tokens."""
    return plain_tokenizer(tokenizer())


def write_sources(folder: Path) -> Sources:
    """The toy base and a language model that says something of every audio, saved."""
    save_base(shared_base(), folder / BASE_DIR, torch.float32)
    torch.manual_seed(7)
    model = new_decoder(toy_tokenizer(), N_UNITS, DecoderOptions(decoder_layers=2, decoder_width=24, decoder_heads=2))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter.data, std=1.0 if "embed_tokens" in name else 0.4)
    save_decoder(model, toy_tokenizer(), folder / DECODER_DIR, PROMPT, {})
    return Sources(folder / BASE_DIR, folder / DECODER_DIR)


def toy_options(**changes) -> SteerModelOptions:
    """Three vectors a layer, two encoder frames in a vector of the prompt."""
    steering = {} if changes.get("steer_adapter") == "lora" else {"steer_experts": 3, "steering_std": 0.3}
    prompt = {} if changes.get("writer") == "whisper" else {"prompt_ms": 40, "projector": "linear"}
    return SteerModelOptions(**steering | prompt | changes)


def toy_steer(folder: Path, balance: float = 0.0, lora_rank: int = 0, **changes) -> SteerSystem:
    """A SteerMoE with random weights, in evaluation mode."""
    sources = write_sources(folder)
    torch.manual_seed(8)
    system = build(sources, toy_options(**changes), CONTEXT, "en", "basic", RATES, lora_rank, balance)
    system.module.eval()
    return system


def trained_steer(folder: Path, accumulation: int = 1) -> tuple[SteerSystem, TrainedSteer]:
    """One trained for an epoch on batches of two, every update analysed; alone or as one of several processes."""
    (folder / "corpus").mkdir(parents=True)
    system, rows = toy_steer(folder / "toy"), write_corpus(folder / "corpus", tuple(0.4 + 0.02 * (n * 7 % 5) for n in range(8)))
    around = training(plan(epochs=1, batch_size=2, accumulation=accumulation, max_grad_norm=float("inf")))
    sets = (SpeechDataset(part, folder / "corpus", system.inputs, trains=part is rows) for part in (rows, rows.head(3)))
    etiologies = dict(zip(rows["utterance_id"], rows["etiology"], strict=True))
    return system, train(system, *sets, SteerTrainingOptions(steering_log_every=1, steer_patience=9), around, etiologies)
