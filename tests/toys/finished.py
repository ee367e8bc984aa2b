"""Finished runs that later steps read, without any preparing or training: a corpus, a base, a mixture and the base as a recogniser."""

import dataclasses
from pathlib import Path

from moe.corpora.tables import write_table
from moe.files import write_json
from moe.options import Options, option
from moe.systems.whisper.base_model import save_base
from moe.systems.whisper_moe.building import wrap
from moe.systems.whisper_moe.folder import WhisperShape, new_record
from steps.tracking import artifacts
from steps.tracking import runs as tracking
from tests.toys.models import CONTEXT, N_EXPERTS, shared_base, toy_mixture, write_corpus

LENGTHS_S = (0.4, 1.6, 0.7, 1.1, 0.9, 2.7, 1.3, 0.5, 1.8)  # the toy's window is 2 s; the first is of train, the others of test
FURTHER_S = {"train": (0.6, 1.0, 1.2, 1.4), "dev": (0.8, 1.5)}


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """Of a step that only leaves files."""

    seed: int = option(0, "seed", low=0)


def left_by(step: str, folder: Path) -> str:
    """A finished run that holds the files of a folder."""
    with tracking.step_run(step, StepOptions()) as run:
        for path in sorted(folder.iterdir()):
            run.log_folder(path, path.name) if path.is_dir() else run.log_file(path)
    return run.run_id


def finished_runs(folder: Path) -> dict[str, str]:
    """Ids of runs of prepare, pretrain, asr (four experts) and baseline (the base as it is)."""
    ids = {"prepare": left_by("prepare", _prepared(folder)), "pretrain": left_by("pretrain", _base(folder / "pretrain"))}
    for name, system, n_experts in (("asr", "whisper_moe", N_EXPERTS), ("baseline", "zero_shot", 0)):
        base = folder / f"base_{name}"
        save_base(shared_base(), base)
        model = toy_mixture(n_experts)
        shape = WhisperShape(n_experts, model.adapter_options, model.routing_options, CONTEXT, {"als": 1, "typical": 2})
        facts = {"seed": 3, "n_trainable": 10, "training_compute_seconds": 7.2, "training_device": "cpu"}
        wrap(model, shared_base(), base, new_record(system, shape, "en", "basic", facts)).save(folder / name / artifacts.MODEL)
        ids[name] = left_by(name, folder / name)
    return ids


def _prepared(folder: Path) -> Path:
    corpus, prepared = folder / "audio", folder / "prepared"
    corpus.mkdir()
    splits = ["train", *["test"] * (len(LENGTHS_S) - 1), *(name for name, lengths in FURTHER_S.items() for _ in lengths)]
    manifest = write_corpus(corpus, (*LENGTHS_S, *FURTHER_S["train"], *FURTHER_S["dev"]))
    manifest = manifest.assign(split=splits, sex=["f", "m", "m"] * 5, reference_fluent="oak")
    write_table(prepared / artifacts.MANIFEST, manifest)
    facts = {
        "root": str(corpus),
        "normaliser": "basic",
        "normaliser_version": "basic/1",
        "language": "en",
        "synthetic": True,
        "name": "toy",
    }
    write_json(prepared / "corpus.json", facts)
    return prepared


def _base(folder: Path) -> Path:
    save_base(shared_base(), folder / artifacts.BASE)
    return folder
