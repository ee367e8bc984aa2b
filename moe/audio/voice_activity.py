"""Does anybody speak? A gate before decoding, since a recogniser that is given noise makes words up.

The judge is Silero VAD (MIT licence), whose ONNX model lies in the package `silero-vad`; onnxruntime runs it. A waveform is brought to one
peak and begins and ends with silence, so that soft voices and words that fill their recording are judged like others. It is read
block by block, and reading stops where speech is found. benchmarks/voice_activity.py measures what is rejected and what it costs.
"""

import functools
from collections.abc import Iterator
from importlib.metadata import distribution

import numpy as np
import onnxruntime

from moe.audio.decoders import SAMPLE_RATE
from moe.audio.waveforms import is_silent

MODEL = "silero_vad/data/silero_vad_16k_sequence.onnx"
FRAME, CONTEXT = 512, 64  # samples that the model judges at a time, and those before that it sees again
STATE = (1, 1, 128)
PEAK = 0.7
EDGE_S = 0.25  # silence before and after
BLOCK = 16  # frames read between two looks: 0.5 s
SMOOTHED = 5  # frames whose mean is compared: 0.16 s, longer than a click
STEADY_DB, STEADY_S, STEADY_N = (
    1.0,
    0.1,
    8,
)  # a level that stays within 1 dB over at least 8 windows of 0.1 s is a hum, a tone or a hiss
SPEECH_THRESHOLD = 0.3  # measured: see benchmarks/MEASURED.md
THRESHOLD_HELP = (
    "least probability that somebody speaks; below it the text is empty and no_speech is true (0: everything is decoded)"
)


class VoiceActivity:
    """Tells speech from silence, hum and noise.

    Args:
        threshold: least probability of speech, over 0.16 s, of a waveform in which somebody speaks.
    """

    def __init__(self, threshold: float = SPEECH_THRESHOLD) -> None:
        self.threshold = threshold

    def is_speech(self, waveform: np.ndarray) -> bool:
        """Whether somebody speaks in a waveform, float (n_samples,) at 16 kHz."""
        if not len(waveform) or is_silent(waveform) or is_steady(waveform):
            return False
        return any(probability >= self.threshold for probability in _smoothed(waveform))

    def probability(self, waveform: np.ndarray) -> float:
        """The largest probability of speech over 0.16 s of a waveform, float (n_samples,) at 16 kHz."""
        return max(_smoothed(waveform))


def is_steady(waveform: np.ndarray) -> bool:
    """Whether the level of a waveform (n_samples,) hardly changes; False where it is too short to say."""
    width = int(STEADY_S * SAMPLE_RATE)
    n_windows = len(waveform) // width
    if n_windows < STEADY_N:
        return False
    windows = (waveform[: n_windows * width] - waveform.mean()).reshape(n_windows, width)
    power = np.square(windows, dtype=np.float64).mean(1)
    low, high = np.percentile(power, (5, 95))
    return bool(high <= low * 10 ** (STEADY_DB / 10))


def _smoothed(waveform: np.ndarray) -> Iterator[float]:
    """The largest mean over `SMOOTHED` frames up to the end of each block."""
    found = np.zeros(SMOOTHED - 1, np.float32)
    for probabilities in _blocks(waveform):
        found = np.concatenate([found[1 - SMOOTHED :], probabilities])
        yield float(np.convolve(found, np.full(SMOOTHED, 1 / SMOOTHED), "valid").max())


def _blocks(waveform: np.ndarray) -> Iterator[np.ndarray]:
    """Probabilities of speech of the frames of each block, (n_frames,), by the model with its state carried on."""
    state = (np.zeros(STATE, np.float32), np.zeros(STATE, np.float32))
    frames = _frames(waveform)
    for start in range(0, len(frames), BLOCK):
        block = frames[start : start + BLOCK]
        probabilities, *state = _session().run(["speech_probs", "hn", "cn"], {"input": block, "h": state[0], "c": state[1]})
        yield probabilities.reshape(-1)


def _frames(waveform: np.ndarray) -> np.ndarray:
    """Frames with the samples before them: (n_samples,) → float32 (n_frames, CONTEXT + FRAME)."""
    centred = (waveform - waveform.mean()).astype(np.float32)
    edge = int(EDGE_S * SAMPLE_RATE)
    n_frames = -(-(len(centred) + 2 * edge) // FRAME)
    samples = np.zeros(CONTEXT + n_frames * FRAME, np.float32)
    samples[CONTEXT + edge : CONTEXT + edge + len(centred)] = centred * (PEAK / max(np.abs(centred).max(), np.float32(1e-9)))
    return np.lib.stride_tricks.sliding_window_view(samples, CONTEXT + FRAME)[::FRAME]


@functools.cache
def _session() -> onnxruntime.InferenceSession:
    """The model on one thread; found without importing its package, which would set the number of torch's threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = distribution("silero-vad").locate_file(MODEL)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
