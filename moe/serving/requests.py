"""What a request may ask of a served recogniser, checked before anything is decoded: size, fields, parameters, base64.

Every refusal is a `RequestError`, one sentence that the client is shown. Audio comes as bytes only: a path or an address that a
client names is never opened.
"""

import base64
import binascii
import dataclasses
import json
import math
import os
import typing
from pathlib import Path
from typing import Any

import numpy as np

from moe.audio.channels import CHANNELS, CHANNELS_HELP
from moe.audio.headers import stated_header
from moe.audio.sampling import resample
from moe.audio.sources import as_wav
from moe.audio.voice_activity import SPEECH_THRESHOLD, THRESHOLD_HELP
from moe.audio.waveforms import AudioError, decode_recording
from moe.options import option
from moe.system import Ask, DecodingOptions
from moe.training.precision import PrecisionOptions

RECORDS, SPLIT, PARAMS, AUDIO, SPEAKER = "dataframe_records", "dataframe_split", "params", "audio", "speaker"
EXAMPLE = '{"dataframe_records": [{"audio": "<base64>"}], "params": {}}'
MAX_RATE = 192_000  # Hz; what unfolds into memory before it is resampled is bounded by this and max_audio_s
AUTO = "auto"  # as the model was trained
MAX_SHOWN = 40  # characters of what a client sent that are said back


class RequestError(ValueError):
    """A request that cannot be served; the message is one clear sentence for the client."""

    status, code = 400, "BAD_REQUEST"


class Conflict(RequestError):
    """A request that was right before another recogniser took the place of the one it was made for."""

    status, code = 409, "RESOURCE_CONFLICT"


@dataclasses.dataclass(frozen=True)
class ServiceOptions(PrecisionOptions, DecodingOptions):
    """How a recogniser is served: its decoding and precision, and the bounds of a request."""

    max_audio_s: float = option(600.0, "seconds of audio in one request", above=0)
    max_inputs: int = option(32, "recordings in one request", low=1)
    max_request_mb: float = option(32.0, "size of one request, MiB", above=0)
    max_beam_size: int = option(8, "most beams a client may ask for", low=1, high=32)
    max_requests: int = option(64, "requests at work or waiting; more get status 503", low=1)
    channels: str = option("mix", CHANNELS_HELP, choices=CHANNELS)
    speech_threshold: float = option(SPEECH_THRESHOLD, THRESHOLD_HELP, low=0, high=1)
    people_of: str | None = option(None, "registered recogniser whose people are served by `speaker` (none: nobody's)")
    max_people: int = option(1000, "people in memory", low=1)
    people_refresh_s: float = option(60.0, "seconds after which it is looked up whether a person is still there", low=0)
    speaker_auto: bool = option(False, "serve speaker=auto: people who agreed to a profile are recognised by their voice")
    speaker_confidence: float = option(
        0.99, "cosine of a voice to the nearest profile, below which it is nobody's (speaker=auto)", low=-1, high=1
    )
    batch_window_ms: float = option(5.0, "how long a request waits for others to share its pass, milliseconds", low=0)

    def idle(self) -> dict[str, str]:
        """How sure a voice must be where nobody is recognised by it."""
        return super().idle() | ({} if self.speaker_auto else {"speaker_confidence": "needs speaker_auto=true"})

    @property
    def max_bytes(self) -> int:
        """Size of one request in bytes."""
        return int(self.max_request_mb * (1 << 20))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a client asks for beside its audio: what the system takes, and how its answer is made."""

    ask: Ask
    beam_size: int = 1
    return_routing: bool = True
    word_times: bool = False
    speaker: str | None = None


def check_body(body: bytes, options: ServiceOptions, usual: Ask) -> Asked:
    """Check a request's JSON, and every audio's base64; what was asked for is returned.

    Args:
        usual: what is asked of the system where a request says nothing.

    Raises:
        RequestError: anything that is not a request of the form of `EXAMPLE`.
    """
    request = _json(body)
    unknown = sorted(set(request) - {RECORDS, SPLIT, PARAMS})
    if unknown:
        raise RequestError(f"unknown field {shown(unknown[0])}: a request has {RECORDS} or {SPLIT}, and {PARAMS}")
    if (RECORDS in request) == (SPLIT in request):
        raise RequestError(f"give exactly one of {RECORDS} and {SPLIT}, for example {EXAMPLE}")
    audios = _records(request[RECORDS]) if RECORDS in request else _split(request[SPLIT])
    if not 1 <= len(audios) <= options.max_inputs:
        raise RequestError(f"{len(audios)} recordings in one request: must be between 1 and {options.max_inputs}")
    asked = check_params(request.get(PARAMS), options, usual)
    for number, audio in enumerate(audios):
        as_bytes(audio, number)
    return asked


def check_params(params: Any, options: ServiceOptions, usual: Ask) -> Asked:
    """Parameters of a request, each of the right kind and in range.

    Raises:
        RequestError: an unknown parameter, or a value that is not allowed.
    """
    params = {} if params is None else params
    if not isinstance(params, dict):
        raise RequestError(f"{PARAMS} must be an object, for example {EXAMPLE}")
    fields = dataclasses.fields(usual)
    names = ["beam_size", *(field.name for field in fields), "return_routing", "word_times", SPEAKER]
    unknown = sorted(str(name) for name in set(params) - set(names))
    if unknown:
        raise RequestError(f"unknown parameter {shown(unknown[0])}: there are {', '.join(names)}")
    given = {field.name: _value(params, field) for field in fields if field.name in params}
    try:
        ask = dataclasses.replace(usual, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:  # out of a field's range
        raise RequestError(str(error)) from error
    beam_size = _whole(params, "beam_size", 1, options.max_beam_size) or options.beam_size
    word_times = _truth(params, "word_times", options.word_times)
    return Asked(ask, beam_size, _truth(params, "return_routing"), word_times, _speaker(params))


def nothing_asked(field: dataclasses.Field) -> Any:
    """How a signature, which has no None, says that a parameter was not given: 0, `auto`, or the field's own default."""
    if field.default is not None:
        return field.default
    return AUTO if str in typing.get_args(field.type) else 0


