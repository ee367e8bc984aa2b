"""What the splits of a manifest share: speakers, which is refused, and sentences, which is reported and scored apart."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe.corpora.manifest import SPLITS, UNKNOWN


@dataclass(frozen=True)
class LeakReport:
    """What two splits have in common.

    Attributes:
        speakers: speaker, splits, n_utterances of speakers in more than one split; must be empty.
        sentences: reference, n_train, n_dev, n_test of sentences in more than one split.
        counts: per split: utterances, sentences, utterances whose sentence is also in train, utterances of unknown speakers.
    """

    speakers: pd.DataFrame
    sentences: pd.DataFrame
    counts: pd.DataFrame


class LeakError(ValueError):
    """A speaker is in more than one split; `report` is the leak report."""

    def __init__(self, report: LeakReport) -> None:
        names = [f"{row.speaker} ({row.splits})" for row in report.speakers.itertuples()]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        super().__init__(
            f"speaker leak: {len(names)} speakers are in more than one split: {', '.join(names[:5])}{more}; "
            "split=by_speaker makes a speaker-disjoint split"
        )
        self.report = report


def leak_report(manifest: pd.DataFrame) -> LeakReport:
    """Shared speakers and sentences (equal references) between the splits of a manifest; unknown speakers are only counted."""
    return LeakReport(_shared_speakers(manifest), _shared_sentences(manifest), _leak_counts(manifest))


def refuse_leaks(manifest: pd.DataFrame) -> LeakReport:
    """The leak report.

    Raises:
        LeakError: a speaker is in two splits.
    """
    report = leak_report(manifest)
    if len(report.speakers):
        raise LeakError(report)
    return report


def seen_sentences(manifest: pd.DataFrame) -> pd.Series:
    """Whether an utterance's reference is also a reference of the train split, aligned with the manifest."""
    codes, _, counts = _sentence_counts(manifest)
    return pd.Series(counts[codes, SPLITS.index("train")] > 0, index=manifest.index)


def seen_words(manifest: pd.DataFrame) -> pd.Series:
    """Whether every word of an utterance's reference is in a reference of the train split, aligned with the manifest."""
    words = manifest["reference"].str.split()
    said = {word for row in words[manifest["split"] == "train"] for word in row}
    return words.map(said.issuperset)


def _sentence_counts(manifest: pd.DataFrame) -> tuple[np.ndarray, pd.Index, np.ndarray]:
    """The number of every row's sentence, the sentences, and how often each is in every split: (n_sentences, n_splits)."""
    codes, sentences = pd.factorize(manifest["reference"], use_na_sentinel=False)
    places = manifest["split"].map({name: place for place, name in enumerate(SPLITS)}).to_numpy(dtype=np.int64)
    counts = np.bincount(codes * len(SPLITS) + places, minlength=len(sentences) * len(SPLITS))
    return codes, pd.Index(sentences), counts.reshape(-1, len(SPLITS))


def _shared_speakers(manifest: pd.DataFrame) -> pd.DataFrame:
    known = manifest[manifest["speaker"] != UNKNOWN]
    pairs = known.groupby(["speaker", "split"], sort=True).size().reset_index(name="n")
    grouped = pairs.groupby("speaker", sort=True).agg(
        splits=("split", _in_order), n_splits=("split", "size"), n_utterances=("n", "sum")
    )
    return grouped[grouped["n_splits"] > 1].drop(columns="n_splits").reset_index()


def _in_order(splits: pd.Series) -> str:
    return ", ".join(name for name in SPLITS if name in set(splits))


def _shared_sentences(manifest: pd.DataFrame) -> pd.DataFrame:
    _, sentences, counts = _sentence_counts(manifest)
    shared = (counts > 0).sum(axis=1) > 1
    table = pd.DataFrame(counts[shared], columns=[f"n_{name}" for name in SPLITS])
    table.insert(0, "reference", sentences[shared])
    return table.sort_values("reference", ignore_index=True)


def _leak_counts(manifest: pd.DataFrame) -> pd.DataFrame:
    grouped = _countable(manifest).groupby("split")
    counts = grouped.agg(
        n_utterances=("sentence", "size"), n_sentences=("sentence", "nunique"),
        n_sentence_in_train=("seen", "sum"), n_unknown_speaker=("nobody", "sum"),
    )  # fmt: skip
    return counts.reindex([name for name in SPLITS if name in counts.index]).reset_index()


def _countable(manifest: pd.DataFrame) -> pd.DataFrame:
    codes, _, _ = _sentence_counts(manifest)
    nobody = manifest["speaker"] == UNKNOWN
    return pd.DataFrame({"split": manifest["split"], "sentence": codes, "seen": seen_sentences(manifest), "nobody": nobody})
