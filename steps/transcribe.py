"""Entry point `transcribe`: a recording or a folder of them → transcripts as files, with any recogniser of this project.

Interrupted, it goes on where it was: start the same command again. A file that cannot be read is listed with its reason and stops nothing.

Example:
    mlflow run . --env-manager local -e transcribe -P audio=RECORDINGS -P output_dir=TRANSCRIPTS -P format=srt
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.report import markdown_table
from moe.audio.channels import CHANNELS, CHANNELS_HELP
from moe.audio.voice_activity import SPEECH_THRESHOLD, THRESHOLD_HELP
from moe.experts.people.person import AUTO_SPEAKER
from moe.files import folder_digest
from moe.options import option
from moe.progress import progress
from moe.recognition.recognizer import Recognizer, Transcript
from moe.recognition.transcript_files import WRITERS
from moe.recognition.transcription import FAILED, SKIPPED, WRITTEN, Outcome, Transcription, find_recordings, groups_of
from moe.serving.people import Find, Served, ServedPeople, enrolled
from moe.system import Ask, DecodingOptions, Record, read_record
from moe.systems.table import load_system
from moe.training import blocks, processes
from moe.training.precision import PrecisionOptions, precision
from moe.training.processes import ProcessOptions
from steps.inputs.people import PERSONAL
from steps.options.ask_options import AskOptions, ask_of
from steps.registry import people, versions
from steps.tracking import runs
from steps.tracking.step_run import StepRun

MOST_LISTED = 20  # failures printed; the run's table has them all


@dataclasses.dataclass(frozen=True)
class StepOptions(AskOptions, DecodingOptions, PrecisionOptions, ProcessOptions):
    """Transcribe recordings."""

    audio: str = option(help="recording, or folder of recordings (with the folders in it)")
    model: str = option(
        "models:/whisper-moe@champion", "models:/NAME@ALIAS, models:/NAME/VERSION, id of a run with a model, or its folder"
    )
    output_dir: str = option("transcripts", "folder to write to")
    language: str | None = option(None, "language code (none: the one the model was trained for)")
    channels: str = option("mix", CHANNELS_HELP, choices=CHANNELS)
    speech_threshold: float = option(SPEECH_THRESHOLD, THRESHOLD_HELP, low=0, high=1)
    speaker: str | None = option(None, "person who speaks, with whose expert it is transcribed (none: nobody's)")
    speakers_file: str | None = option(
        None, "CSV with the columns audio and speaker: who speaks in which recording below `audio`"
    )
    format: str = option("json", "format of the transcripts", choices=tuple(WRITERS))
    word_times: bool = option(True, "say when each word was said, where the system can, and when somebody speaks")

    def as_parameters(self) -> dict[str, str]:
        """As logged: of who speaks, a digest."""
        return people.without_names(super().as_parameters(), people.NAMING)

    def faults(self) -> list[str]:
        """One speaker and a table of speakers; nobody is recognised by their voice."""
        found = ["speaker and speakers_file: give one of them"] if self.speaker and self.speakers_file else []
        return found + (
            [f"speaker={AUTO_SPEAKER}: a server recognises voices, `transcribe` takes names"]
            if self.speaker == AUTO_SPEAKER
            else []
        )


def run(options: StepOptions) -> str:
    """Transcribe, log the table of results and return the run id."""
    return runs.in_run("transcribe", options, _work, f"transcribe · {Path(options.audio).name}")


def _work(step: StepRun, options: StepOptions) -> None:
    source = Path(options.audio).expanduser().absolute()
    recordings = find_recordings(source)
    folder = versions.recognizer_dir(options.model)
    record = read_record(folder)
    ask = ask_of(options, record)
    root = source if source.is_dir() else source.parent
    by_speaker = _by_speaker(options, recordings, root)
    digest, names = folder_digest(folder), [name for name in by_speaker if name is not None]
    find = _finder(options, record, digest, names)
    computed = options.part(PrecisionOptions)
    recognizer = Recognizer.on_fastest_device(load_system(folder), options.speech_threshold, computed)
    recognizer.system.check(ask, options.beam_size)
    served, started = _enrolled(recognizer.system, digest, names, find), time.perf_counter()
    transcriptions = {name: _transcription(options, recognizer, ask, digest, served.get(name)) for name in by_speaker}
    outcomes = outcomes_of(transcriptions, by_speaker, root, runs.work_dir(step))
    if processes.number() == 0:
        _log(step, options, outcomes, time.perf_counter() - started)


def outcomes_of(
    transcriptions: Mapping[str | None, Transcription], by_speaker: Mapping[str | None, list[Path]], root: Path, work_dir: Path
) -> list[Outcome]:
    """What became of every recording, by name, whichever process transcribed it.

    Raises:
        RuntimeError: recordings that failed twice, but for those that cannot be read or recognised: they are outcomes.
    """
    recordings = [path for theirs in by_speaker.values() for path in theirs]
    groups = [(name, group) for name, theirs in by_speaker.items() for group in groups_of(theirs)]
    own = {number: [path.relative_to(root).as_posix() for path in groups[number][1]] for number in blocks.dealt(len(groups))}
    made: dict[int, list[Outcome]] = {}
    with progress("transcribe", sum(map(len, own.values())), "recordings") as bar:

        def do(number: int) -> None:
            (name, group), made[number] = groups[number], []
            for outcome in transcriptions[name].run(group, root, recordings):
                made[number].append(outcome)
                bar.update()

        blocks.do_each(own, do, work_dir)
    found = [outcome for share in processes.gathered(made) for outcomes in share.values() for outcome in outcomes]
    return sorted(found, key=lambda outcome: outcome.audio)


def _transcription(options: StepOptions, recognizer: Recognizer, ask: Ask, digest: str, served: Served | None) -> Transcription:
    """What transcribes the recordings of one speaker, or of nobody in particular, with the recogniser of a digest."""
    decoding, person = options.part(DecodingOptions), None if served is None else served.person

    def recognise(waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        return recognizer.transcribe(waveforms, decoding, ask, None if person is None else [person] * len(waveforms))

    own = "" if served is None else f" {folder_digest(served.folder)}"
    computed = precision(options.part(PrecisionOptions))
    settings = f"{digest} {decoding} {computed} {ask} {options.speech_threshold} {options.channels}{own}"
    return Transcription(recognise, Path(options.output_dir).expanduser(), options.format, settings, options.channels)


def _finder(options: StepOptions, record: Record, digest: str, names: Sequence[str]) -> Find:
    """Where people are; that everybody who speaks is enrolled with this recogniser is seen before it is loaded.

    Raises:
        ValueError: the system has no experts of people, nobody has a name, or they are enrolled with another recogniser.
    """
    if names and record.system not in PERSONAL:
        raise ValueError(f"speaker: {record.title} has no experts of people")
    registered = people.registered_of(options.model, record)

    def find(name: str) -> Path | None:
        return people.person_folder(registered, name)

    for name in names:
        enrolled(name, find, digest)
    return find


def _enrolled(system: Any, digest: str, names: Sequence[str], find: Find) -> dict[str | None, Served]:
    """Everybody who speaks, by name."""
    served = ServedPeople(system, digest, find, most=max(1, len(names)))
    return {name: served.of(name) for name in names}


def _by_speaker(options: StepOptions, recordings: list[Path], root: Path) -> dict[str | None, list[Path]]:
    """The recordings of each speaker, by the table or all of one.

    Raises:
        ValueError: the table cannot be read, or names a recording that is not there.
    """
    if options.speakers_file is None:
        return {options.speaker: recordings}
    try:
        table = pd.read_csv(options.speakers_file, dtype=str, keep_default_na=False)
        who = dict(zip(table["audio"], table["speaker"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"speakers_file={options.speakers_file}: needs the columns audio and speaker ({error})") from error
    names = {path.relative_to(root).as_posix(): path for path in recordings}
    if missing := sorted(set(who) - set(names)):
        raise ValueError(f"speakers_file={options.speakers_file}: no recording {missing[0]!r} below audio={options.audio}")
    found: dict[str | None, list[Path]] = {}
    for name, path in names.items():
        found.setdefault(who.get(name) or None, []).append(path)
    return found


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
        f"Transcribed {len(table)} recordings with {options.model}: {words}; {audio_s:.0f} s of audio in {seconds:.0f} s.{shown}"
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
