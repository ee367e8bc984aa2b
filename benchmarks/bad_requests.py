"""Requests that a server must refuse, each with words of the answer it must give: for the tests, and for `benchmarks.serving`."""

import base64
import io
import json

import numpy as np
import soundfile

JSON_TYPE = "application/json"
BOUNDS = {"max_audio_s": 4.0, "max_request_mb": 1.0, "max_inputs": 3, "max_beam_size": 4}  # of the server that they are sent to


def body(records: object, **more: object) -> bytes:
    """A request of records."""
    return json.dumps({"dataframe_records": records} | more).encode()


def wav(seconds: float, rate: int = 16_000) -> bytes:
    """A tone."""
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(int(seconds * rate)) / 20), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def of_audio(audio: bytes, **params: object) -> bytes:
    """A request of one recording."""
    return body([{"audio": base64.b64encode(audio).decode()}], params=params)


GOOD = base64.b64encode(wav(0.3)).decode()
BAD_BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "spaces": (b"  \n", "empty"),
    "no JSON": (b"hello", "no JSON"),
    "half JSON": (b'{"dataframe_records": [', "no JSON"),
    "not UTF-8": (b"\xff\xfe{}", "no JSON"),
    "too deep": (b"[" * 100_000, "no JSON"),
    "a list": (b"[]", "is a list"),
    "a number": (b"3", "is a number"),
    "an empty object": (b"{}", "exactly one of"),
    "instances": (json.dumps({"instances": [{"audio": GOOD}]}).encode(), "unknown field 'instances'"),
    "both forms": (body([{"audio": GOOD}], dataframe_split={}), "exactly one of"),
    "records no list": (body({"audio": GOOD}), "must be a list"),
    "no recordings": (body([]), "0 recordings"),
    "too many recordings": (body([{"audio": GOOD}] * 4), "4 recordings in one request: must be between 1 and 3"),
    "no audio": (body([{"sound": GOOD}]), "dataframe_records[0] has no audio"),
    "another column": (body([{"audio": GOOD, "path": "x"}]), "unknown column 'path'"),
    "null": (body([{"audio": None}]), "audio 0 is null"),
    "a number as audio": (body([{"audio": 12}]), "audio 0 is a number"),
    "NaN as audio": (b'{"dataframe_records": [{"audio": NaN}]}', "audio 0 is a number"),
    "a list as audio": (body([{"audio": [1]}]), "audio 0 is a list"),
    "an empty text": (body([{"audio": ""}]), "audio 0 is empty"),
    "no base64": (body([{"audio": "!!!!"}]), "audio 0 is no base64"),
    "broken base64": (body([{"audio": GOOD[:-3]}]), "audio 0 is no base64"),
    "an address": (body([{"audio": "http://127.0.0.1/x.wav"}]), "paths and addresses are not opened"),
    "a file address": (body([{"audio": "file:///etc/passwd"}]), "paths and addresses are not opened"),
    "a path": (body([{"audio": "../../etc/passwd"}]), "paths and addresses are not opened"),
    "split without data": (json.dumps({"dataframe_split": {"columns": ["audio"]}}).encode(), "columns and data"),
    "split with two columns": (json.dumps({"dataframe_split": {"columns": ["audio", "b"], "data": [[GOOD, 1]]}}).encode(), "unknown column 'b'"),
    "split with audio twice": (json.dumps({"dataframe_split": {"columns": ["audio", "audio"], "data": []}}).encode(), "unknown column 'audio'"),
    "split rows too long": (json.dumps({"dataframe_split": {"columns": ["audio"], "data": [[GOOD, 1]]}}).encode(), "every row"),
    "split with a wrong index": (json.dumps({"dataframe_split": {"columns": ["audio"], "data": [[GOOD]], "index": [1, 2]}}).encode(), "index"),
    "params a list": (body([{"audio": GOOD}], params=[1]), "params must be an object"),
    "unknown parameter": (body([{"audio": GOOD}], params={"temperature": 1}), "unknown parameter 'temperature': there are beam_size, language, top_k"),
    "top_k a text": (body([{"audio": GOOD}], params={"top_k": "2"}), "top_k='2': must be a whole number"),
    "top_k true": (body([{"audio": GOOD}], params={"top_k": True}), "top_k=True"),
    "top_k negative": (body([{"audio": GOOD}], params={"top_k": -1}), "top_k=-1"),
    "top_k NaN": (b'{"dataframe_records": [{"audio": "AAAA"}], "params": {"top_k": NaN}}', "top_k=nan"),
    "too many beams": (body([{"audio": GOOD}], params={"beam_size": 5}), "beam_size=5: must be a whole number, between 1 and 4"),
    "no beams": (body([{"audio": GOOD}], params={"beam_size": 0}), "beam_size=0"),
    "language a number": (body([{"audio": GOOD}], params={"language": 3}), "language=3"),
    "routing a text": (body([{"audio": GOOD}], params={"return_routing": "no"}), "return_routing='no': must be true or false"),
}  # fmt: skip

BAD_AUDIO: dict[str, tuple[bytes, str]] = {
    "text as audio": (of_audio(b"no sound at all"), "audio 0 cannot be used: unreadable"),
    "a playlist as audio": (of_audio(b"#EXTM3U\n/etc/passwd\n"), "audio 0 cannot be used: unreadable"),
    "half a wav": (of_audio(wav(0.3)[:4000]), "audio 0 cannot be used: truncated"),
    "a wav without samples": (of_audio(wav(0.0)), "audio 0 cannot be used: empty"),
    "too long": (of_audio(wav(5.0)), "audio 0 cannot be used: too long"),
    "too long together": (body([{"audio": base64.b64encode(wav(3.0, 8000)).decode()}] * 2), "audio 1 cannot be used: too long"),
    "an absurd sampling rate": (of_audio(wav(0.1, 384_000)), "sampling rate of 384000 Hz"),
    "more experts than there are": (of_audio(wav(0.3), top_k=99), "the number of experts"),
    "an unknown language": (of_audio(wav(0.3), language="xx"), "language='xx': the model knows"),
    "larger than allowed": (b" " * (1 << 20) + b"{}", "larger than 1 MiB"),
    "far larger than allowed": (b"x" * (20 << 20), "larger than 1 MiB"),
}
BAD_TYPES = ("text/csv", "application/vnd.apache.parquet", "text/plain", "application/x-www-form-urlencoded")


def bad_requests() -> dict[str, tuple[bytes, str, str]]:
    """Name → body, content type, and words of the answer."""
    found = {name: (data, JSON_TYPE, said) for name, (data, said) in (BAD_BODIES | BAD_AUDIO).items()}
    return found | {
        f"content type {kind}": (b"audio\n/etc/passwd\n", kind, f"content type {kind}: must be") for kind in BAD_TYPES
    }
