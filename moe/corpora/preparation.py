"""From a corpus on disk to one manifest: list → normalise → split → decode → quarantine → check for leaks → count.

Faults that need no decoding (no such folder, one speaker only, a leaking split) stop it before any audio is read.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from moe.audio.sampling import SAMPLE_RATE
from moe.corpora import quarantine as faults
from moe.corpora.formats.table import FORMATS, WEBDATASET, CorpusOptions
from moe.corpora.leaks import LeakError, LeakReport, refuse_leaks
from moe.corpora.listing import Listing, list_corpus
from moe.corpora.locations import Root
from moe.corpora.manifest import SPLITS, check_manifest
from moe.corpora.names import canonical
from moe.corpora.remarks import NAMED_NONE, channel_notes, none_notes, shard_notes, unknown_notes
from moe.corpora.shards import reading_order
from moe.corpora.splits import MODES, SplitPlan, assign_splits
from moe.corpora.subsets import at_most
from moe.corpora.summaries import corpus_statistics
from moe.corpora.validation import as_columns, inspect_all
from moe.options import option
from moe.text.normalisers import AUTO, NAMES, RAW, normaliser_version, own_normaliser, references

NORMALISED = "normalised"
OF_SHARDS = ("plain_domain", "unknown_speakers", "samples_per_shard")
OF_SPLITS = {("k_fold",): ("fold", "n_folds"), ("leave_one_speaker_out",): ("test_speaker",), ("own", "auto"): ("complete_dev",)}


@dataclass(frozen=True)
class PreparationOptions(CorpusOptions):
    """Everything that decides what a manifest holds."""

    group = "prepare"

    corpus: str = option("folder", "format of the corpus", choices=tuple(FORMATS), common=True)
    normaliser: str = option(
        AUTO,
        "how transcripts become references; auto: korean, nepali or devanagari where the language is such, else basic; whisper_english is without its table of British and American spellings",
        choices=(AUTO, *NAMES),
    )
    references: str = option(
        NORMALISED,
        "what a model learns to write: normalised as it is scored, or raw, which keeps casing and punctuation; the test split is scored normalised",
        choices=(NORMALISED, RAW),
    )
    split: str = option("auto", "whose split: auto is the corpus's own where it has one, else by_speaker", choices=MODES)
    dev_share: float = option(0.1, "share of the utterances for dev, by whole speakers (0: no dev)", low=0, high=0.8)
    test_share: float = option(0.1, "share of the utterances for test, by whole speakers (0: no test)", low=0, high=0.8)
    complete_dev: bool = option(False, "hold out dev, by speaker, also of every etiology that the corpus's own dev split has not")
    n_folds: int = option(5, "folds of split=k_fold", low=2)
    fold: int = option(0, "the fold that is the test part, from 0", low=0)
    test_speaker: str | None = option(None, "the test speaker of split=leave_one_speaker_out")
    exclude_etiology: str | None = option(None, "an etiology to keep out of train and dev but in test")
    max_samples: int | None = option(None, "at most so many utterances, drawn evenly from every split and etiology", low=1)
    min_duration_s: float = option(0.1, "shorter utterances are quarantined", low=0)
    max_duration_s: float = option(30.0, "longer utterances are quarantined", above=0)
    max_quarantined: float = option(0.05, "share of the corpus that may be quarantined before the step fails", low=0, high=1)
    ctc_frames_per_s: float | None = option(None, "frames per second of a CTC model, to quarantine what it cannot align", above=0)
    n_workers: int = option(0, "processes that render or decode (0: one per core)", low=0)
    target_sr: int = option(SAMPLE_RATE, "sample rate that audio is brought to; the extractors of all systems take no other")
    seed: int = option(42, "seed of everything drawn", low=0, common=True)

    @property
    def normaliser_name(self) -> str:
        """The normaliser in use."""
        return own_normaliser(self.normaliser, self.language)

    def faults(self) -> list[str]:
        """Faults between fields."""
        found = []
        if self.target_sr != SAMPLE_RATE:
            found.append(f"target_sr={self.target_sr}: must be {SAMPLE_RATE}, which the extractors of all systems take")
        if self.references == RAW and self.normaliser.startswith("sap"):
            found.append(f"references=raw: a model would learn to write the marks that normaliser={self.normaliser} removes")
        if self.dev_share + self.test_share > 0.9:
            found.append(f"dev_share={self.dev_share:g} and test_share={self.test_share:g} must leave a tenth for train")
        if self.min_duration_s >= self.max_duration_s:
            found.append(f"min_duration_s={self.min_duration_s:g} must be below max_duration_s={self.max_duration_s:g}")
        if self.split == "leave_one_speaker_out" and self.test_speaker is None:
            found.append(
                f"test_speaker is missing: split=leave_one_speaker_out needs it (a speaker called none is written {NAMED_NONE})"
            )
        if self.split == "k_fold" and self.fold >= self.n_folds:
            found.append(f"fold={self.fold}: must be below n_folds={self.n_folds}")
        return found

    def idle(self) -> dict[str, str]:
        """What another format or another kind of split reads."""
        found = dict.fromkeys(OF_SHARDS if self.corpus != WEBDATASET else (), f"corpus={WEBDATASET} alone has it")
        for split, names in OF_SPLITS.items():
            found |= dict.fromkeys(names if self.split not in split else (), f"needs split={' or '.join(split)}")
        return found


@dataclass(frozen=True)
class PreparedCorpus:
    """What `prepare` gives.

    Attributes:
        root: the corpus root, for `read_utterance`.
        manifest: the usable utterances.
        quarantine: utterance_id, audio, reason, detail of the unusable ones.
        files: file, reason, detail, n_lost of shards, JSONs and rows that could not be read.
        notes: what was decided in reading, and what means nothing to the format, a sentence each.
        left_out: utterance_id, reason of usable utterances that options left out.
        leaks: shared speakers (none) and shared sentences.
        counts: n_listed = n_used + n_quarantined + n_excluded_etiology + n_beyond_max_samples; n_lost beside them, the utterances
            that could not even be listed, in n_bad_files files and rows.
        statistics: tables `utterances`, `minutes` (etiology × split), `durations`, `words` (by etiology), `speakers`.
        normaliser: name and version.
    """

    root: Root
    manifest: pd.DataFrame
    quarantine: pd.DataFrame
    files: pd.DataFrame
    notes: tuple[str, ...]
    left_out: pd.DataFrame
    leaks: LeakReport
    counts: dict[str, int]
    statistics: dict[str, pd.DataFrame]
    normaliser: str


def prepare(options: PreparationOptions, dataset_root: str | Path | None = None) -> PreparedCorpus:
    """Read a corpus into a manifest.

    Args:
        dataset_root: instead of the option, for a corpus that another run has made.

    Raises:
        ValueError: the corpus or the options cannot be used.
        LeakError: a speaker is in two splits.
        QuarantineLimitError: too many utterances cannot be used.
    """
    location = dataset_root if dataset_root is not None else options.dataset_root
    if location is None:
        raise ValueError("dataset_root is missing: the folder or address of the corpus")
    listing = list_corpus(options.corpus, str(location).removeprefix("file://"), options)
    table = judge_listing(listing.utterances, options)
    faults.check_limit(faults.quarantine_table(table), listing.faults, len(table), options.max_quarantined)
    usable = table[table["reason"].isna()]
    with _naming_what_is_missing(table, listing.faults):
        split = assign_splits(usable, _plan(options)) if len(usable) else usable["split"]
        table["split"] = split.reindex(table.index)
        left_out = _leave_out(table, options)
    table = judge_audio(table.drop(index=left_out.index), listing.root, options)
    quarantine = faults.quarantine_table(table)
    faults.check_limit(quarantine, listing.faults, len(table), options.max_quarantined)
    manifest = _manifest(table)
    with _naming_what_is_missing(table, listing.faults):
        _check_splits(manifest, set(split))
    return PreparedCorpus(
        root=listing.root,
        manifest=manifest,
        quarantine=quarantine,
        files=listing.faults,
        notes=(
            *listing.notes,
            *shard_notes(manifest),
            *channel_notes(manifest),
            *unknown_notes(manifest),
            *none_notes(listing.utterances, options.exclude_etiology),
        ),
        left_out=left_out.sort_values("utterance_id", ignore_index=True),
        leaks=refuse_leaks(manifest),
        counts=_counts(listing.utterances, manifest, quarantine, left_out, listing.faults),
        statistics=corpus_statistics(manifest),
        normaliser=normaliser_version(options.normaliser_name),
    )


def split_listing(listing: Listing, options: PreparationOptions) -> pd.DataFrame:
    """The utterances of a listing that nothing is known against, with their splits, before any audio is read.

    Raises:
        ValueError: they cannot be split as asked.
    """
    table = judge_listing(listing.utterances, options)
    usable = table[table["reason"].isna()]
    return usable.assign(split=assign_splits(usable, _plan(options)))


@contextlib.contextmanager
def _naming_what_is_missing(table: pd.DataFrame, files: pd.DataFrame) -> Iterator[None]:
    """A check that fails may do so because of what cannot be used: its message then says so."""
    try:
        yield
    except LeakError:
        raise
    except ValueError as error:
        quarantine, n_all = faults.quarantine_table(table), len(table) + int(files["n_lost"].sum())
        unused = [faults.unused_text(quarantine, files, n_all)] if len(quarantine) or len(files) else []
        raise ValueError("; ".join([str(error), *unused])) from error


def _plan(options: PreparationOptions) -> SplitPlan:
    return SplitPlan(
        mode=options.split, complete_dev=options.complete_dev, dev_share=options.dev_share, test_share=options.test_share, seed=options.seed,
        fold=options.fold, n_folds=options.n_folds, test_speaker=None if options.test_speaker is None else canonical(options.test_speaker),
    )  # fmt: skip


def judge_listing(utterances: pd.DataFrame, options: PreparationOptions) -> pd.DataFrame:
    """A listing with references, and with the reasons against utterances that it shows without any audio."""
    table = add_references(utterances, options.normaliser_name)
    faults.mark_transcripts(table)
    faults.mark_duplicate_ids(table)
    return table


def add_references(utterances: pd.DataFrame, normaliser: str) -> pd.DataFrame:
    """The table with `reference`, and `reference_fluent` where there is a second form; a transcript is normalised once."""
    codes, distinct = pd.factorize(utterances["transcript"])  # −1 where there is none
    forms = [references(normaliser, text) for text in distinct]
    names = ("reference", "reference_fluent")[: len(references(normaliser, ""))]
    columns = {name: pd.array([form[place] for form in forms], dtype="str") for place, name in enumerate(names)}
    return utterances.assign(**{name: column.take(codes, allow_fill=True) for name, column in columns.items()})


def _leave_out(table: pd.DataFrame, options: PreparationOptions) -> pd.DataFrame:
    """utterance_id and reason, with the index of the table, of usable rows that the options leave out."""
    usable = table[table["reason"].isna()]
    excluded = usable[_excluded(usable, options.exclude_etiology and canonical(options.exclude_etiology))]
    rest = usable.drop(index=excluded.index)
    beyond = rest.iloc[:0]
    if options.max_samples is not None:
        beyond = rest[~rest["utterance_id"].isin(set(at_most(rest, options.max_samples, options.seed)))]
    parts = [
        part[["utterance_id"]].assign(reason=reason) for part, reason in ((excluded, "exclude_etiology"), (beyond, "max_samples"))
    ]
    return pd.concat(parts)


def _excluded(usable: pd.DataFrame, etiology: str | None) -> pd.Series:
    if etiology is None:
        return pd.Series(False, index=usable.index)
    of_it = usable["etiology"] == etiology
    if not of_it.any():
        raise ValueError(f"exclude_etiology={etiology!r}: the corpus has {', '.join(sorted(usable['etiology'].unique()))}")
    if not (usable.loc[of_it, "split"] == "test").any():
        raise ValueError(f"exclude_etiology={etiology!r}: none of its speakers is in test, so nothing would be measured")
    return of_it & (usable["split"] != "test")


def judge_audio(table: pd.DataFrame, root: Root, options: PreparationOptions) -> pd.DataFrame:
    """A judged listing with duration, digest and channel of what is usable, and reasons against what is not."""
    nothing = pd.array([None] * len(table), dtype="str")
    table = table.assign(duration_s=float("nan"), audio_digest=nothing, channel=nothing)
    usable = table[table["reason"].isna()]
    usable = usable.iloc[reading_order(usable)]
    members = [member if isinstance(member, str) else None for member in usable["member"]]
    limits = (options.min_duration_s, options.max_duration_s, options.channels)
    inspected = inspect_all(root, list(zip(usable["audio"], members, strict=True)), limits, options.n_workers)
    table.update(as_columns(inspected, usable.index))
    faults.mark_duplicate_audio(table)
    if options.ctc_frames_per_s is not None:
        faults.mark_infeasible(table, options.ctc_frames_per_s)
    return table


def _manifest(table: pd.DataFrame) -> pd.DataFrame:
    usable = table[table["reason"].isna()].drop(columns=["reason", "detail"])
    return check_manifest(usable if usable["channel"].notna().any() else usable.drop(columns="channel"))


def _check_splits(manifest: pd.DataFrame, planned: set[str]) -> None:
    lost = [name for name in SPLITS if name in planned and not (manifest["split"] == name).any()]
    if lost:
        raise ValueError(f"split {lost[0]}: all of its utterances are quarantined or left out")


def _counts(
    listed: pd.DataFrame, manifest: pd.DataFrame, quarantine: pd.DataFrame, left_out: pd.DataFrame, files: pd.DataFrame
) -> dict[str, int]:
    counts = {
        "n_listed": len(listed),
        "n_used": len(manifest),
        "n_quarantined": len(quarantine),
        "n_excluded_etiology": int((left_out["reason"] == "exclude_etiology").sum()),
        "n_beyond_max_samples": int((left_out["reason"] == "max_samples").sum()),
    }
    if counts["n_listed"] != sum(counts.values()) - counts["n_listed"]:
        raise AssertionError(f"utterances do not add up: {counts}")
    return counts | {"n_lost": int(files["n_lost"].sum()), "n_bad_files": len(files)}
