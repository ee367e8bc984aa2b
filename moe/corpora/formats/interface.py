"""What a corpus format is asked and what it gives.

One `FoundUtterance` per utterance, one `Fault` per file that could not be read, in any order.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from moe.options import Options, option

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class FoundUtterance:
    """An utterance as the corpus lists it, before any audio is read.

    Attributes:
        utterance_id: unique within the corpus and stable.
        audio: file or shard, relative to the corpus root.
        member: the key inside a shard; None for a file.
        transcript: raw, as the corpus writes it; None where it has none.
        split: the corpus's own name of it; empty where it has none.
        further: more columns of the corpus.
        fault: a reason and its detail, where the listing already shows that the utterance cannot be used.
    """

    utterance_id: str
    audio: str
    member: str | None = None
    transcript: str | None = None
    speaker: str = ""
    etiology: str = ""
    severity: float = math.nan
    split: str = ""
    language: str = ""
    further: dict[str, Any] = field(default_factory=dict)
    fault: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A file of the corpus (shard, JSON, row of a table) that could not be read, so that its utterances are not known."""

    file: str
    reason: str
    detail: str


@dataclass(frozen=True)
class CorpusOptions(Options):
    """Where a corpus is and how its columns are called."""

    dataset_root: str | None = option(
        None, "root of the corpus (sap: the folder with Train and Dev), an fsspec address, or a Hugging Face dataset's name",
        common=True,
    )
    audio_column: str | None = option(None, "column of the audio (none: path, file_name or audio)")
    transcript_column: str | None = option(None, "column of the transcript (none: transcript, transcription, text or sentence)")
    speaker_column: str | None = option(None, "column of the speaker (none: speaker, speaker_id or client_id)")
    etiology_column: str | None = option(
        None, "column of the stratum that errors are reported by (none: etiology, group or domain)"
    )
    severity_column: str | None = option(None, "column of the severity, a number (none: severity)")
    split_column: str | None = option(None, "column of the corpus's own split (none: split)")
    speaker_pattern: str | None = option(
        None, "regular expression that finds the speaker in an utterance id, for corpora without a column"
    )
    hf_config: str | None = option(None, "configuration of a Hugging Face dataset")
    language: str = option("en", "language of the utterances whose corpus names none", common=True)
