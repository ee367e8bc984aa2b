"""Entry point `transcribe`: a recording or a folder of them → transcripts as files, with any recogniser of this project.

Interrupted, it goes on where it was: start the same command again. A file that cannot be read is listed with its reason and stops nothing.

Example:
    mlflow run . --env-manager local -e transcribe -P audio=RECORDINGS -P output_dir=TRANSCRIPTS -P format=srt
"""

import dataclasses
import time
from pathlib import Path

import pandas as pd

from analysis.report import markdown_table
from moe.audio.channels import CHANNELS, CHANNELS_HELP
from moe.audio.voice_activity import SPEECH_THRESHOLD, THRESHOLD_HELP
from moe.files import folder_digest
from moe.options import option
from moe.progress import progress
from moe.recognition.recognizer import Recognizer
from moe.recognition.transcript_files import WRITERS
from moe.recognition.transcription import FAILED, SKIPPED, WRITTEN, Outcome, Transcription, find_recordings
from moe.system import DecodingOptions, read_record
from moe.systems.table import load_system
from steps.options.ask_options import AskOptions, ask_of
from steps.registry import versions
from steps.tracking import runs
from steps.tracking.step_run import StepRun

MOST_LISTED = 20  # failures printed; the run's table has them all


@dataclasses.dataclass(frozen=True)
class StepOptions(AskOptions, DecodingOptions):
    """Transcribe recordings."""

    audio: str = option(help="recording, or folder of recordings (with the folders in it)")
    model: str = option(
        "models:/whisper-moe@champion", "models:/NAME@ALIAS, models:/NAME/VERSION, id of a run with a model, or its folder"
    )
    output_dir: str = option("transcripts", "folder to write to")
    language: str | None = option(None, "language code (none: the one the model was trained for)")
    channels: str = option("mix", CHANNELS_HELP, choices=CHANNELS)
    speech_threshold: float = option(SPEECH_THRESHOLD, THRESHOLD_HELP, low=0, high=1)
    format: str = option("json", "format of the transcripts", choices=tuple(WRITERS))


def run(options: StepOptions) -> str:
    """Transcribe, log the table of results and return the run id."""
    with runs.step_run("transcribe", options, f"transcribe · {Path(options.audio).name}") as step:
        source = Path(options.audio).expanduser().absolute()
        recordings = find_recordings(source)
        folder = versions.recognizer_dir(options.model)
        ask, decoding = ask_of(options, read_record(folder)), options.part(DecodingOptions)
        recognizer = Recognizer.on_fastest_device(load_system(folder), options.speech_threshold)
        recognizer.system.check(ask)
        transcription = Transcription(
            lambda waveforms: recognizer.transcribe(waveforms, decoding, ask),
            Path(options.output_dir).expanduser(),
            options.format,
            f"{folder_digest(folder)} {decoding} {ask} {options.speech_threshold} {options.channels}",
            options.channels,
        )
        started = time.perf_counter()
        outcomes = _with_bar(transcription, recordings, source if source.is_dir() else source.parent)
        _log(step, options, outcomes, time.perf_counter() - started)
    return step.run_id


def _with_bar(transcription: Transcription, recordings: list[Path], root: Path) -> list[Outcome]:
    outcomes = []
    with progress("transcribe", len(recordings), "recordings") as bar:
        for outcome in transcription.run(recordings, root):
            outcomes.append(outcome)
            bar.update()
    return sorted(outcomes, key=lambda outcome: outcome.audio)


def _log(step: StepRun, options: StepOptions, outcomes: list[Outcome], seconds: float) -> None:
    table = pd.DataFrame(map(dataclasses.asdict, outcomes))
    counts = {status: int((table["status"] == status).sum()) for status in (WRITTEN, SKIPPED, FAILED)}
    audio_s = float(table.loc[table["status"] == WRITTEN, "audio_s"].sum())
    n_silent = int(table["no_speech"].sum())
    metrics = {
        "n_recordings": len(table),
        **{f"n_{status}": n for status, n in counts.items()},
        "n_no_speech": n_silent,
        "audio_seconds": audio_s,
        "seconds": seconds,
    }
    step.log_metrics(metrics | ({"real_time_factor": seconds / audio_s} if audio_s else {}))
    for ending in ("json", "csv"):
        step.log_table(table, f"tables/transcripts.{ending}")
    failed = table.loc[table["status"] == FAILED, ["audio", "reason"]]
    words = ", ".join(f"{n} {status}" for status, n in counts.items()) + (f", nobody speaks in {n_silent}" if n_silent else "")
    n_single = int(table["channel"].notna().sum())
    words += f", of {n_single} one channel is taken" if n_single else ""
    for row in failed.head(MOST_LISTED).itertuples():
        print(f"failed: {row.audio}: {row.reason}", flush=True)
    if len(failed) > MOST_LISTED:
        print(f"failed: {len(failed) - MOST_LISTED} more, listed in the run's tables/transcripts.json", flush=True)
    print(f"{len(table)} recordings: {words}; transcripts in {options.output_dir}", flush=True)
    shown = f"\n\n{markdown_table(failed.head(MOST_LISTED))}" if len(failed) else ""
    step.describe(
        f"## Transcribed {len(table)} recordings with {options.model}\n{words}; {audio_s:.0f} s of audio in {seconds:.0f} s.{shown}"
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
