"""espeak-ng through ctypes: text in, samples with word and phoneme times out. The first link of the synthetic corpus.

espeak-ng keeps state between calls that `espeak_Terminate` does not clear, so that the same call gives other bytes depending on
what was spoken before. Here the shared library is loaded for each `Espeak` and unloaded after it (0.4 ms), and its random numbers
are seeded: what one `Espeak` says depends on its seed and its own calls alone, in whatever process and order.
"""

import _ctypes
import ctypes
import dataclasses
from typing import Self

import espeakng_loader
import numpy as np

SAMPLE_RATE = 22_050
SYNCHRONOUS, BUFFER_MS = 2, 500
PHONEME_EVENTS, DO_NOT_EXIT = 0x0001, 0x8000
RATE, PITCH, PITCH_RANGE = 1, 3, 4
UTF8, PHONEMES_IN_BRACKETS = 0x0001, 0x0100
EVENT_END, EVENT_WORD, EVENT_PHONEME = 0, 1, 7


class _Identifier(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclasses.dataclass(frozen=True)
class Prosody:
    """How fast and how high a voice speaks: words per minute, and espeak's 0–99 scales of pitch and of pitch range."""

    rate: float
    pitch: float
    pitch_range: float


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What espeak said: float32 samples at `SAMPLE_RATE`, where each word starts, and (start, label) of each phoneme, in samples."""

    samples: np.ndarray
    word_starts: np.ndarray
    phoneme_starts: np.ndarray
    phonemes: tuple[str, ...]


class Espeak:
    """A fresh espeak-ng, used as a context manager. One at a time in a process, because the library's state is global.

    Args:
        voice: language and variant, such as `en-us+f2`.
        seed: of the library's own random numbers (pitch flutter).
    """

    _is_open = False

    def __init__(self, voice: str, seed: int) -> None:
        self.voice, self.seed = voice, seed
        self._samples: list[np.ndarray] = []
        self._words: list[int] = []
        self._phonemes: list[tuple[int, str]] = []

    def __enter__(self) -> Self:
        if Espeak._is_open:
            raise RuntimeError("espeak-ng is already in use in this process; its state is global")
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        Espeak._is_open = True
        try:
            self._start()
        except RuntimeError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._library.espeak_Terminate()
        handle = self._library._handle
        del self._library
        _ctypes.dlclose(handle)
        Espeak._is_open = False

    def _start(self) -> None:
        data_path = str(espeakng_loader.get_data_path()).encode()
        rate = self._library.espeak_Initialize(SYNCHRONOUS, BUFFER_MS, data_path, PHONEME_EVENTS | DO_NOT_EXIT)
        if rate != SAMPLE_RATE:
            raise RuntimeError(f"espeak-ng started with {rate} Hz; {SAMPLE_RATE} is expected")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(self.seed))
        self._callback = _Callback(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)
        if self._library.espeak_SetVoiceByName(self.voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {self.voice!r}")

    def _collect(self, samples: "ctypes._Pointer", n_samples: int, events: "ctypes._Pointer") -> int:
        if samples and n_samples > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (n_samples,)).copy())
        i = 0
        while events and events[i].type != EVENT_END:
            if events[i].type == EVENT_WORD:
                self._words.append(events[i].sample)
            elif events[i].type == EVENT_PHONEME:
                self._phonemes.append((events[i].sample, events[i].id.string.decode("utf-8", "replace")))
            i += 1
        return 0

    def phonemes(self, text: str, separator: str = "") -> str:
        """The text in espeak's ASCII phoneme names, words apart by spaces; phonemes of a word by `separator`, one character or none."""
        function, mode = self._library.espeak_TextToPhonemes, ord(separator) << 8 if separator else 0
        function.restype, function.argtypes = ctypes.c_char_p, [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
        rest, clauses = ctypes.c_char_p(text.encode()), []
        while rest.value:
            clauses.append((function(ctypes.byref(rest), UTF8, mode) or b"").decode())
        return " ".join(clauses)

    def speak(self, text: str, prosody: Prosody) -> Spoken:
        """Say a text; `[[…]]` in it is spoken as phonemes.

        Raises:
            RuntimeError: espeak refused, or said nothing.
        """
        for parameter, value in ((RATE, prosody.rate), (PITCH, prosody.pitch), (PITCH_RANGE, prosody.pitch_range)):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        self._samples, self._words, self._phonemes = [], [], []
        data = text.encode() + b"\0"
        flags = UTF8 | PHONEMES_IN_BRACKETS
        code = self._library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, flags, None, None)
        self._library.espeak_Synchronize()
        if code != 0 or not self._samples:
            raise RuntimeError(f"espeak-ng could not say {text!r} with the voice {self.voice!r} (code {code})")
        return self._spoken()

    def _spoken(self) -> Spoken:
        samples = np.concatenate(self._samples).astype(np.float32) / 32768
        starts = np.array([start for start, _ in self._phonemes], np.int64)
        return Spoken(samples, np.array(self._words, np.int64), starts, tuple(label for _, label in self._phonemes))
