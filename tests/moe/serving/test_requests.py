"""Every request that is not one is refused in one clear sentence, before anything is decoded and without opening anything."""

import base64
import builtins
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.toys.corpora as toys
from benchmarks.bad_requests import BAD_BODIES, BOUNDS, body
from moe.audio.waveforms import load_audio
from moe.serving.requests import Asked, RequestError, ServiceOptions, as_bytes, check_body, check_params, decode
from moe.system import Ask
from moe.systems.whisper_moe.asks import MixtureAsk, WhisperAsk

OPTIONS, NOTHING = ServiceOptions(**BOUNDS), MixtureAsk()
WAV = toys.encode(toys.tone(1, 0.3))
GOOD = base64.b64encode(WAV).decode()


def refusal(data: bytes, usual: Ask = NOTHING) -> str:
    with pytest.raises(RequestError) as caught:
        check_body(data, OPTIONS, usual)
    said = str(caught.value)
    assert said and "\n" not in said and len(said) < 250
    return said


def test_a_request_in_either_form_is_taken_and_says_what_it_asks() -> None:
    params = {"top_k": 2, "language": "nl", "return_routing": False, "beam_size": 3}
    assert check_body(body([{"audio": GOOD}], params=params), OPTIONS, NOTHING) == Asked(MixtureAsk("nl", 2), 3, False)
    split = {"dataframe_split": {"columns": ["audio"], "index": [0, 1], "data": [[GOOD], [GOOD]]}}
    assert check_body(json.dumps(split).encode(), OPTIONS, NOTHING) == Asked(NOTHING)


def test_nothing_asked_is_the_decoding_that_was_evaluated() -> None:
    policy, usual = ServiceOptions(beam_size=5), MixtureAsk(top_k=3)
    assert check_params({}, policy, usual) == check_params(None, policy, usual) == Asked(usual, 5, True)
    assert check_params({"top_k": 0, "language": "auto"}, policy, usual) == Asked(usual, 5, True)
    assert check_params({"top_k": 1, "beam_size": 1}, policy, usual) == Asked(MixtureAsk(top_k=1), 1, True)


def test_only_what_the_system_takes_can_be_asked() -> None:
    """A base model and one LoRA have nothing to mix."""
    assert check_params({"language": "nl"}, OPTIONS, WhisperAsk()) == Asked(WhisperAsk("nl"))
    said = refusal(body([{"audio": GOOD}], params={"top_k": 1}), WhisperAsk())
    assert said == "unknown parameter 'top_k': there are beam_size, language, return_routing, word_times, speaker"


def test_base64_in_lines_is_base64() -> None:
    assert as_bytes(base64.encodebytes(WAV).decode(), 0) == WAV == as_bytes(bytearray(WAV), 0)


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_request_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "open", lambda *args, **names: pytest.fail(f"opened {args}"))
    data, said = BAD_BODIES[name]
    assert said in refusal(data)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=9), lambda x: st.lists(x) | st.dictionaries(st.sampled_from(
    ["dataframe_records", "dataframe_split", "params", "audio", "columns", "data", "top_k"]), x)))  # fmt: skip
def test_any_json_is_taken_or_refused_and_raises_nothing_else(value: object) -> None:
    try:
        check_body(json.dumps(value).encode(), OPTIONS, NOTHING)
    except RequestError:
        return


def test_what_is_said_back_of_a_huge_name_is_short() -> None:
    assert len(refusal(body([{"audio": GOOD}], params={"x" * 100_000: 1}))) < 200


class TestDecoding:
    @pytest.mark.parametrize("container", ["wav", "flac", "mp3", "ogg", "m4a"])
    def test_any_container_becomes_what_load_audio_makes_of_it(self, container: str) -> None:
        data = toys.encode(toys.tone(3, 0.5), container)
        np.testing.assert_array_equal(decode(data, 0, 2.0), load_audio(data))

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"just text, no sound", "audio 7 cannot be used: unreadable"),
            (b"#EXTM3U\n/etc/passwd\n", "unreadable"),
            (WAV[: len(WAV) // 2], "truncated"),
            (WAV[:44], "truncated"),
            (toys.encode(toys.tone(1, 3.0)), "too long"),
            (toys.encode(toys.tone(1, 0.1, 384_000), rate=384_000), "384000 Hz"),
            (toys.encode(np.full(1600, np.nan, np.float32), subtype="FLOAT"), "non finite"),
            (toys.encode(np.zeros(0, np.float32)), "empty"),
        ],
    )  # fmt: skip
    def test_what_is_no_audio_is_named(self, data: bytes, said: str) -> None:
        with pytest.raises(RequestError, match=said) as caught:
            decode(data, 7, 2.0)
        assert "\n" not in str(caught.value)

    def test_a_header_that_promises_hours_is_not_believed(self) -> None:
        huge = bytearray(WAV)
        struct.pack_into("<I", huge, 40, 0x70000000)  # no size that stands for "unknown"
        with pytest.raises(RequestError):
            decode(bytes(huge), 0, 2.0)


@pytest.mark.parametrize(("channels", "gain"), [("mix", -1.0), ("loudest", -1.0), ("first", 0.8)])
def test_a_server_takes_the_channel_that_it_is_set_to(channels: str, gain: float) -> None:
    voice = toys.tone(3, 0.5)
    data = toys.encode(np.stack([0.8 * voice, -voice], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(decode(data, 0, 8.0, ServiceOptions(channels=channels).channels), gain * voice, atol=1e-6)
