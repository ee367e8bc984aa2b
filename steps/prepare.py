"""Entry point `prepare`: a corpus → one manifest, with everything that could not be used listed.

Reads a corpus folder, or the artifact `corpus` of a `synthesize` run; writes `manifest.parquet`. Example:
    mlflow run . --env-manager local -e prepare -P corpus=folder -P dataset_root=PATH
"""

import dataclasses
import hashlib
import tempfile
from pathlib import Path

import pandas as pd

from analysis.groups import several
from analysis.plots.corpus import amounts_figure, durations_figure, words_figure
from analysis.report import markdown_table
from moe.corpora.locations import CorpusRoot
from moe.corpora.manifest import write_manifest
from moe.corpora.preparation import PreparationOptions, PreparedCorpus, prepare
from moe.corpora.quarantine import QuarantineLimitError, unused_text
from moe.corpora.remarks import shard_notes
from moe.corpora.splits import LeakError
from moe.files import write_json
from moe.options import option
from steps.inputs.corpus import CORPUS_FILE, SYNTHETIC_NOTE, corpus_name, path_digests
from steps.options.step_options import SYNTHETIC, PlotOptions
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun

MOST_NOTES = 40  # on the screen; the run's tables/notes.json has them all
LEFT_OUT = {"n_excluded_etiology": "exclude_etiology", "n_beyond_max_samples": "max_samples"}


@dataclasses.dataclass(frozen=True)
class StepOptions(PreparationOptions, PlotOptions):
    """Read a corpus into one manifest."""

    synthesize_run_id: str | None = option(None, "run that made the synthetic corpus (corpus=synthetic)")

    not_in_fingerprint = frozenset({"n_workers"})

    def faults(self) -> list[str]:
        """Where the corpus is must be said once."""
        found = []
        if self.corpus == SYNTHETIC and self.synthesize_run_id is None:
            found.append("synthesize_run_id is missing: corpus=synthetic reads what a synthesize run made")
        if self.corpus != SYNTHETIC and self.folder is None:
            found.append(f"dataset_root is missing: corpus={self.corpus} needs the folder or address of the corpus")
        if self.corpus == SYNTHETIC and self.dataset_root is not None:
            found.append(f"dataset_root={self.dataset_root}: corpus=synthetic reads what a synthesize run made")
        return found

    @property
    def folder(self) -> str | None:
        """Where the corpus is; a local folder as an absolute path, since later steps may run elsewhere."""
        given = self.dataset_root
        return str(Path(given).resolve()) if given and Path(given).exists() else given

    def data_digests(self) -> dict[str, str]:
        """Content of a corpus outside the store."""
        return {} if self.corpus == SYNTHETIC else path_digests(self.folder)


