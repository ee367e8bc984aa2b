"""Forms as clients of OpenAI's API send them: every format of the answer, and one sentence for what cannot be done."""

import dataclasses
import json
from collections.abc import Iterator

import pytest

from moe.recognition.cues import cues
from moe.recognition.transcript_files import to_srt, to_vtt
from moe.serving.requests import RequestError, ServiceOptions
from moe.serving.service import Service
from moe.serving.transcriptions import FORMATS, Reply, read_form, transcribe_form
from moe.system import DecodingOptions
from tests.toys.models import HALF, toy_wave
from tests.toys.recognizers import recognizer
from tests.toys.registry import toy_recording

BOUNDARY = "Xx--yY"
END = f"--{BOUNDARY}--\r\n".encode()
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
AUDIO = toy_recording(2, 3.0)  # longer than the window


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    found = Service(recognizer(tmp_path_factory.mktemp("base")), ServiceOptions(max_tokens_per_s=4.0))
    yield found
    found.close()


def form(file: bytes | None = AUDIO, **fields: str) -> bytes:
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    if file is not None:
        head = b'Content-Disposition: form-data; name="file"; filename="a b.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        parts.append(head + file)
    return b"".join(f"--{BOUNDARY}\r\n".encode() + part + b"\r\n" for part in parts) + END


def ask(service: Service, **fields: str) -> Reply:
    return transcribe_form(service, form(**fields), TYPE)


def test_a_file_arrives_byte_for_byte_whatever_is_in_it() -> None:
    data = bytes(range(256)) * 10_000 + b"\r\n--Xx--y\r\n\r\n--"
    found = read_form(form(data, model="any", language="en"), TYPE)
    assert found.file == data and found.fields == {"model": ["any"], "language": ["en"]}


@pytest.mark.parametrize("fields", [{}, {"language": "en", "model": "whisper-1", "temperature": "0"}])
def test_the_text_is_that_of_the_recogniser(service: Service, fields: dict[str, str]) -> None:
    (expected,) = service.recognizer.transcribe([toy_wave(2, 3.0)], DecodingOptions(max_tokens_per_s=4.0))
    reply = ask(service, **fields)
    assert json.loads(reply.body) == {"text": expected.text} and reply.content_type == "application/json"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(service: Service, name: str) -> None:
    options = DecodingOptions(max_tokens_per_s=4.0, word_times=name != "text")
    (expected,) = service.recognizer.transcribe([toy_wave(2, 3.0)], options)
    text = ask(service, response_format=name, **{"timestamp_granularities[]": "word"}).body.decode()
    if name in ("json", "verbose_json"):
        found = json.loads(text)
        assert found["text"] == expected.text
    if name == "verbose_json":
        assert [word["word"] for word in found["words"]] == [word.word for word in expected.words]
        assert [(each["start"], each["end"]) for each in found["segments"]] == [
            (segment.start_s, segment.end_s) for segment in expected.segments
        ]
        assert found["duration"] == 3.0 and found["language"] == "en" and len(found["segments"]) == 2
        assert found["expert_weights"] == pytest.approx(expected.routing_weights, abs=HALF)
        assert found["expert_use"] == [] and found["personal"] == ""
    assert name != "srt" or text == to_srt(expected, {}) and text.count("-->") == len(cues(expected))
    assert name != "vtt" or text == to_vtt(expected, {})
    assert name != "text" or text.split() == expected.text.split()


def test_words_are_timed_where_the_server_does_so_unless_a_form_says_otherwise(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "options", dataclasses.replace(service.options, word_times=True))
    timed, plain = (
        json.loads(ask(service, response_format="verbose_json", **fields).body) for fields in ({}, {"word_times": "false"})
    )
    assert timed["words"] and "words" not in plain and timed["text"] == plain["text"]


def test_what_the_system_can_be_asked_can_be_asked_in_a_form(service: Service) -> None:
    weights = json.loads(ask(service, response_format="verbose_json", top_k="1", beam_size="2").body)["expert_weights"]
    assert max(weights) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (form(None, model="x"), "the form has no file"),
        (form(b""), "audio 0 is empty"),
        (form(b"no sound"), "audio 0 cannot be used"),
        (form(response_format="xml"), "response_format='xml': must be one of json, verbose_json, text, srt, vtt"),
        (form(prompt="a medical letter"), "prompt='a medical letter': the model takes none"),
        (form(temperature="0.7"), "temperature='0.7'"),
        (form(langauge="en"), "unknown field 'langauge': there are file,"),
        (form(language="xx"), "language='xx': the model knows en"),
        (form(speaker="ben"), "speaker='ben': nobody has anything of their own here"),
        (form(top_k="many"), "top_k='many'"),
        (form(top_k="9"), "top_k=9: must be between 1 and 4"),
        (form(**{"timestamp_granularities[]": "letter"}), "must be word or segment"),
        (form().replace(b'name="file"', b'name="audio"'), "unknown file 'audio'"),
        (form().replace(END, b"") + form(), "the form has 2 files"),
        (b"{}", "the request is no multipart/form-data"),
        (form()[:-40], "no file|no multipart"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(service: Service, body: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        transcribe_form(service, body, TYPE)


def test_without_a_boundary_it_is_no_form(service: Service) -> None:
    with pytest.raises(RequestError, match="no multipart/form-data"):
        transcribe_form(service, form(), "multipart/form-data")
