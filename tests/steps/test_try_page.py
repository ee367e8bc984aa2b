"""The page to try recognisers: what can be chosen, what is shown, and, where Gradio and a browser are there, the page itself."""

import dataclasses
import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from moe.recognition.recognizer import Segment, Transcript
from moe.system import read_record, write_record
from steps import register, try_page
from steps.registry import versions
from steps.tracking import artifacts, runs
from steps.tracking.store import connect
from tests.toys.registry import (
    BETTER,
    ToyOptions,
    log_toy_asr,
    log_toy_evaluation,
    log_toy_rivals,
    toy_recording,
    write_toy_model,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def champion(store: Path, tmp_path: Path) -> str:
    """A registered champion: the id of its run."""
    asr = log_toy_asr(tmp_path)
    register.run(
        register.StepOptions(evaluate_run_ids=",".join([log_toy_evaluation(asr, BETTER), *log_toy_rivals(asr)]), n_resamples=100)
    )
    versions.promote("whisper-moe", "1")
    return asr


def test_champions_come_first_then_the_models_of_runs(champion: str) -> None:
    found = try_page.choices()
    assert found[0] == try_page.Choice("whisper-moe 1 champion", "models:/whisper-moe/1")
    assert [each.reference for each in found[1:]] == [champion] and found[1].title.startswith("Whisper-MoE · ")


def test_people_are_no_recognisers_and_are_not_listed(champion: str) -> None:
    client = connect().client
    client.create_registered_model("whisper-moe.person.anna")
    client.create_model_version("whisper-moe.person.anna", client.get_run(champion).info.artifact_uri, champion)
    assert not [choice for choice in try_page.choices() if "anna" in choice.title]
    assert try_page.base_of(try_page.choices()) == try_page.NOTHING


def test_the_newest_champion_comes_first(champion: str) -> None:
    client = connect().client
    client.create_registered_model("zulu-moe")
    client.create_model_version("zulu-moe", client.get_model_version("whisper-moe", "1").source, champion)
    versions.promote("zulu-moe", "1")
    assert [each.title for each in try_page.choices()[:2]] == ["zulu-moe 1 champion", "whisper-moe 1 champion"]


def test_what_is_shown_of_a_transcript() -> None:
    text, routing, segments = try_page.shown(
        Transcript("one two", (Segment(0.0, 1.25, "one two", 0.5), Segment(1.25, 2.0, "", 0.0, True)), (0.75, 0.25), 0.5)
    )
    assert text == "one two" and routing == {"expert 0": 0.75, "expert 1": 0.25}
    assert segments.to_numpy().tolist() == [["0.00 s", "1.25 s", "one two", "0.50", ""], ["1.25 s", "2.00 s", "", "0.00", "yes"]]
    assert try_page.shown(Transcript("", (), (), 0.0, True))[:2] == ("(nobody speaks)", None)


def test_without_gradio_or_recognisers_it_says_what_to_do(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_gradio = importlib.util.find_spec("gradio") is not None
    monkeypatch.setattr(try_page.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the page needs gradio: pip install -r requirements-try.txt"):
        try_page.page(try_page.TryOptions())
    monkeypatch.setattr(try_page.importlib.util, "find_spec", lambda name: name)
    if has_gradio:
        with pytest.raises(ValueError, match="there is no recogniser yet: `make demo`"):
            try_page.page(try_page.TryOptions())


def test_a_file_that_is_dropped_is_transcribed_by_both(champion: str, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from gradio_client import Client, handle_file

    path = tmp_path / "a.wav"
    path.write_bytes(toy_recording(1, 1.2))
    blocks = try_page.page(try_page.TryOptions(speech_threshold=0.0))
    _, place, _ = blocks.launch(prevent_thread_lock=True, server_name="127.0.0.1", share=False, quiet=True)
    try:
        titles = [choice.title for choice in try_page.choices()]
        client = Client(place, verbose=False)
        found = client.predict(handle_file(path), titles[0], "", try_page.NOTHING, "", api_name="/transcribe")
        expected = try_page.transcribe("models:/whisper-moe/1", str(path), 0.0)
        with pytest.raises(ValueError, match="nobody of that name|has no experts of people"):
            try_page.transcribe("models:/whisper-moe/1", str(path), 0.0, "nobody")
        assert found[0] == expected.text and len(found[2]["data"]) == 1 and not found[3]
        if CHROMIUM:
            command = [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--virtual-time-budget=20000",
                "--dump-dom",
                place,
            ]
            dom = subprocess.run(command, capture_output=True, text=True, timeout=180).stdout
            assert "Try a recogniser" in dom and "Transcribe" in dom and titles[0] in dom
    finally:
        blocks.close()


def test_the_base_model_is_shown_beside(store: Path, tmp_path: Path) -> None:
    folder = write_toy_model(tmp_path / "base", 0)
    write_record(folder, dataclasses.replace(read_record(folder), role="base"))
    with runs.step_run("baseline", ToyOptions()) as step:
        step.log_folder(folder, artifacts.MODEL)
    given = [try_page.Choice("one", log_toy_asr(tmp_path)), try_page.Choice("base", step.run_id)]
    assert try_page.base_of(given) == "base" and try_page.base_of(given[:1]) == try_page.NOTHING
