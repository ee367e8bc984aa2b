"""What a corpus format is asked and what it gives.

One `FoundUtterance` per utterance, one `Fault` per file or row that could not be read, a `Note` where the reader decided something,
one `Read` per file that is not audio and was read; in any order.
"""

import math
import os
from dataclasses import dataclass, field
from typing import Any

from moe.audio.channels import CHANNELS, CHANNELS_HELP
from moe.corpora.locations import CorpusRoot, Root, is_address
from moe.corpora.shard_cache import ShardCacheOptions
from moe.options import listed, option

UNKNOWN = "unknown"
REFUSE, SHARDS = "refuse", "shards"
SHARD_SPEAKER = "shard "  # before the name of a shard that stands for its unknown speakers


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
        place_id: an id made of the place, where `utterance_id` comes from a column that may turn out to be no id of utterances.
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
    place_id: str = ""
    fault: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A file of the corpus (shard, JSON, row of a table) that could not be read, so that its utterances are not known.

    Attributes:
        n_lost: utterances that are missing by that: as many as are known of, else one.
    """

    file: str
    reason: str
    detail: str
    n_lost: int = 1


@dataclass(frozen=True, slots=True)
class Note:
    """What a reader decided and the user should know; it loses no utterance.

    Attributes:
        text: the same for all notes of a kind; `place` differs.
        place: file and line, or what else the note is about.
    """

    text: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """A file beside the audio (table, JSON, text) that was read."""

    file: str


Item = FoundUtterance | Fault | Note | Read


@dataclass(frozen=True)
class CorpusOptions(ShardCacheOptions):
    """Where a corpus is and how its columns are called."""

    dataset_root: str | None = option(
        None,
        "root of the corpus (sap: the folder with Train and Dev), an fsspec address, or a Hugging Face dataset's name",
        common=True,
    )
    trusted_root: str | None = option(
        None,
        "folders outside dataset_root that links and absolute paths may lead into, divided by commas (a hub cache: its folder)",
    )
    id_column: str | None = option(None, "column of the utterance id (none: utterance_id or id, where it tells utterances apart)")
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
    plain_domain: str | None = option(
        None, "etiology of a split's folder that names no domain, beside one that does: train beside train_normal (webdataset)"
    )
    unknown_speakers: str = option(
        REFUSE,
        "utterances without a speaker: refuse them where splits need speakers, or hold out whole shards, so that speakers may leak",
        choices=(REFUSE, SHARDS),
    )
    samples_per_shard: int = option(1000, "utterances of a shard as the progress of listing guesses them; all are counted", low=1)
    hf_config: str | None = option(None, "configuration of a Hugging Face dataset")
    channels: str = option("mix", CHANNELS_HELP, choices=CHANNELS)
    language: str = option("en", "language of the utterances whose corpus names none", common=True)

    def root_of(self, folder: str) -> Root:
        """The root of a corpus in this folder, with what is trusted beside it.

        Raises:
            ValueError: a trusted folder is not there.
        """
        trusted = trusted_folders(self.trusted_root)
        cache = self.shard_cache(in_order=True) if is_address(folder) else None
        return CorpusRoot(folder, trusted, cache) if trusted or cache else folder


def trusted_folders(text: str | None) -> tuple[str, ...]:
    """The folders that `trusted_root` names; a folder whose own name has a comma may be named alone.

    Raises:
        ValueError: one of them is not there.
    """
    folders = [] if text is None else [text] if os.path.isdir(text) else listed(text)
    if missing := [folder for folder in folders if not os.path.isdir(folder)]:
        raise ValueError(f"trusted_root={text!r}: no such folder {missing[0]!r}")
    return tuple(os.path.realpath(folder) for folder in folders)
