"""What is said of a prepared corpus beside what its reader says."""

import pandas as pd

from moe.corpora.formats.interface import SHARD_SPEAKER, UNKNOWN
from moe.options import NONE

NAMED_NONE = f"'\"{NONE}\"'"  # on a command line: the name in quotation marks, which the shell leaves in place


def channel_notes(manifest: pd.DataFrame) -> list[str]:
    """That one of several channels was taken, which `channel` in the manifest says."""
    if "channel" not in manifest.columns:
        return []
    taken = manifest[manifest["channel"].notna()]
    first = taken.iloc[0]
    return [
        f"of {len(taken)} recordings with several channels one is taken (first {first['utterance_id']}: channel {first['channel']})"
    ]


def none_notes(utterances: pd.DataFrame, exclude_etiology: str | None) -> list[str]:
    """That a name which looks like no value is there, and how to say it."""
    if exclude_etiology is None and utterances["etiology"].str.casefold().eq(NONE).any():
        return [f"exclude_etiology=none excludes nothing; the etiology called none is written exclude_etiology={NAMED_NONE}"]
    return []


def unknown_notes(manifest: pd.DataFrame) -> list[str]:
    """That some utterances name no speaker, where others do: whose they are nobody can keep out of another split."""
    unknown = manifest["speaker"] == UNKNOWN
    if not unknown.any() or unknown.all():
        return []
    return [
        f"{int(unknown.sum())} utterances name no speaker (first {manifest.loc[unknown, 'utterance_id'].iloc[0]}): they are together in one split, "
        "and their speakers may be in another"
    ]


def shard_notes(manifest: pd.DataFrame) -> list[str]:
    """That shards stand for speakers, where they do: every report says so."""
    n_shards = manifest.loc[manifest["speaker"].str.startswith(SHARD_SPEAKER), "speaker"].nunique()
    if not n_shards:
        return []
    return [f"unknown_speakers=shards: {n_shards} whole shards stand for speakers nobody knows, who may be in train and in test"]
