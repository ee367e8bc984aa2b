"""A page on this machine to try recognisers: record or drop a file, see the text, the routing and the segments, beside the base model.

    make try                  python -m steps.try_page --port 7860

The page is Gradio's, an extra (requirements-try.txt). It listens on 127.0.0.1 alone, shares nothing and sends no statistics; recordings
are deleted from its temporary folder within two hours, and when the page ends. It is no step: nothing is logged.
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

from moe.audio.sources import waveform_of
from moe.audio.voice_activity import SPEECH_THRESHOLD, THRESHOLD_HELP
from moe.experts.people.person import Person
from moe.files import folder_digest
from moe.options import Options, option
from moe.recognition.recognizer import Recognizer, Transcript
from moe.serving.people import INFIX, ServedPeople
from moe.system import DecodingOptions, read_record
from moe.systems.table import load_system
from steps.inputs.people import PERSONAL
from steps.options.command_line import parse
from steps.registry import versions
from steps.registry.people import person_folder, registered_of
from steps.tracking import artifacts
from steps.tracking.store import connect

REQUIREMENTS = "requirements-try.txt"
MOST_RUNS, MOST_LOADED = 50, 4
NOTHING = "nothing"
SEGMENTS = ("from", "to", "text", "confidence", "nobody speaks")


@dataclasses.dataclass(frozen=True)
class TryOptions(Options):
    """A page to try recognisers on."""

    port: int = option(7860, "port of the page on this machine", low=1, high=65535)
    model: str | None = option(
        None, "model to begin with: models:/NAME@ALIAS, id of a run, or a folder (none: the newest champion)"
    )
    speech_threshold: float = option(SPEECH_THRESHOLD, THRESHOLD_HELP, low=0, high=1)
    open_browser: bool = option(True, "open the page in the browser")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A recogniser that can be chosen: its title on the page, and what `recognizer_dir` finds it by."""

    title: str
    reference: str


def choices() -> list[Choice]:
    """Registered versions, champions first, then the models of finished runs; each newest first."""
    return [*_registered(), *_of_runs()]


def _registered() -> list[Choice]:
    """Versions of recognisers; people are registered too, and are no recognisers."""
    connect()
    found = []
    for model in mlflow.search_registered_models():
        if INFIX in model.name:
            continue
        aliases = {str(version): alias for alias, version in (getattr(model, "aliases", None) or {}).items()}
        for version in mlflow.search_model_versions(filter_string=f"name='{model.name}'"):
            alias = aliases.get(str(version.version), "")
            choice = Choice(f"{model.name} {version.version} {alias}".strip(), f"models:/{model.name}/{version.version}")
            found.append((alias != versions.CHAMPION, -version.creation_timestamp, choice))
    return [choice for *_, choice in sorted(found, key=lambda each: each[:2])]


def _of_runs() -> list[Choice]:
    store, found = connect(), []
    for run in store.client.search_runs([store.experiment_id], "attributes.status = 'FINISHED'", max_results=MOST_RUNS):
        try:
            folder = artifacts.upstream(run.info.run_id, artifacts.MODEL)
            found.append(Choice(f"{read_record(folder).title} · {run.info.run_name} · {run.info.run_id[:8]}", run.info.run_id))
        except (RuntimeError, ValueError, MlflowException):
            continue  # a run without a model
    return found


def base_of(given: Sequence[Choice]) -> str:
    """The base model among the choices, to be shown beside a model; nothing where there is none."""
    return next((choice.title for choice in given if _role(choice) == "base"), NOTHING)


def _role(choice: Choice) -> str:
    return read_record(versions.recognizer_dir(choice.reference)).role


@functools.lru_cache(MOST_LOADED)
def recognizer(reference: str, speech_threshold: float) -> Recognizer:
    """A recogniser in memory; the last few stay there."""
    return Recognizer.on_fastest_device(load_system(versions.recognizer_dir(reference)), speech_threshold)


def transcribe(reference: str, audio: str, speech_threshold: float, speaker: str = "") -> Transcript:
    """The transcript of a recorded or dropped file, with what is the speaker's own where a person who is enrolled is named.

    Raises:
        ValueError: it is no recording, or nobody of that name is enrolled above this model.
    """
    loaded = recognizer(reference, speech_threshold)
    people = [_person(reference, loaded.system, speaker)] if speaker else None
    (found,) = loaded.transcribe([waveform_of(audio)], DecodingOptions(word_times=True), people=people)
    return found


