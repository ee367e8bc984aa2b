"""An ordinary Whisper folder in other runtimes: transformers, CTranslate2 (which faster-whisper runs on) and ONNX; and what each says.

The converters are extras, in requirements-export.txt. What a runtime says is decoded greedily from our own prompt, so that it can be
compared with our hypotheses word for word.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor

from moe.audio.sampling import SAMPLE_RATE
from moe.files import write_whole_dir
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper.base_source import GENERATION
from moe.systems.whisper.tokens import language_ids, prompt_ids

REQUIREMENTS = "requirements-export.txt"
NEEDED = {
    "transformers": (),
    "ctranslate2": ("ctranslate2",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}  # runtime → packages
OPSET = 18
BATCH = 16

Says = Callable[[Sequence[np.ndarray]], list[str]]  # waveforms (n_samples,) at 16 kHz, none longer than the window → texts


def missing(runtime: str) -> str | None:
    """Why a runtime cannot be exported to; None where its packages are installed."""
    absent = [name for name in NEEDED[runtime] if importlib.util.find_spec(name) is None]
    return f"{runtime} needs {' and '.join(absent)}: pip install -r {REQUIREMENTS}" if absent else None


def to_ctranslate2(source: Path, folder: Path) -> None:
    """Write a folder that `ctranslate2.models.Whisper` and `faster_whisper.WhisperModel` load, in 32-bit floats."""
    import ctranslate2

    processor = WhisperProcessor.from_pretrained(source)
    with write_whole_dir(folder) as aside, _without_nothing_to_suppress(source):
        converter = ctranslate2.converters.TransformersConverter(str(source), copy_files=["tokenizer.json"])
        converter.convert(str(aside), force=True)
        processor.feature_extractor.to_json_file(aside / "preprocessor_config.json")  # the name that faster-whisper reads


def to_onnx(source: Path, folder: Path) -> None:
    """Write `encoder.onnx` (input_features → states) and `decoder.onnx` (input_ids, states → logits), and the processor beside them."""
    base = load_base(str(source))
    model, config = base.model.eval(), base.model.config
    features = torch.zeros(2, config.num_mel_bins, 2 * config.max_source_positions)  # (B, n_mels, F)
    states = torch.zeros(2, config.max_source_positions, config.d_model)  # (B, T, D)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=config.max_target_positions)
    with write_whole_dir(folder) as aside, torch.no_grad():
        base.processor.save_pretrained(aside)
        model.generation_config.save_pretrained(aside)
        _export(_Encoder(model), (features,), aside / "encoder.onnx", ["input_features"], ["states"], ({0: batch},))
        ids = torch.zeros(2, 4, dtype=torch.long)  # (B, N)
        _export(
            _Decoder(model),
            (ids, states),
            aside / "decoder.onnx",
            ["input_ids", "states"],
            ["logits"],
            ({0: batch, 1: length}, {0: batch}),
        )


def says_transformers(folder: Path) -> Says:
    """What transformers says of a folder by `generate`, as anybody would call it."""
    model, processor = WhisperForConditionalGeneration.from_pretrained(folder).eval(), WhisperProcessor.from_pretrained(folder)

    def say(features: Tensor) -> list[list[int]]:
        with torch.inference_mode():
            rows: list[list[int]] = model.generate(features).tolist()
        return rows

    return _speaker(processor, say)


def says_ctranslate2(folder: Path, source: Path) -> Says:
    """What CTranslate2 says; `source` holds the processor."""
    import ctranslate2

    model, base = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32"), load_base(str(source))
    prompt = prompt_of(base.model, base.processor)
    twice = 2 * (base.model.config.max_target_positions - len(prompt))  # it says at most half of `max_length`

    def say(features: Tensor) -> list[list[int]]:
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features.numpy()))
        found = model.generate(view, [prompt] * len(features), beam_size=1, max_length=twice)
        return [each.sequences_ids[0] for each in found]

    return _speaker(base.processor, say)


def says_onnx(folder: Path, source: Path) -> Says:
    """What onnxruntime says, by a loop that takes the most probable token."""
    import onnxruntime

    encoder, decoder = (onnxruntime.InferenceSession(str(folder / f"{name}.onnx")) for name in ("encoder", "decoder"))
    base = load_base(str(source))
    prompt, end = prompt_of(base.model, base.processor), base.model.config.eos_token_id
    suppressed: Any = base.model.generation_config.suppress_tokens or []
    at_first: Any = base.model.generation_config.begin_suppress_tokens or []

    def say(features: Tensor) -> list[list[int]]:
        (states,) = encoder.run(None, {"input_features": features.numpy()})
        rows = np.tile(np.array(prompt, np.int64), (len(states), 1))  # (B, N)
        while rows.shape[1] < base.model.config.max_target_positions and not (rows[:, len(prompt) :] == end).any(1).all():
            (logits,) = decoder.run(None, {"input_ids": rows, "states": states})
            last = logits[:, -1]  # (B, V)
            last[:, [*suppressed, *(at_first if rows.shape[1] == len(prompt) else [])]] = -np.inf
            rows = np.concatenate([rows, last.argmax(-1)[:, None]], 1)
        return [_until(row[len(prompt) :].tolist(), end) for row in rows]

    return _speaker(base.processor, say)


def prompt_of(model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> list[int]:
    """The prompt that a folder's generation config decodes from."""
    generation: Any = model.generation_config
    tokenizer = processor.tokenizer
    if language_ids(generation):
        tokenizer.language, tokenizer.task = generation.language, generation.task
    return prompt_ids(tokenizer)


def _speaker(processor: WhisperProcessor, say: Callable[[Tensor], list[list[int]]]) -> Says:
    def texts(waveforms: Sequence[np.ndarray]) -> list[str]:
        found: list[str] = []
        for at in range(0, len(waveforms), BATCH):
            part = list(waveforms[at : at + BATCH])
            features = processor.feature_extractor(part, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            found += [text.strip() for text in processor.tokenizer.batch_decode(say(features), skip_special_tokens=True)]
        return found

    return texts


def _export(module: nn.Module, given: tuple[Tensor, ...], path: Path, names: list[str], said: list[str], shapes: Any) -> None:
    torch.onnx.export(
        module, given, str(path), input_names=names, output_names=said, dynamic_shapes=shapes, opset_version=OPSET, dynamo=True,
        external_data=False, verbose=False,
    )  # fmt: skip


@contextmanager
def _without_nothing_to_suppress(folder: Path) -> Iterator[None]:
    """The converter takes lists alone, and a generation config of ours suppresses nothing: given as empty lists while it reads."""
    path = folder / GENERATION
    before = path.read_text(encoding="utf-8")
    generation = GenerationConfig.from_pretrained(folder)
    generation.suppress_tokens = generation.suppress_tokens or []
    generation.begin_suppress_tokens = generation.begin_suppress_tokens or []
    try:
        generation.save_pretrained(folder)
        yield
    finally:
        path.write_text(before, encoding="utf-8")


def _until(tokens: list[int], end: Any) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


class _Encoder(nn.Module):
    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_features: Tensor) -> Tensor:
        states: Tensor = self.encoder(input_features).last_hidden_state
        return states


class _Decoder(nn.Module):
    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.decoder, self.proj_out = model.model.decoder, model.proj_out

    def forward(self, input_ids: Tensor, states: Tensor) -> Tensor:
        logits: Tensor = self.proj_out(
            self.decoder(input_ids=input_ids, encoder_hidden_states=states, use_cache=False).last_hidden_state
        )
        return logits
