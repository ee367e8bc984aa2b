"""The synthetic corpus on disk: options in, a folder of FLAC files with `manifest.csv` out, rendered on all cores.

Same options, same samples and tables, whatever the number of workers and the order in which they finish. The folder appears whole or not at all.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import soundfile

from moe.corpora.tables import write_table
from moe.files import file_digest, write_json, write_whole_dir
from moe.progress import progress
from moe.synthesis.effects import SAMPLE_RATE
from moe.synthesis.enrolment import ENROLMENT, part
from moe.synthesis.planning import WEBDATASET, SpeakerPlan, SynthesisOptions, plan
from moe.synthesis.rendering import Rendering, render
from moe.synthesis.shards import pack

N_TAKES = 2  # renderings of one sentence before the next candidate is tried
LABEL = "synthetic"
NOTE = "Synthetic speech (espeak-ng). The styles are caricatures of acoustic signatures, not clinical models."
PACKAGES = ("espeakng-loader", "numpy", "scipy", "soxr", "soundfile")

OnProgress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class SynthesisSummary:
    """What was made: counts, hours, how many renderings were too long and drawn again, and the digest of audio and manifest."""

    n_utterances: int
    n_speakers: int
    n_sentences: int
    n_redrawn: int
    duration_h: float
    digest: str


def synthesize(options: SynthesisOptions, folder: Path, on_progress: OnProgress | None = None) -> SynthesisSummary:
    """Make the corpus of `options` in `folder` (replaced if it is there).

    Writes audio/*.flac (16 kHz, 16 bit), or shards of them, manifest.csv, SOURCE.json and, with `options.alignments`, alignments.parquet
    (utterance_id, starts in samples, phonemes). `on_progress(n_done, n_total)` is called as speakers are finished.

    Raises:
        ValueError: no rendering of an utterance is short enough, or the grammar has too few sentences.
        RuntimeError: espeak-ng refused.
    """
    plans = plan(options)
    with write_whole_dir(folder) as aside:
        (aside / "audio").mkdir()
        rows = pd.DataFrame(_rendered(plans, options, aside, on_progress)).sort_values("utterance_id", ignore_index=True)
        rows = part(rows, options.n_test_utterances, aside) if options.n_enrolment_utterances else rows
        summary = _write_tables(options, rows, aside)
        if options.format == WEBDATASET:
            pack(aside)
    return summary


def _rendered(plans: list[SpeakerPlan], options: SynthesisOptions, folder: Path, on_progress: OnProgress | None) -> list[dict]:
    rows, n_total = [], sum(len(each.candidates) for each in plans)
    with progress("synthesize", n_total, "utterances") as bar:
        for speaker_rows in _by_speaker(plans, options, folder):
            rows += speaker_rows
            bar.update(len(speaker_rows))
            if on_progress:
                on_progress(len(rows), n_total)
    return rows


def _by_speaker(plans: list[SpeakerPlan], options: SynthesisOptions, folder: Path) -> Iterator[list[dict]]:
    n_workers = min(options.n_workers or joblib.cpu_count(), len(plans))
    task = functools.partial(render_speaker, options=options, folder=folder)
    if n_workers == 1:
        yield from map(task, plans)
        return
    # joblib's processes, unlike multiprocessing's spawned ones, do not import the program that started them
    parallel = joblib.Parallel(n_jobs=n_workers, return_as="generator_unordered", batch_size=1)
    yield from parallel(joblib.delayed(task)(each) for each in plans)


def render_speaker(plan: SpeakerPlan, options: SynthesisOptions, folder: Path) -> list[dict]:
    """Render and write all utterances of one speaker; their rows of the manifest, with the phonemes where asked for."""
    return [_utterance(plan, index, options, folder) for index in range(len(plan.candidates))]


def _utterance(plan: SpeakerPlan, index: int, options: SynthesisOptions, folder: Path) -> dict:
    text, rendering, n_redrawn = _short_enough(plan, index, options.synthetic_max_s)
    speaker, utterance_id = plan.speaker, f"{plan.speaker.name}_{index:03d}"
    path = f"audio/{utterance_id}.flac"
    soundfile.write(folder / path, rendering.samples, SAMPLE_RATE, subtype="PCM_16")
    row = {
        "utterance_id": utterance_id,
        "path": path,
        "transcript": text,
        "speaker": speaker.name,
        "etiology": speaker.etiology,
        "severity": round(speaker.severity, 3),
        "split": plan.split,
        "language": options.synthetic_language,
        "duration_s": round(rendering.duration_s, 4),
        "voice": speaker.voice,
        "reserved_voice": plan.is_reserved_voice,
        "n_redrawn": n_redrawn,
    }
    aligned = {"starts": rendering.phoneme_starts, "phonemes": rendering.phonemes} if options.alignments else {}
    return row | aligned


def _short_enough(plan: SpeakerPlan, index: int, synthetic_max_s: float) -> tuple[str, Rendering, int]:
    """The first rendering that is short enough, its sentence, and how many before it were not."""
    takes = [(text, take) for text in plan.candidates[index] for take in range(N_TAKES)]
    for n_redrawn, (text, take) in enumerate(takes):
        rendering = render(plan.speaker, text, index, take)
        if rendering.duration_s <= synthetic_max_s:
            return text, rendering, n_redrawn
    raise ValueError(
        f"synthetic_max_s={synthetic_max_s}: {len(takes)} renderings of utterance {index} by {plan.speaker.name} are all longer "
        f"(the last {rendering.duration_s:.2f} s)"
    )


def _write_tables(options: SynthesisOptions, rows: pd.DataFrame, folder: Path) -> SynthesisSummary:
    if options.alignments:
        write_table(folder / "alignments.parquet", rows[["utterance_id", "starts", "phonemes"]])
    manifest = rows.drop(columns=["starts", "phonemes"], errors="ignore")
    in_train = set(manifest.loc[manifest["split"] == "train", "transcript"])
    manifest = manifest.assign(sentence_seen=manifest["transcript"].isin(in_train), synthetic=True)
    manifest.drop(columns="n_redrawn").to_csv(folder / "manifest.csv", index=False)
    summary = SynthesisSummary(
        n_utterances=len(manifest),
        n_speakers=manifest["speaker"].nunique(),
        n_sentences=manifest["transcript"].nunique(),
        n_redrawn=int(manifest["n_redrawn"].sum()),
        duration_h=round(float(np.sum(manifest["duration_s"])) / 3600, 4),
        digest=_digest(folder, manifest["path"]),
    )
    write_json(folder / "SOURCE.json", _source(options, summary))
    return summary


def _source(options: SynthesisOptions, summary: SynthesisSummary) -> dict:
    """Where the corpus comes from. The number of workers is left out: it changes nothing."""
    parameters = {name: text for name, text in options.as_parameters().items() if name != "n_workers"}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"kind": LABEL, "note": NOTE, "options": parameters, "versions": versions, "made": dataclasses.asdict(summary)}


def _digest(folder: Path, paths: pd.Series) -> str:
    """SHA-256 over the digests of the manifest, of every audio file in its order, and of what is there to enrol with."""
    enrolment = sorted(path.relative_to(folder).as_posix() for path in (folder / ENROLMENT).rglob("*") if path.is_file())
    digests = [file_digest(folder / path) for path in ["manifest.csv", *paths, *enrolment]]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
