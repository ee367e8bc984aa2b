"""Utterances that cannot be used, each with its id, its reason and a detail: nothing is dropped in silence.

Some reasons show in the listing (transcript, id), some only when the audio is decoded (`moe.corpora.validation` calls `inspect_audio` in
its workers), some when all utterances are known (duplicate audio).
"""

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe.audio.waveforms import AudioError, decode_recording, is_silent
from moe.corpora.locations import OutsideRoot, Root
from moe.corpora.manifest import read_bytes

REASONS = {
    "missing_file": "no such file, member or row",
    "outside_root": "the path leads out of the corpus (absolute, `..`, a link, an unsafe tar member)",
    "unreadable": "no decoder can read the audio",
    "truncated": "the audio ends before its header says",
    "absurd_header": "the header claims an impossible rate, length or number of channels",
    "empty": "the audio has no samples",
    "non_finite": "a sample is NaN or infinite",
    "silent": "the audio never leaves its mean by more than −60 dBFS",
    "too_short": "shorter than min_duration_s",
    "too_long": "longer than max_duration_s",
    "missing_transcript": "there is no transcript, or it is not text",
    "empty_transcript": "the transcript is empty, or is so after normalising",
    "duplicate_id": "another utterance has the same id",
    "duplicate_audio": "another utterance has the same samples",
    "infeasible_ctc": "fewer frames than labels and repeats: no CTC alignment exists",
    "bad_shard": "a shard is damaged",
    "bad_metadata": "a JSON or another file of metadata is damaged",
    "bad_row": "a row of a table is damaged",
}
COLUMNS = ("utterance_id", "audio", "reason", "detail")
SHOWN = 5  # files named in a message


@dataclass(frozen=True, slots=True)
class Inspected:
    """What decoding showed: seconds and digest of the samples, or a reason against their use; the channel, where one was taken."""

    duration_s: float = float("nan")
    audio_digest: str | None = None
    reason: str | None = None
    detail: str | None = None
    channel: str | None = None


class QuarantineLimitError(ValueError):
    """More of the corpus is unusable than `max_quarantined` allows; `quarantine` and `files` are the tables of what."""

    def __init__(self, quarantine: pd.DataFrame, files: pd.DataFrame, n_listed: int, max_quarantined: float) -> None:
        n_all = n_listed + int(files["n_lost"].sum())
        super().__init__(f"max_quarantined={max_quarantined:g}: {unused_text(quarantine, files, n_all)}")
        self.quarantine, self.files = quarantine, files


def unused_text(quarantine: pd.DataFrame, files: pd.DataFrame, n_all: int) -> str:
    """How many of the utterances that were there cannot be used, why, the first of them, and which files are missing as a whole."""
    n_unused = len(quarantine) + int(files["n_lost"].sum())
    counts = quarantine["reason"].value_counts().add(files.groupby("reason")["n_lost"].sum(), fill_value=0).astype(int)
    kinds = ", ".join(f"{n} {reason}" for reason, n in counts[counts > 0].sort_values(ascending=False, kind="stable").items())
    firsts = [f"first {row.utterance_id!r}: {row.detail}" for row in quarantine.head(1).itertuples()]
    firsts += [f"{'first ' * (not firsts)}{row.file}: {row.detail}" for row in files[files["n_lost"] > 0].head(1).itertuples()]
    return "; ".join([f"{n_unused} of {n_all} utterances cannot be used ({kinds})", *firsts, *missing_text(files)])


def missing_text(files: pd.DataFrame) -> list[str]:
    """A sentence that names whole contributors or shards that could not be read, if there are any."""
    whole = list(dict.fromkeys(files.loc[files["reason"] != "bad_row", "file"]))
    more = f" and {len(whole) - SHOWN} more" if len(whole) > SHOWN else ""
    return [f"whole files are missing, with their speakers: {', '.join(whole[:SHOWN])}{more}"] if whole else []


def mark(table: pd.DataFrame, where: pd.Series | np.ndarray, reason: str, detail: str | pd.Series) -> None:
    """Give the rows of a listing that `where` (n_rows,) marks a reason and a detail, in place; a row that has a reason keeps its first."""
    assert reason in REASONS, reason
    where = np.asarray(where, dtype=bool) & table["reason"].isna().to_numpy()
    table.loc[where, "reason"] = reason
    table.loc[where, "detail"] = detail if isinstance(detail, str) else detail[where]


def mark_transcripts(table: pd.DataFrame) -> None:
    """Mark missing and torn transcripts, and those that are empty as they are or as `reference` (the normalised form)."""
    mark(table, table["transcript"].isna(), "missing_transcript", "no transcript")
    torn = table["transcript"].str.contains("\0", regex=False, na=False)
    mark(table, torn, "bad_row", "the transcript holds NUL characters: its file is damaged here")
    mark(table, table["transcript"].str.strip() == "", "empty_transcript", "the transcript is blank")
    mark(
        table,
        table["reference"].fillna("") == "",
        "empty_transcript",
        "nothing is left after normalising " + table["transcript"].map(repr),
    )


