"""`POST /v1/audio/transcriptions`: a form with a file, as clients of OpenAI's API send it, answered by the same service.

A form has `file` and may have `model` (any name: one model is served), `language`, `response_format`, `timestamp_granularities[]`,
`speaker`, `beam_size` and what else the system can be asked. What would change the answer and cannot be done is refused.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, create_form_parser

from moe.options import from_text
from moe.recognition.recognizer import Transcript
from moe.recognition.transcript_files import WRITERS
from moe.serving.requests import SPEAKER, RequestError, check_params, shown
from moe.serving.service import Answer, Service

PATH = "/v1/audio/transcriptions"
FORM_TYPE = "multipart/form-data"
FILE, GRANULARITIES, FORMAT = "file", ("timestamp_granularities[]", "timestamp_granularities"), "response_format"
JSON, VERBOSE = "json", "verbose_json"
AS_FILES = {"text": "txt", "srt": "srt", "vtt": "vtt"}
FORMATS = (JSON, VERBOSE, *AS_FILES)
IGNORED = {"model"}
ONLY = {"temperature": ("0", "0.0"), "prompt": ("",), "stream": ("false",)}  # the values that change nothing
CURL = "curl localhost:5001/v1/audio/transcriptions -F file=@a.wav"


@dataclasses.dataclass(frozen=True)
class Form:
    """A form: its fields by name, each with all values that were sent, and the bytes of its file."""

    fields: Mapping[str, list[str]]
    file: bytes | None


@dataclasses.dataclass(frozen=True)
class Reply:
    """The body of an answer and its content type."""

    body: bytes
    content_type: str


def transcribe_form(service: Service, body: bytes, content_type: str) -> Reply:
    """The transcript of a form's file, in the format that it asks for.

    Raises:
        RequestError: what is wrong with the form, in one sentence.
    """
    form = read_form(body, content_type)
    if form.file is None:
        raise RequestError(f"the form has no {FILE}, for example {CURL}")
    response_format = _last(form, FORMAT) or JSON
    if response_format not in FORMATS:
        raise RequestError(f"{FORMAT}={shown(response_format)}: must be one of {', '.join(FORMATS)}")
    granularities = [value for name in GRANULARITIES for value in form.fields.get(name, [])]
    if strange := [value for value in granularities if value not in ("word", "segment")]:
        raise RequestError(f"{GRANULARITIES[0]}={shown(strange[0])}: must be word or segment")
    params = _params(service, form)
    if response_format in ("srt", "vtt") or "word" in granularities:
        params["word_times"] = True
    asked = check_params(params, service.options, service.usual)
    (answer,) = service.answer([form.file], asked)
    return _reply(answer, response_format, getattr(asked.ask, "language", None) or service.recognizer.system.record.language)


def read_form(body: bytes, content_type: str) -> Form:
    """The fields and the file of a form.

    Raises:
        RequestError: it is none, or has other files or two.
    """
    fields: dict[str, list[str]] = {}
    files: list[bytes] = []

    def on_field(field: Field) -> None:
        fields.setdefault(_decoded(field.field_name), []).append(_decoded(field.value))

    def on_file(file: File) -> None:
        if _decoded(file.field_name) != FILE:
            raise RequestError(f"the form has the unknown file {shown(_decoded(file.field_name))}: {FILE} is the only one")
        file.file_object.seek(0)
        files.append(file.file_object.read())

    try:
        config: Any = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}  # the body is in memory already
        parser = create_form_parser({"Content-Type": content_type.encode()}, on_field, on_file, config=config)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"the request is no {FORM_TYPE}: send something like {CURL}") from error
    if len(files) > 1:
        raise RequestError(f"the form has {len(files)} files: one is transcribed at a time")
    return Form(fields, files[0] if files else None)


def _params(service: Service, form: Form) -> dict[str, Any]:
    """The parameters of the form as a request's own, each of its kind."""
    kinds: dict[str, Any] = {"beam_size": int, "word_times": bool, SPEAKER: str}
    kinds |= {field.name: field.type for field in dataclasses.fields(service.usual)}
    known = {*kinds, *ONLY, *IGNORED, *GRANULARITIES, FORMAT}
    if unknown := sorted(set(form.fields) - known):
        allowed = ", ".join([FILE, *sorted(known - {GRANULARITIES[1]})])
        raise RequestError(f"unknown field {shown(unknown[0])}: there are {allowed}")
    for name, values in ONLY.items():
        if (given := _last(form, name)) not in (None, *values):
            raise RequestError(f"{name}={shown(given)}: the model takes none; leave it out")
    return {name: _value(name, text, kinds[name]) for name in kinds if (text := _last(form, name))}


def _value(name: str, text: str, kind: Any) -> Any:
    try:
        return from_text(text, kind)
    except ValueError as error:
        raise RequestError(f"{name}={shown(text)}: {error}") from error


def _last(form: Form, name: str) -> str | None:
    values = form.fields.get(name)
    return values[-1] if values else None


def _decoded(text: bytes | None) -> str:
    return (text or b"").decode("utf-8", "replace").strip()


def _reply(answer: Answer, response_format: str, language: str) -> Reply:
    if response_format in AS_FILES:
        kind = "text/vtt" if response_format == "vtt" else "text/plain"
        text = WRITERS[AS_FILES[response_format]](answer.transcript, {})
        return Reply(text.encode(), f"{kind}; charset=utf-8")
    value = {"text": answer.transcript.text} if response_format == JSON else _verbose(answer, language)
    return Reply(json.dumps(value, ensure_ascii=False).encode(), "application/json")


def _verbose(answer: Answer, language: str) -> dict[str, Any]:
    """The names of OpenAI's verbose_json, and what this project says beside them."""
    transcript = answer.transcript
    words = [
        {"word": each.word, "start": each.start_s, "end": each.end_s, "confidence": each.confidence} for each in transcript.words
    ]
    return {
        "task": "transcribe",
        "language": language,
        "duration": answer.audio_s,
        "text": transcript.text,
        "segments": _segments(transcript),
        **({"words": words} if words else {}),
        "confidence": transcript.confidence,
        "no_speech": transcript.no_speech,
        "expert_weights": list(transcript.routing_weights),
        "expert_use": [list(layer) for layer in transcript.expert_use],
        "personal": answer.personal,
    }


def _segments(transcript: Transcript) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "start": each.start_s,
            "end": each.end_s,
            "text": each.text,
            "avg_logprob": math.log(each.confidence) if each.confidence > 0 else None,
            "confidence": each.confidence,
            "no_speech": each.no_speech,
        }
        for number, each in enumerate(transcript.segments)
    ]
