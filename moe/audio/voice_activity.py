"""Does anybody speak? A gate before decoding, since a recogniser that is given noise makes words up.

The judge is Silero VAD (MIT licence), whose ONNX model lies in the package `silero-vad`; onnxruntime runs it. A waveform is brought to one
peak and begins and ends with silence, so that soft voices and words that fill their recording are judged like others. Its loudest place
is read first: most speech is found there. Where none is, all is read from the start, so that this pre-test rejects nothing.
benchmarks/voice_activity.py measures what is rejected and what it costs.
"""

import functools
from collections.abc import Iterator
from importlib.metadata import distribution

import numpy as np
import onnxruntime

from moe.audio.sampling import SAMPLE_RATE
from moe.audio.waveforms import SILENT_PEAK

MODEL = "silero_vad/data/silero_vad_16k_sequence.onnx"
FRAME, CONTEXT = 512, 64  # samples that the model judges at a time, and those before that it sees again
STATE = (1, 1, 128)
PEAK = 0.7
MARGIN_S = 0.2  # kept before and after what is spoken: soft onsets, and what the smoothing takes
EDGE_S = 0.25  # silence before and after
BLOCK = 16  # frames read between two looks: 0.5 s
SMOOTHED = 5  # frames whose mean is compared: 0.16 s, longer than a click
BEFORE, LOUDEST = 2, 8  # frames read before the loudest `SMOOTHED` of them, and in all there
STEADY_DB, STEADY_FRAMES, STEADY_N = 1.0, 3, 8  # a level within 1 dB over at least 8 windows of 0.1 s is a hum, a tone or a hiss
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
        sound = _Sound(waveform)
        if sound.peak < SILENT_PEAK or sound.is_steady():
            return False
        return _highest(sound.loudest()) >= self.threshold or any(each >= self.threshold for each in _smoothed(sound.frames()))

    def edges(self, waveform: np.ndarray) -> tuple[int, int] | None:
        """First sample and end of what is spoken in a waveform (n_samples,), at least `MARGIN_S` apart; None where nobody speaks."""
        if not self.is_speech(waveform):
            return None
        means = np.convolve(
            np.concatenate(list(_blocks(_Sound(waveform).frames()))), np.full(SMOOTHED, 1 / SMOOTHED), "same"
        )  # (n_frames,)
        spoken = np.flatnonzero(means >= min(self.threshold, means.max()))
        before, margin = int(EDGE_S * SAMPLE_RATE), int(MARGIN_S * SAMPLE_RATE)
        start, stop = int(spoken[0]) * FRAME - before - margin, (int(spoken[-1]) + 1) * FRAME - before + margin
        stop = min(max(stop, margin), len(waveform))  # speech may be found in the silence that is put before and after
        return max(0, min(start, stop - margin)), stop

    def probability(self, waveform: np.ndarray) -> float:
        """The largest probability of speech over 0.16 s of a waveform, float (n_samples,) at 16 kHz."""
        sound = _Sound(waveform)
        return max(_highest(sound.loudest()), *_smoothed(sound.frames()))


def is_steady(waveform: np.ndarray) -> bool:
    """Whether the level of a waveform (n_samples,) hardly changes; False where it is too short to say."""
    return _Sound(waveform).is_steady()


class _Sound:
    """A waveform (n_samples,) about its mean, cut into the frames that the model judges."""

    def __init__(self, waveform: np.ndarray) -> None:
        self.centred = (waveform - waveform.mean()).astype(np.float32, copy=False) if len(waveform) else waveform  # (n_samples,)
        self.peak = float(max(self.centred.max(), -self.centred.min())) if len(waveform) else 0.0
        whole = self.centred[: len(self.centred) // FRAME * FRAME].reshape(-1, FRAME)
        self.energies = np.einsum("ij,ij->i", whole, whole)  # (n_samples // FRAME,)

    def is_steady(self) -> bool:
        """Whether the energy of windows of `STEADY_FRAMES` hardly changes."""
        n_windows = len(self.energies) // STEADY_FRAMES
        if n_windows < STEADY_N:
            return False
        windows = self.energies[: n_windows * STEADY_FRAMES].reshape(n_windows, STEADY_FRAMES).sum(1)
        low, high = np.percentile(windows, (5, 95))
        return bool(high <= low * 10 ** (STEADY_DB / 10))

    def loudest(self) -> np.ndarray:
        """The frames around the loudest place, (n_frames, CONTEXT + FRAME)."""
        if len(self.energies) < SMOOTHED:
            return self.frames()[:0]
        first = max(0, int(np.convolve(self.energies, np.ones(SMOOTHED), "valid").argmax()) - BEFORE)
        return _frames(self._scaled(self.centred[max(0, first * FRAME - CONTEXT) : (first + LOUDEST) * FRAME]), first > 0)

    def frames(self) -> np.ndarray:
        """All frames, with silence before and after, (n_frames, CONTEXT + FRAME)."""
        edge = int(EDGE_S * SAMPLE_RATE)
        return _frames(np.pad(self._scaled(self.centred), edge))

    def _scaled(self, samples: np.ndarray) -> np.ndarray:
        return samples * (PEAK / max(self.peak, 1e-9))


def _frames(samples: np.ndarray, has_context: bool = False) -> np.ndarray:
    """Frames with the samples before them: (n_samples,) → (n_frames, CONTEXT + FRAME); silence where there are none."""
    before = 0 if has_context else CONTEXT
    n_frames = -(-(len(samples) + before - CONTEXT) // FRAME)
    padded = np.zeros(CONTEXT + n_frames * FRAME, np.float32)
    padded[before : before + len(samples)] = samples
    return np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]


def _highest(frames: np.ndarray) -> float:
    """The largest mean over `SMOOTHED` of a few frames read alone, (n_frames, CONTEXT + FRAME); 0 of fewer."""
    return max(_smoothed(frames), default=0.0) if len(frames) >= SMOOTHED else 0.0


def _smoothed(frames: np.ndarray) -> Iterator[float]:
    """The largest mean over `SMOOTHED` frames up to the end of each block."""
    found = np.zeros(SMOOTHED - 1, np.float32)
    for probabilities in _blocks(frames):
        found = np.concatenate([found[1 - SMOOTHED :], probabilities])
        yield float(np.convolve(found, np.full(SMOOTHED, 1 / SMOOTHED), "valid").max())


def _blocks(frames: np.ndarray) -> Iterator[np.ndarray]:
    """Probabilities of speech of the frames of each block, (n_frames,), by the model with its state carried on."""
    state = (np.zeros(STATE, np.float32), np.zeros(STATE, np.float32))
    for start in range(0, len(frames), BLOCK):
        block = np.ascontiguousarray(frames[start : start + BLOCK])
        probabilities, *state = _session().run(["speech_probs", "hn", "cn"], {"input": block, "h": state[0], "c": state[1]})
        yield probabilities.reshape(-1)


@functools.cache
def _session() -> onnxruntime.InferenceSession:
    """The model on one thread; found without importing its package, which would set the number of torch's threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = distribution("silero-vad").locate_file(MODEL)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