def mark_duplicate_ids(table: pd.DataFrame) -> None:
    """Mark every further utterance of an id; the first by audio, member and transcript among the usable ones is kept."""
    usable = table["reason"].isna()
    double = table.index[usable][table.loc[usable, "utterance_id"].duplicated()]
    first = table[usable].drop_duplicates("utterance_id").set_index("utterance_id")["audio"]
    mark(table, table.index.isin(double), "duplicate_id", "the id is also that of " + table["utterance_id"].map(first).fillna(""))


def mark_duplicate_audio(table: pd.DataFrame) -> None:
    """Mark every further utterance with the same samples; the first by id is kept."""
    usable = table["reason"].isna()
    double = table.index[usable][table.loc[usable, "audio_digest"].duplicated()]
    first = table[usable].drop_duplicates("audio_digest").set_index("audio_digest")["utterance_id"]
    mark(table, table.index.isin(double), "duplicate_audio", "the same samples as " + table["audio_digest"].map(first).fillna(""))


def mark_infeasible(table: pd.DataFrame, frames_per_s: float) -> None:
    """Mark utterances whose frames are fewer than the labels of their reference and the repeats among them.

    CTC needs a blank between equal neighbours (Graves et al. 2006, Connectionist Temporal Classification). Labels are characters.
    """
    needed = table["reference"].map(ctc_frames_needed, na_action="ignore").fillna(0)
    frames = (table["duration_s"] * frames_per_s).fillna(np.inf)
    detail = frames.map(lambda n: f"{n:.0f}") + " frames for " + needed.astype(int).astype(str) + " labels and repeats"
    mark(table, np.floor(frames) < needed, "infeasible_ctc", detail)


def ctc_frames_needed(reference: str) -> int:
    """The fewest frames by which CTC can write a text: its characters plus its equal neighbours."""
    return len(reference) + sum(one == other for one, other in itertools.pairwise(reference))


def quarantine_table(table: pd.DataFrame) -> pd.DataFrame:
    """utterance_id, audio, reason, detail of the marked rows, sorted by id."""
    marked = table.loc[table["reason"].notna(), list(COLUMNS)]
    return marked.sort_values(["utterance_id", "audio"], kind="stable", ignore_index=True)


def check_limit(quarantine: pd.DataFrame, files: pd.DataFrame, n_listed: int, max_quarantined: float) -> None:
    """Refuse a corpus of which too large a share is unusable: quarantined, or never listed since its file or row could not be read.

    Raises:
        QuarantineLimitError: the share is above `max_quarantined`, or nothing at all is left.
    """
    n_lost = int(files["n_lost"].sum())
    n_unused, n_all = len(quarantine) + n_lost, n_listed + n_lost
    if n_unused and (n_unused > max_quarantined * n_all or n_unused == n_all):
        raise QuarantineLimitError(quarantine, files, n_listed, max_quarantined)


def inspect_audio(
    root: Root, audio: str, member: str | None, min_duration_s: float, max_duration_s: float, channels: str = "mix"
) -> Inspected:
    """Decode one utterance and judge it; never raises for what a file may hold."""
    try:
        data = read_bytes(root, {"audio": audio, "member": member})
        return inspect_bytes(data, min_duration_s, max_duration_s, channels)
    except AudioError as error:
        return Inspected(reason=error.reason, detail=error.detail)
    except OutsideRoot as error:
        return Inspected(reason="outside_root", detail=str(error))
    except FileNotFoundError as error:
        return Inspected(reason="missing_file", detail=str(error))
    except (OSError, ValueError, EOFError, MemoryError) as error:
        return Inspected(reason="unreadable", detail=f"{type(error).__name__}: {error}")


def inspect_bytes(data: bytes, min_duration_s: float, max_duration_s: float, channels: str = "mix") -> Inspected:
    """Decode encoded audio and judge it by its samples."""
    try:
        recording = decode_recording(data, max_duration_s, channels)
    except AudioError as error:
        return Inspected(reason=error.reason, detail=error.detail)
    waveform, rate = recording.waveform, recording.rate
    duration_s = len(waveform) / rate
    if duration_s < min_duration_s:
        return Inspected(duration_s, reason="too_short", detail=f"{duration_s:.3f} s (min_duration_s={min_duration_s:g})")
    if is_silent(waveform):
        return Inspected(duration_s, reason="silent", detail=f"{duration_s:.3f} s of silence")
    return Inspected(
        duration_s, audio_digest(waveform, rate), channel=None if recording.channel is None else str(recording.channel)
    )


def audio_digest(waveform: np.ndarray, rate: int) -> str:
    """Digest of decoded samples (n_samples,) at their own rate: the same for a wav and its flac."""
    digest = hashlib.blake2b(str(rate).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(waveform, dtype="<f4").tobytes())
    return digest.hexdigest()
