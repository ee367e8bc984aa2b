"""Served transcripts are those of the recogniser alone, whoever else is asking."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moe.audio.waveforms import load_audio
from moe.experts.people.person import Person
from moe.recognition.recognizer import WaveformSet
from moe.serving.people import Served
from moe.serving.requests import Asked, RequestError, ServiceOptions
from moe.serving.service import Service, settings
from moe.system import DecodingOptions
from moe.systems.whisper_moe.asks import MixtureAsk, WhisperAsk
from moe.training.batches import collate
from tests.toys.corpora import RATE
from tests.toys.models import HALF, N_EXPERTS, toy_wave
from tests.toys.recognizers import recognizer
from tests.toys.registry import toy_recording

OPTIONS = ServiceOptions(max_audio_s=8.0, max_tokens_per_s=2.0, max_inputs=3)
PLAIN = OPTIONS.part(DecodingOptions)
NOTHING = Asked(MixtureAsk())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    return Service(recognizer(tmp_path_factory.mktemp("base")), OPTIONS)


def test_concurrent_requests_get_what_each_alone_would_get(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths, beams and top-k differ; answers must not depend on the company, and passes must be shared."""
    jobs = [
        (toy_recording(n, (0.5, 0.6, 3.1)[n % 3]), Asked(MixtureAsk(top_k=(None, 1)[n // 4 % 2]), 1 + n % 2)) for n in range(16)
    ]
    alone = [
        service.recognizer.transcribe(
            [load_audio(data)], DecodingOptions(**vars(PLAIN) | {"beam_size": asked.beam_size}), asked.ask
        )[0]
        for data, asked in jobs
    ]
    sizes, plain = [], service.recognizer.recognise
    monkeypatch.setattr(service.recognizer, "recognise", lambda chunks, *rest: sizes.append(len(chunks)) or plain(chunks, *rest))
    barrier = threading.Barrier(len(jobs))

    def ask(job: tuple[bytes, Asked]) -> object:
        barrier.wait()
        return service.answer([job[0]], job[1])[0].transcript

    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(ask, jobs))
    assert [each.text for each in together] == [each.text for each in alone]
    assert [len(each.segments) for each in together] == [len(each.segments) for each in alone]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.routing_weights, other.routing_weights, atol=HALF)
        assert one.confidence == pytest.approx(other.confidence, abs=HALF)
    assert max(sizes) > 1 and len(sizes) < sum(sizes)


def test_an_answer_holds_text_confidence_weights_segments_and_timing(service: Service) -> None:
    (answer,) = service.answer([toy_recording(1, 5.0)], NOTHING)
    row = answer.as_row(True)
    assert set(row) == {
        "text", "confidence", "no_speech", "expert_weights", "expert_use", "personal", "segments", "words", "timing",
    }  # fmt: skip
    assert (
        0 < row["confidence"] <= 1 and len(row["expert_weights"]) == N_EXPERTS and sum(row["expert_weights"]) == pytest.approx(1)
    )
    assert row["timing"]["audio_s"] == 5.0 and row["timing"]["seconds"] > 0
    assert len(row["segments"]) >= 3 and row["segments"][0]["start_s"] == 0 and row["segments"][-1]["end_s"] == 5.0
    assert all(set(segment) == {"start_s", "end_s", "text", "confidence", "no_speech"} for segment in row["segments"])
    assert answer.as_row(False)["expert_weights"] == []


def test_several_recordings_in_one_request_come_back_in_order(service: Service) -> None:
    found = service.answer([toy_recording(n, s) for n, s in ((1, 0.5), (2, 1.5), (3, 0.7))], NOTHING)
    assert [answer.audio_s for answer in found] == [0.5, 1.5, 0.7]


@pytest.mark.parametrize(
    ("recordings", "asked", "said"),
    [
        ([], NOTHING, "0 recordings"),
        ([toy_recording()] * 4, NOTHING, "4 recordings"),
        ([b"noise"], NOTHING, "audio 0 cannot be used: unreadable"),
        ([toy_recording(), b""], NOTHING, "audio 1 is empty"),
        ([toy_recording(0, 8.5)], NOTHING, "too long"),
        ([toy_recording(0, 5.0)] * 2, NOTHING, "audio 1 cannot be used: too long"),
        ([toy_recording(0, 8.0)] * 2, NOTHING, "too long together"),
        ([toy_recording()], Asked(MixtureAsk(top_k=N_EXPERTS + 1)), f"between 1 and {N_EXPERTS}"),
        ([toy_recording()], Asked(MixtureAsk(language="xx")), "language='xx': the model knows en"),
        (["/etc/passwd"], NOTHING, "paths and addresses are not opened"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(service: Service, recordings: list, asked: Asked, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        service.answer(recordings, asked)


def test_a_request_that_is_refused_leaves_the_next_alone(service: Service) -> None:
    before = service.answer([toy_recording(4)], NOTHING)[0].transcript
    with pytest.raises(RequestError):
        service.answer([b"x" * 1000], NOTHING)
    assert service.answer([toy_recording(4)], NOTHING)[0].transcript == before


def test_the_body_is_checked_against_the_model_too(service: Service) -> None:
    with pytest.raises(RequestError, match="the number of experts"):
        service.check(b'{"dataframe_records": [{"audio": "AAAA"}], "params": {"top_k": 99}}')


def test_the_language_asked_for_is_in_the_prompt_and_only_for_that_call(tmp_path: Path) -> None:
    """A second language token is given to the toy: asking for it changes what the decoder starts from."""
    one = recognizer(tmp_path)
    base = one.system.module.base
    config = base.generation_config
    config.lang_to_id = {"<|en|>": config.lang_to_id["<|en|>"], "<|nl|>": 65}
    assert one.system.languages == ("en", "nl")
    fed = []
    hook = base.model.decoder.embed_tokens.register_forward_pre_hook(lambda module, args: fed.append(args[0][0].tolist()))
    for language in (None, "en", "nl", None):
        one.transcribe([toy_wave(1, 0.5)[: RATE // 2]], PLAIN, MixtureAsk(language=language))
    hook.remove()
    prompts = [tokens[1] for tokens in fed if len(tokens) in (4,) and tokens[0] == config.decoder_start_token_id]
    assert len(set(prompts)) == 2 and prompts[0] == prompts[-1] and 65 in prompts
    assert base.generation_config is config and config.language == "en"


def test_a_configuration_is_how_it_is_served_and_what_is_asked_where_a_request_says_nothing() -> None:
    config = {"beam_size": 3, "max_inputs": 2, "language": "nl"}
    assert settings(config | {"top_k": 1}, MixtureAsk) == (ServiceOptions(beam_size=3, max_inputs=2), MixtureAsk("nl", 1))
    assert settings({"fp16": True}, MixtureAsk)[0] == ServiceOptions(fp16=True)
    assert settings(config, WhisperAsk) == (ServiceOptions(beam_size=3, max_inputs=2), WhisperAsk("nl"))
    with pytest.raises(ValueError, match="the configuration has top_k: there are batch_window_ms, .*language"):
        settings(config | {"top_k": 1}, WhisperAsk)


def test_a_speaker_where_nobody_is_served_is_refused(service: Service) -> None:
    with pytest.raises(RequestError, match="speaker='ann': nobody has anything of their own here"):
        service.answer([toy_recording(1, 0.6)], Asked(MixtureAsk(), speaker="ann"))


def test_people_and_nobody_share_a_pass_and_each_gets_their_own(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    system = service.recognizer.system
    layout = system.layout(("q_proj",), 2)
    person = Person(
        "ann", layout, layout.new(1, "ann") + 0.5 * torch.randn(layout.n_numbers, generator=torch.Generator().manual_seed(1))
    )

    class Somebody:
        def of(self, name: str) -> Served:
            return Served(person, "expert", Path())

    monkeypatch.setattr(service, "people", Somebody())
    audio = toy_recording(1, 0.6)
    sizes, plain = [], service.recognizer.recognise
    alone = [plain([load_audio(audio)], PLAIN, MixtureAsk(), [each])[0] for each in (person, None)]
    monkeypatch.setattr(service.recognizer, "recognise", lambda chunks, *rest: sizes.append(len(chunks)) or plain(chunks, *rest))
    barrier = threading.Barrier(8)

    def ask(number: int) -> object:
        barrier.wait()
        return service.answer([audio], Asked(MixtureAsk(), speaker="ann" if number % 2 else None))[0]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert max(sizes) > 1
    for number, answer in enumerate(answers):
        expected = alone[0] if number % 2 else alone[1]
        assert answer.personal == ("expert" if number % 2 else "")
        assert math.log(answer.transcript.confidence) == pytest.approx(expected.mean_logprob, abs=HALF)
    assert system.people == []


def test_a_voice_that_is_recognised_gets_its_own_and_another_one_nobodys(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two recordings in one request the profile is of one."""
    system = service.recognizer.system
    layout = system.layout(("q_proj",), 2)
    noise = torch.randn(layout.n_numbers, generator=torch.Generator().manual_seed(1))
    person = Person("ann", layout, layout.new(1, "ann") + 0.5 * noise)
    recordings = [toy_recording(number, 0.6) for number in (1, 2)]
    embedding = service.recognizer.embedding(load_audio(recordings[0]))
    assert embedding.shape == system.embed(batch_of_wave(service, recordings[0]))[0].shape

    class Voices:
        def check(self) -> None:
            pass

        def whose(self, other: torch.Tensor) -> Served | None:
            return Served(person, "expert", Path()) if torch.equal(other, embedding) else None

    asked = Asked(MixtureAsk(), speaker="auto")
    monkeypatch.setattr(service, "people", SimpleNamespace(of=lambda name: pytest.fail("asked for by name")))
    monkeypatch.setattr(service, "voices", Voices())
    found = service.answer(recordings, asked)
    assert [answer.personal for answer in found] == ["expert", ""]
    waves = [load_audio(each) for each in recordings]
    alone = [
        service.recognizer.recognise([wave], PLAIN, MixtureAsk(), [each])[0]
        for wave, each in zip(waves, (person, None), strict=True)
    ]
    for answer, expected in zip(found, alone, strict=True):
        assert math.log(answer.transcript.confidence) == pytest.approx(expected.mean_logprob, abs=HALF)


def batch_of_wave(service: Service, recording: bytes) -> dict:
    """A recording as a batch of one."""
    chunks = WaveformSet([load_audio(recording)], service.recognizer.system.inputs)
    return collate(chunks, [chunks[0]])


def test_a_confidence_is_asked_for_only_where_voices_are_recognised() -> None:
    with pytest.raises(ValueError, match="speaker_confidence=0.5: needs speaker_auto=true"):
        ServiceOptions(speaker_confidence=0.5)
    assert ServiceOptions(speaker_auto=True, speaker_confidence=0.5).speaker_confidence == 0.5
