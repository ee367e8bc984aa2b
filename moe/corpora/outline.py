"""What a corpus will be, from its tables and the headers of its recordings: enough to refuse early what cannot work, before audio is read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from moe.corpora.listing import list_corpus
from moe.corpora.preparation import PreparationOptions, split_listing

MOST_HEADERS = 20_000  # headers that are read; of a larger corpus an even sample

MOST_REFERENCES = 200


@dataclasses.dataclass(frozen=True)
class Outline:
    """A corpus in outline.

    Attributes:
        train_speakers: speakers of the train split.
        durations_s: (n,) of recordings whose header says it, in seconds; an even sample of a large corpus.
        long_references: the longest of train and dev, in characters.
    """

    train_speakers: tuple[str, ...]
    durations_s: np.ndarray
    long_references: tuple[str, ...] = ()

    def share_beyond(self, seconds: float, most_s: float) -> float:
        """Share of the recordings longer than `seconds`, of those that are at most `most_s` long."""
        kept = self.durations_s[self.durations_s <= most_s]
        return float((kept > seconds).mean()) if len(kept) else 0.0


def outline(options: PreparationOptions) -> Outline:
    """A corpus in a local folder in outline.

    Raises:
        ValueError: it cannot be listed or split.
    """
    folder = Path(str(options.dataset_root))
    rows = split_listing(list_corpus(options.corpus, str(folder), options), options)
    files = rows.loc[rows["member"].fillna("") == "", "audio"].tolist()
    drawn = files[:: -(-len(files) // MOST_HEADERS) or 1]
    learnt = rows.loc[rows["split"] != "test", "reference"]
    longest = learnt.loc[learnt.str.len().nlargest(MOST_REFERENCES).index]
    return Outline(tuple(sorted(set(rows.loc[rows["split"] == "train", "speaker"]))), _durations(folder, drawn), tuple(longest))


def _durations(folder: Path, names: Sequence[str]) -> np.ndarray:
    found = []
    for name in names:
        try:
            found.append(soundfile.info(folder / name).duration)
        except (soundfile.LibsndfileError, OSError):  # another container, or damaged: preparing it says so
            continue
    return np.array(found, float)
