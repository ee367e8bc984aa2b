"""Tiny Whispers with random weights and a corpus of chords, for tests of what the model computes.

Weights are drawn from fixed seeds and adapters are awake (B is not zero), so that leaving one out shows.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from moe.experts.routed_lora import AdapterOptions, routed_layers
from moe.routing.gate import Gate, GateConfig
from moe.routing.losses import BalanceOptions
from moe.routing.options import RoutingOptions
from moe.routing.weights import RoutingWeights
from moe.systems.whisper.base_model import BaseModel, new_base
from moe.systems.whisper.base_source import SmallShape
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper.tokens import prompt_ids, train_tokenizer
from moe.systems.whisper_moe.building import wrap
from moe.systems.whisper_moe.folder import LORA, MIXTURE, WhisperShape, new_record
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.system import WhisperSystem
from moe.training.batches import collate
from moe.training.dataset import SpeechDataset
from tests.toys.corpora import RATE, tone

SHAPE = SmallShape(
    d_model=32, encoder_layers=2, decoder_layers=2, heads=2, dropout=0.1, window_s=2, n_mels=16, max_target_positions=32
)
CONTEXT = AudioContextOptions(context_floor_s=1.0, context_silence_s=0.2, context_bucket_s=0.25)
QV, ALL_LINEARS = "q_proj,v_proj", "q_proj,k_proj,v_proj,out_proj,fc1,fc2"
WORDS = ("oak", "elm", "fig", "ash", "yew")
N_EXPERTS = 4
LENGTHS_S = (0.4, 1.6, 0.7, 1.1, 0.9, 1.3)
HALF = 2e-3  # what half a step of an embedding in half precision may change: kernels differ by processor and by batch size


@functools.cache
def tokenizer(kind: str = "bpe") -> WhisperTokenizer:
    """Learnt from the words of the corpus."""
    return train_tokenizer([" ".join(WORDS)], kind, 8, "en")


@functools.cache
def shared_base(**shape) -> BaseModel:
    """The untrained base, made once; take `toy_base` to change it."""
    torch.manual_seed(0)
    base = new_base(tokenizer(), SmallShape(**{**vars(SHAPE), **shape}), "en")
    for name, parameter in base.model.named_parameters():
        if (
            parameter.dim() > 1 and "encoder.embed_positions" not in name
        ):  # Whisper's own 0.02 says nearly the same of every audio
            torch.nn.init.normal_(parameter.data, std=0.8 if "embed_positions" in name else 0.2)
    return BaseModel(base.model.eval(), base.processor)


def partial_checkpoint(folder: Path, *missing: str, prefix: str = "", **replaced: torch.Tensor) -> Path:
    """The toy base as a hub-like folder without some tensors, in two files."""
    base = shared_base()
    base.model.config.save_pretrained(folder)
    base.processor.tokenizer.save_pretrained(folder)
    state = {name: value.clone() for name, value in base.model.state_dict().items() if name not in (*missing, "proj_out.weight")}
    state = {name.removeprefix(prefix): value for name, value in (state | replaced).items()}
    names = sorted(state)
    save_file({name: state[name] for name in names[::2]}, folder / "a.safetensors")
    save_file({name: state[name] for name in names[1::2]}, folder / "b.safetensors")
    return folder


def toy_base(**shape) -> BaseModel:
    """A copy of the base that may be changed."""
    base = shared_base(**shape)
    return BaseModel(copy.deepcopy(base.model), base.processor)


def bare_model(**shape) -> WhisperForConditionalGeneration:
    """A copy of the base's model."""
    return toy_base(**shape).model


def adapter_options(targets: str = QV, **changes: Any) -> AdapterOptions:
    """Rank 4 at scale 2."""
    chosen: dict[str, Any] = {"lora_r": 4, "shared_r": None, "lora_alpha": 8.0, "lora_targets": targets}
    return AdapterOptions(**chosen | changes)


def awaken(model: torch.nn.Module, std: float = 0.1) -> None:
    """Give every B something to say."""
    generator = torch.Generator().manual_seed(2)
    for _, layer in routed_layers(model):
        for matrix in (layer.lora_A, layer.lora_B, layer.shared_A, layer.shared_B):
            torch.nn.init.normal_(matrix.data, std=std, generator=generator)


def toy_mixture(
    n_experts: int = N_EXPERTS,
    adapters: AdapterOptions = adapter_options(),
    routing: RoutingOptions = RoutingOptions(),
    balance: BalanceOptions | None = None,
    **shape,
) -> WhisperMoE:
    """A mixture with awake adapters and a gate with a mind, in evaluation mode."""
    base = toy_base(**shape)
    torch.manual_seed(1)
    gate = toy_gate(base.model.config.d_model * (2 if routing.pooling == "mean_std" else 1), n_experts) if n_experts else None
    model = WhisperMoE(base.model, n_experts, adapters, routing, gate, balance)
    awaken(model.base)
    return model.eval()


