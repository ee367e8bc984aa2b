"""A real `mlflow models serve`: it answers, it refuses in one sentence, and it outlives whatever it is sent."""

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import torch
from mlflow.cli import cli

from benchmarks.bad_requests import BOUNDS, bad_requests
from moe.audio.waveforms import load_audio
from moe.experts.people.folders import PersonRecord, save_person
from moe.experts.people.person import Person
from moe.files import folder_digest
from moe.recognition.recognizer import Recognizer
from moe.system import DecodingOptions
from moe.systems.table import load_system
from steps import register
from steps.registry import people
from steps.tracking import artifacts
from steps.tracking.store import connect
from tests.toys.pages import ROOT, blocks
from tests.toys.registry import WRONG, log_toy_asr, log_toy_evaluation, log_toy_rivals, toy_recording, toy_store
from tests.toys.speech import spoken_wav

pytestmark = pytest.mark.slow
SERVING = ROOT / "docs" / "compare-register-serve.md"
URI = "models:/whisper-moe@champion"
HEADERS = {"Content-Type": "application/json"}


class Server:
    """A served model and what it takes to ask it."""

    def __init__(self, port: int, process: subprocess.Popen, model: Path) -> None:
        self.place, self.process = f"http://127.0.0.1:{port}", process
        self.model, self.recognizer = model, Recognizer.on_fastest_device(load_system(model))

    def post(self, body: bytes, headers: dict[str, str] = HEADERS) -> tuple[int, dict]:
        request = urllib.request.Request(f"{self.place}/invocations", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def ask(self, audio: bytes, **params: object) -> tuple[int, dict]:
        return self.post(json.dumps(request_of(audio, **params)).encode())

    def lives(self) -> bool:
        with urllib.request.urlopen(f"{self.place}/ping", timeout=600) as answer:
            return answer.status == 200 and self.process.poll() is None

    def expected(self, audio: bytes, options: DecodingOptions = DecodingOptions(max_tokens_per_s=2.0)) -> str:
        return self.recognizer.transcribe([load_audio(audio)], options)[0].text


def request_of(audio: bytes, **params: object) -> dict:
    return {"dataframe_records": [{"audio": base64.b64encode(audio).decode()}], "params": params}


def environment() -> dict[str, str]:
    """`--env-manager local` starts the first python on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {
        "PATH": path,
        "SERVING_MODEL_CONFIG": json.dumps(BOUNDS | {"speech_threshold": 0.0, "people_refresh_s": 0.0}),
    }  # the toys are no speech


@pytest.fixture(scope="module")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serving")
    with toy_store(empty_store, folder / "store"):
        asr = log_toy_asr(folder)
        evaluations = [log_toy_evaluation(asr, WRONG), *log_toy_rivals(asr)]
        register.run(register.StepOptions(evaluate_run_ids=",".join(evaluations), n_resamples=100))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "models",
            "serve",
            "-m",
            URI,
            "--env-manager",
            "local",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        ]
        with (
            open(folder / "server.log", "w") as log,
            subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True) as process,
        ):
            found = Server(port, process, artifacts.upstream(asr, "model"))
            try:
                wait_for(found, folder / "server.log")
                yield found
            finally:
                os.killpg(process.pid, 15)


def wait_for(server: Server, log: Path) -> None:
    for _ in range(1200):
        assert server.process.poll() is None, log.read_text()[-3000:]
        try:
            if server.lives():
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(log.read_text()[-3000:])


def test_a_form_is_answered_and_health_says_what_is_served(server: Server, tmp_path: Path) -> None:
    """The form as `requests` and so as OpenAI's own client sends it; the curl line of the docs, word for word but for the port."""
    audio = toy_recording(3, 2.6)
    place, sent = f"{server.place}/v1/audio/transcriptions", {"model": "whisper-moe", "response_format": "verbose_json"}
    answer = requests.post(place, data=sent, files={"file": ("a.wav", audio, "audio/wav")}, timeout=600)
    assert answer.status_code == 200 and answer.json()["text"] == server.expected(audio)
    refused = requests.post(place, data={"language": "xx"}, files={"file": ("a.wav", audio)}, timeout=600)
    assert refused.status_code == 400 and "language='xx'" in refused.json()["message"]
    health = requests.get(f"{server.place}/health", timeout=600).json()
    assert health["status"] == "ok" and health["system"] == "whisper_moe"
    (tmp_path / "a.wav").write_bytes(audio)
    lines = [line for line in blocks(SERVING, "bash") if "/v1/audio/transcriptions" in line or "printf" in line]
    assert len(lines) == 2
    for line in lines:
        here = line.replace("localhost:5001", server.place.removeprefix("http://"))
        done = subprocess.run(["bash", "-c", here], cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert server.expected(audio) in done.stdout, done.stderr


@pytest.mark.parametrize("container", ["wav", "flac", "mp3", "ogg"])
def test_a_recording_comes_back_as_the_recogniser_alone_has_it(server: Server, container: str) -> None:
    audio = toy_recording(3, 2.6, container)
    status, answer = server.ask(audio)
    assert status == 200, answer
    (row,) = answer["predictions"]
    assert row["text"] == server.expected(audio) and len(row["segments"]) == 2
    assert (
        0 < row["confidence"] <= 1 and sum(row["expert_weights"]) == pytest.approx(1, abs=1e-5) and row["timing"]["audio_s"] > 2.5
    )


def test_parameters_reach_the_model(server: Server) -> None:
    status, answer = server.ask(toy_recording(2), top_k=1, beam_size=3, language="en", return_routing=True)
    assert status == 200 and max(answer["predictions"][0]["expert_weights"]) == 1.0
    status, answer = server.ask(toy_recording(2), return_routing=False)
    assert status == 200 and answer["predictions"][0]["expert_weights"] == []


def test_clients_at_once_get_their_own_answers(server: Server) -> None:
    recordings = [toy_recording(number, 0.4 + 0.3 * (number % 4)) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(server.ask, recordings))
    assert [status for status, _ in answers] == [200] * 12
    assert [answer["predictions"][0]["text"] for _, answer in answers] == [server.expected(audio) for audio in recordings]


def refused(server: Server, body: bytes, said: str, headers: dict[str, str] = HEADERS) -> None:
    status, answer = server.post(body, headers)
    assert status == 400 and set(answer) >= {"error_code", "message"}, answer
    assert (
        said in answer["message"]
        and "\n" not in answer["message"]
        and len(answer["message"]) < 300
        and "Traceback" not in str(answer)
    )


def test_every_bad_request_is_a_400_in_one_sentence_and_the_server_lives(server: Server) -> None:
    for data, kind, said in bad_requests().values():
        refused(server, data, said, {"Content-Type": kind})
    assert server.lives() and server.ask(toy_recording())[0] == 200


def test_a_client_that_hangs_up_disturbs_nobody(server: Server) -> None:
    host, _, port = server.place.removeprefix("http://").partition(":")
    for sent in (
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{",
        b"\x00\xff" * 50,
    ):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
    assert server.lives() and server.ask(toy_recording())[0] == 200


def test_mlflow_models_predict_gives_the_same(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio = spoken_wav()  # `predict` takes no configuration, so the voice-activity gate is on
    (tmp_path / "request.json").write_text(json.dumps(request_of(audio, top_k=1)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", environment()["PATH"])
    cli.main(["models", "predict", "-m", URI, "--env-manager", "local", "-i", "request.json", "-t", "json", "-o", "answer.json"],
             standalone_mode=False)  # fmt: skip
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["predictions"][0]["text"] == server.ask(audio, top_k=1)[1]["predictions"][0]["text"]


PEOPLE = ("ann", "bob", "zoe")


def enrol(server: Server, name: str, number: int, digest: str) -> Person:
    """Somebody with an expert that says something, in a run of their own and in the registry."""
    layout = server.recognizer.system.layout(("q_proj", "v_proj"), 2)
    person = Person(
        name,
        layout,
        layout.new(number, name) + 0.5 * torch.randn(layout.n_numbers, generator=torch.Generator().manual_seed(number)),
    )
    record = PersonRecord(name, digest, "expert", ("q_proj", "v_proj"), 2, (3, 2, 5))
    store = connect()
    run_id = store.client.create_run(store.experiment_id, tags={people.PERSON_TAG: name}).info.run_id
    with tempfile.TemporaryDirectory() as folder:
        save_person(Path(folder) / "person", person, record)
        store.client.log_artifacts(run_id, str(Path(folder) / "person"), people.FOLDER)
    store.client.set_terminated(run_id, "FINISHED")
    people.register_person("whisper-moe", "models:/whisper-moe", run_id, record)
    return person


def test_people_get_their_own_experts_text_at_once_and_are_gone_when_they_ask(server: Server) -> None:
    digest = folder_digest(server.model)
    own = {name: enrol(server, name, number, digest) for number, name in enumerate(PEOPLE)}
    enrol(server, "old", 9, "the digest of the champion before")
    recordings = [toy_recording(number, 0.4 + 0.3 * (number % 4)) for number in range(4)]
    options = DecodingOptions(max_tokens_per_s=2.0)
    jobs = [(audio, name) for audio in recordings for name in (*PEOPLE, None)] * 2

    def expected(audio: bytes, name: str | None) -> str:
        return server.recognizer.transcribe([load_audio(audio)], options, people=[None if name is None else own[name]])[0].text

    wanted = {job: expected(*job) for job in set(jobs)}
    assert len(set(wanted.values())) > 4  # their experts say different things
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda job: server.ask(job[0], **({} if job[1] is None else {"speaker": job[1]})), jobs))
    for job, (status, answer) in zip(jobs, answers, strict=True):
        (row,) = answer["predictions"]
        assert status == 200 and row["text"] == wanted[job] and row["personal"] == ("" if job[1] is None else "expert")

    status, answer = server.ask(recordings[0], speaker="old")
    assert status == 409 and "enrolled with another recogniser" in answer["message"] and "\n" not in answer["message"]
    for name in ("nobody", "../ann", "auto", 7):
        status, answer = server.ask(recordings[0], speaker=name)
        assert status == 400 and not any(each in answer["message"].replace(str(name), "") for each in PEOPLE)
    people.forget("ann")
    assert server.ask(recordings[0], speaker="ann")[0] == 400
    assert server.ask(recordings[0], speaker="bob")[1]["predictions"][0]["text"] == wanted[recordings[0], "bob"]