def run(options: StepOptions) -> str:
    """Prepare the corpus, log the manifest and return the run id."""
    synthetic = options.corpus == SYNTHETIC
    with runs.step_run(
        "prepare", options, f"prepare · {corpus_name(options.corpus, options.folder)} · seed {options.seed}"
    ) as step:
        root = str(artifacts.upstream(options.synthesize_run_id, artifacts.CORPUS)) if synthetic else options.folder or ""
        try:
            prepared = prepare(options, root)
        except LeakError as leak:
            step.log_table(leak.report.speakers, "tables/leaked_speakers.json")
            raise
        except QuarantineLimitError as limit:
            step.log_table(limit.quarantine.astype(str), "tables/quarantine.json")
            step.log_table(limit.files, "tables/bad_files.json")
            raise
        if not synthetic or prepared.counts["n_used"] < prepared.counts["n_listed"]:
            print("\n".join(screen_lines(prepared)), flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            _log_manifest(step, options, prepared, Path(temporary))
        step.log_input("corpus", corpus_digest(prepared.manifest), root, "training", prepared.counts["n_listed"])
        _log_tables(step, prepared)
        if not options.no_plot:
            _log_pictures(step, prepared.manifest, SYNTHETIC_NOTE if synthetic else "")
        step.set_tags({"moe.synthetic": str(synthetic).lower()})
        step.add_to_name("", f"{prepared.counts['n_used']} utterances")
        step.describe(description(prepared, synthetic))
    return step.run_id


def corpus_digest(manifest: pd.DataFrame) -> str:
    """SHA-256 over ids, transcripts and decoded audio of everything used, in hex."""
    rows = manifest[["utterance_id", "transcript", "audio_digest"]].to_csv(index=False)
    return hashlib.sha256(rows.encode()).hexdigest()


def _log_manifest(step: StepRun, options: StepOptions, prepared: PreparedCorpus, folder: Path) -> None:
    synthetic = options.corpus == SYNTHETIC
    write_manifest(folder / artifacts.MANIFEST, prepared.manifest)
    corpus = {
        "root": None if synthetic else str(prepared.root),
        "trusted_roots": list(prepared.root.trusted) if isinstance(prepared.root, CorpusRoot) else [],
        "synthesize_run_id": options.synthesize_run_id,
        "normaliser": options.normaliser_name,
        "references": options.references,
        "normaliser_version": prepared.normaliser,
        "language": options.language,
        "synthetic": synthetic,
        "caution": "; ".join(shard_notes(prepared.manifest)),
        "name": corpus_name(options.corpus, options.folder),
    }
    write_json(folder / CORPUS_FILE, corpus)
    step.log_file(folder / artifacts.MANIFEST)
    step.log_file(folder / CORPUS_FILE)
    step.log_metrics(prepared.counts)
    n_by_split = prepared.manifest["split"].value_counts()
    step.log_metrics({f"{split}/n_utterances": int(count) for split, count in n_by_split.items()})


def _log_tables(step: StepRun, prepared: PreparedCorpus) -> None:
    step.log_table(prepared.manifest.head(200).astype(str), "tables/manifest_head.json")
    step.log_table(prepared.quarantine.astype(str), "tables/quarantine.json")
    step.log_table(prepared.quarantine.astype(str), artifacts.QUARANTINE)
    step.log_table(prepared.files, "tables/bad_files.json")
    step.log_table(pd.DataFrame({"note": list(prepared.notes)}, dtype="str"), "tables/notes.json")
    step.log_table(prepared.left_out, "tables/left_out.json")
    step.log_table(prepared.leaks.counts.reset_index(), "tables/leak_report.json")
    step.log_table(prepared.leaks.sentences, "tables/shared_sentences.csv")
    for name, table in prepared.statistics.items():
        step.log_table(table, f"tables/{name}.json")


def _log_pictures(step: StepRun, manifest: pd.DataFrame, note: str) -> None:
    step.log_figure(durations_figure(manifest, note), "plots/durations.png")
    step.log_figure(words_figure(manifest, note), "plots/words.png")
    if several(manifest):
        step.log_figure(amounts_figure(manifest, note), "plots/amounts.png")


def screen_lines(prepared: PreparedCorpus) -> list[str]:
    """How many utterances are used, how many are not and why, and what was decided in reading."""
    counts = prepared.counts
    n_all = counts["n_listed"] + counts["n_lost"]
    left_out = [f"{counts[name]} by {option}" for name, option in LEFT_OUT.items() if counts[name]]
    n_unused = counts["n_quarantined"] + counts["n_lost"]
    unused = unused_text(prepared.quarantine, prepared.files, n_all) if n_unused else f"0 of {n_all} utterances cannot be used"
    lines = [
        f"{counts['n_used']} of {n_all} utterances are used",
        unused,
        *([f"left out: {', '.join(left_out)}"] if left_out else []),
    ]
    return [f"prepare: {line}" for line in [*lines, *(f"note: {note}" for note in prepared.notes[:MOST_NOTES])]]


def description(prepared: PreparedCorpus, synthetic: bool) -> str:
    """What was read, made and found, in Markdown."""
    counts, reasons = prepared.counts, prepared.quarantine["reason"].value_counts()
    kinds = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "none"
    return "\n".join(
        [
            f"{counts['n_used']} of {counts['n_listed']} utterances are used{', SYNTHETIC speech' if synthetic else ''}.",
            "",
            f"{counts['n_quarantined']} are quarantined ({kinds}), "
            f"{counts['n_excluded_etiology'] + counts['n_beyond_max_samples']} were left out by options, "
            f"{counts['n_bad_files']} files or rows could not be read, with {counts['n_lost']} utterances at least.",
            "",
            *(f"- {note}" for note in prepared.notes),
            "",
            f"References by `{prepared.normaliser}`. No speaker is in two splits; "
            f"{len(prepared.leaks.sentences)} sentences are (`tables/leak_report.json`), so WER is reported on seen and unseen apart.",
            "",
            markdown_table(prepared.statistics["utterances"]),
        ]
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