def _person(reference: str, system: Any, name: str) -> Person:
    """What is a person's own above a recogniser."""
    if system.record.system not in PERSONAL:
        raise ValueError(f"speaker: {system.record.title} has no experts of people")
    registered, digest = registered_of(reference, system.record), folder_digest(versions.recognizer_dir(reference))
    return ServedPeople(system, digest, lambda each: person_folder(registered, each), most=1).of(name).person


def shown(transcript: Transcript) -> tuple[str, dict[str, float] | None, pd.DataFrame]:
    """Text, the share of each expert, and the segments as a table."""
    weights = {f"expert {number}": weight for number, weight in enumerate(transcript.routing_weights)}
    rows = [
        (f"{each.start_s:.2f} s", f"{each.end_s:.2f} s", each.text, f"{each.confidence:.2f}", "yes" if each.no_speech else "")
        for each in transcript.segments
    ]
    said = "(nobody speaks)" if transcript.no_speech else transcript.text
    return said, weights or None, pd.DataFrame(rows, columns=SEGMENTS)


def page(options: TryOptions) -> Any:
    """The page.

    Raises:
        ValueError: there is no recogniser, or Gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(f"the page needs gradio: pip install -r {REQUIREMENTS}")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported
    import gradio

    given = choices() if options.model is None else [Choice(options.model, options.model), *choices()]
    if not given:
        raise ValueError("there is no recogniser yet: `make demo` trains and registers one; or name one with --model")
    of_title = {choice.title: choice.reference for choice in given}
    titles = list(of_title)

    def recognise(audio: str | None, first: str, first_speaker: str, second: str, second_speaker: str) -> list[Any]:
        if audio is None:
            raise gradio.Error("Drop a file, or record something, first.")
        found: list[Any] = []
        for title, speaker in ((first, first_speaker), (second, second_speaker)):
            if title not in of_title:
                found += ("", None, None)
                continue
            try:
                found += shown(transcribe(of_title[title], audio, options.speech_threshold, speaker.strip()))
            except ValueError as error:
                raise gradio.Error(str(error)) from error
        return found

    with gradio.Blocks(title="Try a recogniser", delete_cache=(3600, 3600), analytics_enabled=False) as blocks:
        gradio.Markdown(
            "# Try a recogniser\nNothing leaves this machine. Drop a file, or choose the microphone and record something; then press *Transcribe*."
        )
        with gradio.Row():
            sources, buttons = ["upload", "microphone"], ["download"]  # by default one more button shares a recording on the hub
            audio = gradio.Audio(sources=sources, type="filepath", label="recording", buttons=buttons)
            with gradio.Column():
                button = gradio.Button("Transcribe", variant="primary")
        outputs: list[Any] = []
        with gradio.Row():
            first = _side(gradio, "model", titles, titles[0], outputs)
            second = _side(gradio, "model beside it", [*titles, NOTHING], base_of(given), outputs)
        button.click(recognise, [audio, *first, *second], outputs, api_name="transcribe")
    return blocks


def _side(gradio: Any, label: str, titles: list[str], value: str, outputs: list[Any]) -> tuple[Any, Any]:
    """One column: the model and the speaker that are chosen, the text, routing and segments."""
    with gradio.Column():
        model = gradio.Dropdown(titles, value=value, label=label)
        speaker = gradio.Textbox(label="speaker", placeholder="nobody, or the name of a person who is enrolled")
        outputs.append(gradio.Textbox(label="text", lines=3))
        outputs.append(gradio.Label(label="routing", num_top_classes=8))
        outputs.append(gradio.Dataframe(headers=list(SEGMENTS), label="segments", wrap=True))
    return model, speaker


def main() -> None:
    """Command line.

    Raises:
        SystemExit: there is no such recogniser, or Gradio is not installed.
    """
    options = parse(TryOptions)
    try:
        blocks = page(options)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"try: {error}") from error
    import gradio

    theme = gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )  # no font from elsewhere
    blocks.launch(
        server_name="127.0.0.1", server_port=options.port, inbrowser=options.open_browser, share=False, theme=theme,
        allowed_paths=[], footer_links=[],
    )  # fmt: skip


if __name__ == "__main__":
    main()