def as_bytes(audio: Any, number: int) -> bytes:
    """Encoded audio as bytes: bytes as they are, text as base64; from Python also a `Path`, which is read, and samples at 16 kHz.

    Neither a path object nor an array comes out of JSON, so that no client can name a file.

    Raises:
        RequestError: text that is not base64, a file that is not there, nothing at all, or something else.
    """
    if isinstance(audio, (bytes, bytearray, memoryview)):
        data = bytes(audio)
    elif isinstance(audio, str):
        data = _from_base64(audio, number)
    elif isinstance(audio, (os.PathLike, np.ndarray)):
        data = _from_python(audio, number)
    else:
        raise RequestError(f"audio {number} is {_kind(audio)}: must be the bytes of a recording in base64")
    if not data:
        raise RequestError(f"audio {number} is empty")
    return data


def _from_python(audio: os.PathLike[str] | np.ndarray, number: int) -> bytes:
    try:
        return as_wav(audio) if isinstance(audio, np.ndarray) else Path(audio).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        raise RequestError(f"audio {number}: {error}") from error


def decode(data: bytes, number: int, max_s: float, channels: str = "mix") -> np.ndarray:
    """A recording as a float32 waveform (n_samples,) at 16 kHz; `channels` as `moe.audio.waveforms.decode_recording`.

    Raises:
        RequestError: not audio, damaged, or longer than `max_s`.
    """
    header = stated_header(data)
    if header and header[0] > MAX_RATE:
        raise RequestError(f"audio {number} has a sampling rate of {header[0]} Hz: at most {MAX_RATE} is served")
    try:
        recording = decode_recording(data, max_s, channels)
        waveform = resample(recording.waveform, recording.rate)
    except AudioError as error:
        raise RequestError(f"audio {number} cannot be used: {error.reason.replace('_', ' ')}, {error.detail}") from error
    if not len(waveform):
        raise RequestError(f"audio {number} cannot be used: empty, it is shorter than one sample at 16 kHz")
    return waveform


