"""What other runtimes say of an ordinary Whisper folder: transformers, CTranslate2, faster-whisper and ONNX.

Each decodes greedily from our own prompt, so that its words can be compared with ours.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from moe.audio.sampling import SAMPLE_RATE
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper.base_source import ENGLISH
from moe.systems.whisper.conversion import missing
from moe.systems.whisper.features import window_seconds
from moe.systems.whisper.tokens import language_ids, prompt_ids

BATCH = 16
FASTER_WHISPER_FRAMES = 3000  # of its windows, whatever the preprocessor says

Says = Callable[[Sequence[np.ndarray]], list[str]]  # waveforms (n_samples,) at 16 kHz, none longer than the window → texts


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


def faster_whisper_fault(folder: Path, source: Path) -> str | None:
    """Why faster-whisper cannot say what we say of a CTranslate2 folder; None where it can. `source` holds the processor.

    It pads every window to 3000 frames, and gives no language to a base that CTranslate2 takes for one of English alone.
    """
    base = load_base(str(source))
    extractor = base.processor.feature_extractor
    if extractor.nb_max_frames != FASTER_WHISPER_FRAMES:
        return f"it pads to {FASTER_WHISPER_FRAMES} frames, and the base takes {extractor.nb_max_frames} ({window_seconds(extractor):g} s)"
    if fault := missing("faster-whisper"):
        return fault
    import ctranslate2

    if language_ids(base.model.generation_config) and not ctranslate2.models.Whisper(str(folder)).is_multilingual:
        return "it gives no language to this base, which was trained with one: CTranslate2 takes its tokens for those of English alone"
    return None


def says_faster_whisper(folder: Path, source: Path) -> Says:
    """What faster-whisper says; `source` holds the processor.

    Waveforms are padded with silence to the window: faster-whisper pads shorter log-mels with 0, which is no silence.
    """
    from faster_whisper import WhisperModel

    model, base = WhisperModel(str(folder), device="cpu", compute_type="float32"), load_base(str(source))
    generation: Any = base.model.generation_config
    n_samples = base.processor.feature_extractor.n_samples
    plain: dict[str, Any] = {
        "language": getattr(generation, "language", None) or ENGLISH,
        "beam_size": 1,
        "temperature": 0.0,
        "without_timestamps": True,
        "suppress_blank": bool(generation.begin_suppress_tokens),
        "no_speech_threshold": None,
        "log_prob_threshold": None,
        "compression_ratio_threshold": None,
    }

    def texts(waveforms: Sequence[np.ndarray]) -> list[str]:
        found = []
        for waveform in waveforms:
            padded = np.pad(waveform.astype(np.float32), (0, n_samples - len(waveform)))
            segments, _ = model.transcribe(padded, suppress_tokens=list(generation.suppress_tokens or []), **plain)
            found.append("".join(segment.text for segment in segments).strip())
        return found

    return texts


def says_onnx(folder: Path, source: Path) -> Says:
    """What onnxruntime says, by a loop that takes the most probable token, one utterance at a time: a batch goes on for its longest."""
    import onnxruntime

    encoder, decoder = (onnxruntime.InferenceSession(str(folder / f"{name}.onnx")) for name in ("encoder", "decoder"))
    base = load_base(str(source))
    prompt, end = prompt_of(base.model, base.processor), base.model.config.eos_token_id
    suppressed: Any = base.model.generation_config.suppress_tokens or []
    at_first: Any = base.model.generation_config.begin_suppress_tokens or []

    def said(states: np.ndarray) -> list[int]:  # (1, T, D)
        tokens: list[int] = []
        while len(prompt) + len(tokens) < base.model.config.max_target_positions and end not in tokens[-1:]:
            (logits,) = decoder.run(None, {"input_ids": np.array([prompt + tokens], np.int64), "states": states})
            last = logits[0, -1]  # (V,)
            last[[*suppressed, *([] if tokens else at_first)]] = -np.inf
            tokens.append(int(last.argmax()))
        return tokens

    def say(features: Tensor) -> list[list[int]]:
        (states,) = encoder.run(None, {"input_features": features.numpy()})  # (B, T, D)
        return [said(states[row : row + 1]) for row in range(len(states))]

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