def toy_gate(width: int, n_experts: int) -> Gate:
    """A gate whose logits differ by utterance by about one."""
    gate = Gate(GateConfig(width, n_experts), seed=3)
    torch.nn.init.normal_(gate.output.weight, std=0.3, generator=torch.Generator().manual_seed(4))
    return gate.eval()


def write_corpus(root: Path, lengths_s: tuple[float, ...] = LENGTHS_S) -> pd.DataFrame:
    """A chord in noise as wav for each length, each with its own words; the manifest."""
    rows = []
    for number, seconds in enumerate(lengths_s):
        wave = toy_wave(number, seconds)
        soundfile.write(root / f"u{number}.wav", wave, RATE, subtype="FLOAT")
        text = " ".join(WORDS[(number + place) % len(WORDS)] for place in range(1 + number % 3))
        row: dict[str, Any] = {
            "utterance_id": f"u{number}",
            "audio": f"u{number}.wav",
            "member": None,
            "transcript": text,
            "reference": text,
        }
        row |= {"speaker": f"s{number % 3}", "etiology": ("als", "typical")[number % 2], "severity": 0.5, "split": "train"}
        rows.append(row | {"duration_s": len(wave) / RATE, "language": "en", "audio_digest": f"d{number}"})
    return pd.DataFrame(rows)


def write_chords(folder: Path, transcripts: Sequence[str], splits: Sequence[str]) -> Path:
    """A folder of chords with a manifest of its own splits, two speakers in each, als and typical by turns."""
    rows = ["path,transcript,speaker,etiology,split"]
    for number, (split, transcript) in enumerate(zip(splits, transcripts, strict=True)):
        soundfile.write(folder / f"u{number}.wav", toy_wave(number % 3, 0.6 + 0.05 * number), RATE, subtype="FLOAT")
        rows.append(f"u{number}.wav,{transcript},{split}{number % 2},{('als', 'typical')[number % 2]},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


def toy_wave(number: int, seconds: float) -> np.ndarray:
    """A chord that no other number has, in noise of its own."""
    noise = np.random.default_rng(number).normal(0, 0.02, int(seconds * RATE))
    return (tone(40 * number, seconds) + noise).astype(np.float32)


FULL = AudioContextOptions(audio_context="full")


def whisper_inputs(context: AudioContextOptions = CONTEXT) -> WhisperInputs:
    """Inputs of the base."""
    base = shared_base()
    return WhisperInputs(base.processor, context, base.model.config.max_target_positions)


def dataset(manifest: pd.DataFrame, root: Path, context: AudioContextOptions = CONTEXT, **options) -> SpeechDataset:
    """The manifest as inputs of the base."""
    return SpeechDataset(manifest, root, whisper_inputs(context), **options)


def batch_of(data: SpeechDataset, indices: list[int], context: AudioContextOptions = FULL) -> dict:
    """A batch; by default in the full window, so that an utterance is encoded alike alone and in company."""
    chosen = copy.copy(data)
    chosen.inputs = whisper_inputs(context)
    return collate(chosen, [data[index] for index in indices])


def system_of(
    model: WhisperMoE, base: BaseModel | None = None, context: AudioContextOptions = CONTEXT, **rates: float
) -> WhisperSystem:
    """A model as a system; `rates` are learning rates of `adapters` and `gate`."""
    shape = WhisperShape(
        model.n_experts, model.adapter_options, model.routing_options, context, {"als": 1} if model.n_experts else {}
    )
    record = new_record(MIXTURE if model.n_experts else LORA, shape, "en", "basic", {})
    return wrap(model, base or shared_base(), Path("base"), record, rates)


def inputs(n: int = 3, **shape) -> tuple[Tensor, Tensor, Tensor]:
    """Random log-mels of the whole window (n, n_mels, F), their valid frames, and labels (n, 6) of different length."""
    generator = torch.Generator().manual_seed(5)
    config, base = shared_base(**shape).model.config, shared_base(**shape)
    mel = torch.randn(n, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
    prompt = prompt_ids(base.processor.tokenizer)[1:]
    labels = torch.randint(0, 200, (n, 6), generator=generator)
    labels[:, : len(prompt)] = torch.tensor(prompt)
    labels[0, -1] = -100
    return mel, torch.tensor([20, 60, 99])[torch.arange(n) % 3], labels


def logits_of(model: WhisperMoE, mel: Tensor, tokens: Tensor, weights: RoutingWeights | None) -> Tensor:
    """Token logits (B, N, V) of the mixture's base by transformers' own forward, experts on with these weights."""
    with torch.no_grad(), model.routing.use(weights):
        return model.base(input_features=mel, decoder_input_ids=tokens).logits


def gradients(model: WhisperMoE, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of everything that trains."""
    parameters = model.trainable_parameters()
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in parameters.items() if parameter.grad is not None}


def one_by_one(function: Callable[[int], Tensor], n: int, padding: int) -> Tensor:
    """Token rows of single decodings, padded to one length."""
    rows = [function(index)[0] for index in range(n)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
