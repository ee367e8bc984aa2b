"""An ordinary Whisper folder → the forms that CTranslate2 (which faster-whisper runs on) and ONNX runtimes load.

The converters are extras, in requirements-export.txt.
"""

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor

from moe.files import write_whole_dir
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper.base_source import GENERATION

REQUIREMENTS = "requirements-export.txt"
NEEDED = {
    "transformers": (),
    "ctranslate2": ("ctranslate2",),
    "faster-whisper": ("faster_whisper",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}  # runtime → packages
OPSET = 18


def missing(runtime: str) -> str | None:
    """Why a runtime cannot be exported to; None where its packages are installed."""
    absent = [name for name in NEEDED[runtime] if importlib.util.find_spec(name) is None]
    return f"{runtime} needs {' and '.join(absent)}: pip install -r {REQUIREMENTS}" if absent else None


def to_ctranslate2(source: Path, folder: Path) -> None:
    """Write a folder that `ctranslate2.models.Whisper` and `faster_whisper.WhisperModel` load, in 32-bit floats."""
    import ctranslate2

    processor = WhisperProcessor.from_pretrained(source)
    with write_whole_dir(folder) as aside, _with_lists_to_suppress(source) as linked:
        converter = ctranslate2.converters.TransformersConverter(str(linked), copy_files=["tokenizer.json"])
        converter.convert(str(aside), force=True)
        processor.feature_extractor.to_json_file(aside / "preprocessor_config.json")  # the name that faster-whisper reads


def to_onnx(source: Path, folder: Path) -> None:
    """Write `encoder.onnx` (input_features → states) and `decoder.onnx` (input_ids, states → logits), and the processor beside them."""
    base = load_base(str(source))
    model, config = base.model.eval(), base.model.config
    features = torch.zeros(2, config.num_mel_bins, 2 * config.max_source_positions)  # (B, n_mels, F)
    states = torch.zeros(2, config.max_source_positions, config.d_model)  # (B, T, D)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=config.max_target_positions)
    with write_whole_dir(folder) as aside, torch.no_grad(), _without_chatter():
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


def _export(module: nn.Module, given: tuple[Tensor, ...], path: Path, names: list[str], said: list[str], shapes: Any) -> None:
    torch.onnx.export(
        module.eval(), given, str(path), input_names=names, output_names=said, dynamic_shapes=shapes, opset_version=OPSET, dynamo=True,
        external_data=False, verbose=False,
    )  # fmt: skip


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Nothing of what the exporter says of itself: operators of torchvision that it skips, deprecations in its own code."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _with_lists_to_suppress(source: Path) -> Iterator[Path]:
    """A folder of links to a Whisper's files, for a converter that takes lists alone: what suppresses nothing is an empty list in it."""
    with tempfile.TemporaryDirectory() as linked:
        for file in source.iterdir():
            if file.name != GENERATION:
                (Path(linked) / file.name).symlink_to(file.absolute())
        generation = GenerationConfig.from_pretrained(source)
        generation.suppress_tokens = generation.suppress_tokens or []
        generation.begin_suppress_tokens = generation.begin_suppress_tokens or []
        generation.save_pretrained(linked)
        yield Path(linked)


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
