"""What a corpus will be, from its tables and the headers of its recordings: enough to refuse early what cannot work, before audio is read."""

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import pandas as pd

from moe.audio.decoders import stated_seconds
from moe.audio.headers import with_known_size
from moe.audio.parts import Part
from moe.corpora.listing import list_corpus
from moe.corpora.locations import Root, is_address, open_file
from moe.corpora.manifest import read_bytes
from moe.corpora.preparation import NORMALISED, PreparationOptions, split_listing
from moe.corpora.presence import in_shards

MOST_HEADERS = 20_000  # headers of files that are read; of a larger corpus an even sample
MOST_REMOTE = 64  # recordings elsewhere, in files or in shards: each is a request
RUNS, RUN = 8, 64  # recordings in shards are read whole: so many runs of neighbours, which share a row group
MOST_REFERENCES = 200
UNREADABLE = (ValueError, OSError, EOFError)  # preparing says why


@dataclasses.dataclass(frozen=True)
class Outline:
    """A corpus in outline.

    Attributes:
        train_speakers: speakers of the train split.
        durations_s: (n,) of recordings whose header says it, in seconds; an even sample of a large corpus.
        long_references: the longest that a model learns to write, of train and dev, in characters.
        train_etiologies: of the train split's utterances.
        is_sharded: whether every recording lies in a shard.
    """

    train_speakers: tuple[str, ...]
    durations_s: np.ndarray
    long_references: tuple[str, ...] = ()
    train_etiologies: tuple[str, ...] = ()
    is_sharded: bool = False

    def share_beyond(self, seconds: float, most_s: float) -> float:
        """Share of the recordings longer than `seconds`, of those that are at most `most_s` long."""
        kept = self.durations_s[self.durations_s <= most_s]
        return float((kept > seconds).mean()) if len(kept) else 0.0


def outline(options: PreparationOptions) -> Outline:
    """A corpus in outline.

    Raises:
        ValueError: it cannot be listed or split.
    """
    listing = list_corpus(options.corpus, str(options.dataset_root), options)
    rows = split_listing(listing, options)
    learnt = rows.loc[rows["split"] != "test", "reference" if options.references == NORMALISED else "transcript"]
    longest = learnt.loc[learnt.str.len().nlargest(MOST_REFERENCES).index]
    durations = np.array(list(_durations(listing.root, rows)), float)
    train = rows[rows["split"] == "train"]
    speakers, is_sharded = tuple(sorted(set(train["speaker"]))), bool(in_shards(rows).all())
    return Outline(speakers, durations, tuple(longest), tuple(train["etiology"]), is_sharded)


def _durations(root: Root, rows: pd.DataFrame) -> Iterator[float]:
    """Seconds of a sample of the recordings: from the header, or of a part of one as it is named; those that say nothing are left out."""
    members = rows["member"].fillna("")
    of_shards = rows["audio"].str.endswith((".tar", ".parquet", ".arrow")) & (members != "")
    files, shards = rows[~of_shards], rows[of_shards].sort_values(["audio", "member"], kind="stable")
    most, run = (MOST_REMOTE, MOST_REMOTE // RUNS) if is_address(root) else (MOST_HEADERS, RUN)
    sample = pd.concat([files.iloc[:: -(-len(files) // most) or 1], _runs(shards, run)])
    for row in sample.to_dict("records"):
        try:
            yield _duration(root, row)
        except UNREADABLE:
            continue


def _runs(rows: pd.DataFrame, run: int) -> pd.DataFrame:
    if len(rows) <= RUNS * run:
        return rows
    starts = np.linspace(0, len(rows) - run, RUNS).astype(int)
    return rows.iloc[(starts[:, None] + np.arange(run)).ravel()]


def _duration(root: Root, row: dict) -> float:
    part = Part.of(row["member"]) if isinstance(row["member"], str) else None
    if part is not None and part.stop_s is not None:
        return part.stop_s - part.start_s
    if part is None and isinstance(row["member"], str) and row["member"]:
        return stated_seconds(io.BytesIO(with_known_size(read_bytes(root, row))))
    with open_file(root, row["audio"]) as file:
        return stated_seconds(file) - (part.start_s if part else 0.0)