def shown(value: Any) -> str:
    """What a client sent, short enough to be said back."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _json(body: bytes) -> dict[str, Any]:
    if not body.strip():
        raise RequestError(f"the request is empty: send JSON such as {EXAMPLE}")
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is no JSON: send something like {EXAMPLE}") from error
    if not isinstance(request, dict):
        raise RequestError(f"the request is {_kind(request)}: must be an object such as {EXAMPLE}")
    return request


def _records(records: Any) -> list[Any]:
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise RequestError(f"{RECORDS} must be a list of objects, each with {AUDIO}")
    for number, record in enumerate(records):
        _only_audio(list(record), f"{RECORDS}[{number}]")
    return [record[AUDIO] for record in records]


def _split(table: Any) -> list[Any]:
    if not isinstance(table, dict) or not {"columns", "data"} <= set(table) <= {"columns", "data", "index"}:
        raise RequestError(f"{SPLIT} must be an object with columns and data")
    columns, data = table["columns"], table["data"]
    if not isinstance(columns, list) or not isinstance(data, list):
        raise RequestError(f"columns and data of {SPLIT} must be lists")
    _only_audio(columns, SPLIT)
    if not all(isinstance(row, list) and len(row) == 1 for row in data):
        raise RequestError(f"every row of {SPLIT} must be a list with one audio")
    index = table.get("index", [0] * len(data))
    if not isinstance(index, list) or len(index) != len(data):
        raise RequestError(f"index of {SPLIT} must be a list as long as data")
    return [row[0] for row in data]


def _only_audio(names: list[Any], place: str) -> None:
    if AUDIO not in names:
        raise RequestError(f"{place} has no {AUDIO}")
    unknown = [name for name in names if name != AUDIO] or names[1:]
    if unknown:
        raise RequestError(f"{place} has the unknown column {shown(unknown[0])}: {AUDIO} is the only one")


def _from_base64(text: str, number: int) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"audio {number} is no base64 text; paths and addresses are not opened, but for a pathlib.Path from Python"
        ) from error


def _whole(params: dict[str, Any], name: str, low: int, high: int | None) -> int:
    """The value, or 0 where none is given."""
    if name not in params:
        return 0
    value = params[name]
    bounds = f"between {low} and {high}" if high is not None else f"at least {low}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise RequestError(f"{name}={shown(value)}: must be a whole number, {bounds}")
    return value


def _speaker(params: dict[str, Any]) -> str | None:
    value = params.get(SPEAKER, "")
    if not isinstance(value, str):
        raise RequestError(f"{SPEAKER}={shown(value)}: must be the name of a person who is enrolled")
    return value or None


def _truth(params: dict[str, Any], name: str, usual: bool = True) -> bool:
    value = params.get(name, usual)
    if not isinstance(value, bool):
        raise RequestError(f"{name}={shown(value)}: must be true or false")
    return value


def _value(params: dict[str, Any], field: dataclasses.Field) -> Any:
    """A parameter of the system's own; None where its value says that nothing is asked."""
    name, kinds = field.name, typing.get_args(field.type) or (field.type,)
    if bool in kinds:
        return _truth(params, name)
    if float in kinds:
        return _number(params, name)
    if int in kinds:
        return _whole(params, name, 0, None) or None
    value = params[name]
    if not isinstance(value, str):
        raise RequestError(f"{name}={shown(value)}: must be text, or {AUTO}")
    return None if value == AUTO else value


def _number(params: dict[str, Any], name: str) -> float:
    value = params[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RequestError(f"{name}={shown(value)}: must be a number")
    return float(value)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
