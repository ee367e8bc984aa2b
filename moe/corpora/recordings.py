"""A corpus as recordings alone, without splits: for what is learnt of people one by one."""

import dataclasses
from pathlib import Path

import pandas as pd

from moe.corpora import quarantine
from moe.corpora.listing import list_corpus
from moe.corpora.locations import Root
from moe.corpora.preparation import PreparationOptions, judge_audio, judge_listing


@dataclasses.dataclass(frozen=True)
class ReadRecordings:
    """What a corpus holds.

    Attributes:
        rows: usable utterances as a manifest has them, but without a split, sorted by id.
        quarantine: utterance_id, audio, reason, detail of the others.
    """

    root: Root
    rows: pd.DataFrame
    quarantine: pd.DataFrame


def read_recordings(options: PreparationOptions) -> ReadRecordings:
    """Read a corpus with the readers, checks and normaliser of `prepare`.

    Raises:
        ValueError: the corpus or the options cannot be used, or nothing in it can.
        QuarantineLimitError: too many utterances cannot be used.
    """
    location = str(options.dataset_root)
    if "://" not in location and Path(location).exists():
        location = str(Path(location).resolve())
    listing = list_corpus(options.corpus, location.removeprefix("file://"), options)
    table = judge_audio(judge_listing(listing.utterances, options), listing.root, options)
    unused = quarantine.quarantine_table(table)
    quarantine.check_limit(unused, listing.faults, len(table), options.max_quarantined)
    rows = table[table["reason"].isna()].drop(columns=["reason", "detail", "split"])
    if not len(rows):
        raise ValueError(f"dataset_root={location!r}: {quarantine.unused_text(unused, listing.faults, len(table))}")
    return ReadRecordings(listing.root, rows.sort_values("utterance_id", ignore_index=True), unused)
