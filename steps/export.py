"""Entry point `export`: a recogniser as an ordinary Whisper, for who has no copy of this project; each form checked against ours.

`transformers` writes the base with the shared adapter and a fixed mixture of the experts in its weights; `ctranslate2` (for
faster-whisper) and `onnx` convert that folder; `peft` writes the base with one adapter per expert, each with the shared one in it, since
an expert is nothing without `shared`. With `prepare_run_id` all but `peft` decode the test split, and the difference from our own
hypotheses under the same fixed mixture is written beside each, and into the run. Example:
    mlflow run . --env-manager local -e export -P output_dir=exported -P formats=transformers,peft
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.report import markdown_table
from moe.files import write_json
from moe.options import listed, option
from moe.recognition.chunks import Chunks, ChunkSet, cut_rows
from moe.recognition.decoding import decode
from moe.system import DecodingOptions, Merges, Routes, System
from moe.systems.table import load_system
from moe.systems.whisper import other_runtimes
from moe.text.error_rates import word_error_rate
from moe.text.normalisers import normalise
from steps.inputs.corpus import Prepared, read_prepared
from steps.options.step_options import HubOptions, model_folder_faults
from steps.registry import exports, versions
from steps.tracking import runs
from steps.tracking.step_run import StepRun

MERGED, PEFT = "transformers", "peft"
FORMATS = (MERGED, PEFT, "ctranslate2", "onnx")
UNIFORM, SHARED = "uniform", "shared"
README, REPORT = "README.md", "export.json"


@dataclasses.dataclass(frozen=True)
class StepOptions(HubOptions):
    """Export a recogniser."""

    model: str = option(
        "models:/whisper-moe@champion", "models:/NAME@ALIAS, models:/NAME/VERSION, id of a run with a model, or its folder"
    )
    output_dir: str = option("exported", "folder to write to, one folder in it for each format")
    formats: str = option(MERGED, f"comma list of {', '.join(FORMATS)}")
    experts: str = option(
        UNIFORM, f"fixed mixture: {UNIFORM}, {SHARED} (no expert), the number of one expert, or the weights of all, comma list"
    )
    prepare_run_id: str | None = option(None, "run whose test split the exports are checked on (none: no check)")

    @property
    def chosen(self) -> list[str]:
        """The formats as a list."""
        return list(dict.fromkeys(listed(self.formats)))

    @property
    def folders(self) -> dict[str, Path]:
        """The folder of each format that is written: the merged one comes first, since all but `peft` are made of it."""
        names = dict.fromkeys([*([] if self.chosen == [PEFT] else [MERGED]), *self.chosen])
        return {name: Path(self.output_dir).expanduser().absolute() / name for name in names}

    def idle(self) -> dict[str, str]:
        """A test split that nothing is checked on, and a mixture of experts that are written one by one."""
        if self.chosen != [PEFT]:
            return {}
        return {"prepare_run_id": f"formats={PEFT} is not decoded", "experts": f"formats={PEFT} writes every expert"}

    def faults(self) -> list[str]:
        """Formats that there are not, or whose tools are not installed; folders that hold something else."""
        found = [f"formats={each!r}: must be one of {', '.join(FORMATS)}" for each in self.chosen if each not in FORMATS]
        found += [fault for each in self.chosen if each in other_runtimes.NEEDED and (fault := other_runtimes.missing(each))]
        found += [fault for folder in self.folders.values() for fault in model_folder_faults("output_dir", str(folder))]
        return found if self.chosen else ["formats is empty"]


def run(options: StepOptions) -> str:
    """Export, check, and return the run id.

    Raises:
        ValueError: the recogniser is of a system that cannot be merged.
    """
    folder = versions.recognizer_dir(options.model)
    system = load_system(folder)
    if not isinstance(system, Merges):
        raise ValueError(f"model={options.model}: {system.record.title} cannot be exported; a Whisper with or without LoRA can")
    experts = mixture_of(options.experts, system.n_experts if isinstance(system, Routes) else 0)
    if MERGED in options.folders:
        system.check_mixture(experts)
    prepared = read_prepared(options.prepare_run_id) if options.prepare_run_id else None
    with runs.step_run("export", options, f"export · {system.record.system}") as step:
        places = _write(system, experts, options)
        rows = _check(system, experts, prepared, places) if prepared else []
        _report(step, options, system, experts, places, rows)
    return step.run_id


def mixture_of(text: str, n_experts: int) -> tuple[float, ...]:
    """The weights (E,) that an option names.

    Raises:
        ValueError: it names none, or other than there are experts.
    """
    if text == SHARED:
        return (0.0,) * n_experts
    if text == UNIFORM:
        return (1 / max(1, n_experts),) * n_experts
    if not n_experts:
        raise ValueError(f"experts={text}: this recogniser has no experts; leave it out")
    if text.isdigit():
        if int(text) >= n_experts:
            raise ValueError(f"experts={text}: there are 0 to {n_experts - 1}")
        return tuple(float(expert == int(text)) for expert in range(n_experts))
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"experts={text!r}: must be {UNIFORM}, {SHARED}, a number or a comma list of numbers") from error
    if len(weights) != n_experts or not all(np.isfinite(weights)):
        raise ValueError(f"experts={text}: must hold {n_experts} numbers, one for each expert")
    return weights


def _write(system: Merges, experts: tuple[float, ...], options: StepOptions) -> dict[str, Path]:
    """Write each format, and say where."""
    places = options.folders
    if MERGED in places:
        system.save_merged(places[MERGED], experts)
    for name, convert in (("ctranslate2", other_runtimes.to_ctranslate2), ("onnx", other_runtimes.to_onnx)):
        if name in places:
            convert(places[MERGED], places[name])
    if PEFT in places:
        system.save_adapters(places[PEFT])
    return places


def _check(system: Merges, experts: tuple[float, ...], prepared: Prepared, places: dict[str, Path]) -> list[dict[str, Any]]:
    """What each export says of the test split beside what we say: counts of utterances that differ, and both error rates."""
    test = prepared.rows("test")
    chunks = cut_rows(test, prepared.root, system.inputs.window_s)
    dataset = ChunkSet(chunks, prepared.root, system.inputs)
    decoded = decode(system, dataset, DecodingOptions(), system.fixed(experts), title="ours")
    ours = _texts(chunks, [each.text for each in decoded], test["utterance_id"], prepared)
    waveforms = [dataset.waveform(index) for index in range(len(dataset))]
    says = {
        MERGED: other_runtimes.says_transformers,
        "ctranslate2": lambda folder: other_runtimes.says_ctranslate2(folder, places[MERGED]),
        "onnx": lambda folder: other_runtimes.says_onnx(folder, places[MERGED]),
    }
    references, rows = test["reference"].tolist(), []
    for name in (name for name in places if name in says):
        theirs = _texts(chunks, says[name](places[name])(waveforms), test["utterance_id"], prepared)
        n_different = sum(one != other for one, other in zip(ours, theirs, strict=True))
        rates = {"our_wer": word_error_rate(references, ours), "wer": word_error_rate(references, theirs)}
        rows.append(
            {
                "format": name,
                "n_utterances": len(ours),
                "n_different": n_different,
                **rates,
                "difference": rates["wer"] - rates["our_wer"],
            }
        )
    return rows


def _texts(chunks: Chunks, texts: Sequence[str], utterance_ids: pd.Series, prepared: Prepared) -> list[str]:
    """Normalised texts of utterances from those of their chunks."""
    joined: list[list[str]] = [[] for _ in utterance_ids]
    for owner, text in zip(chunks.owner, texts, strict=True):
        joined[owner].append(text)
    return [normalise(prepared.normaliser, " ".join(parts)) for parts in joined]


def _report(
    step: StepRun,
    options: StepOptions,
    system: System,
    experts: tuple[float, ...],
    places: dict[str, Path],
    rows: list[dict[str, Any]],
) -> None:
    facts = {"model": options.model, "system": system.record.system, "language": system.record.language, "experts": list(experts)}
    for name, folder in places.items():
        found = next((row for row in rows if row["format"] == name), None)
        write_json(folder / REPORT, {**facts, "format": name, "check": found})
        if options.push_to_hub and options.hub_model_id and name == options.chosen[0]:
            step.set_tags({exports.HUB_TAG: exports.push(folder, options.hub_model_id, options.hub_private, step.run_id)})
    step.log_metrics({f"{row['format']}/{key}": row[key] for row in rows for key in ("wer", "difference", "n_different")})
    table = pd.DataFrame(rows)
    if rows:
        step.log_table(table, "tables/exports.json")
    said = [
        f"{row['format']}: {row['n_different']} of {row['n_utterances']} utterances differ from ours; WER {100 * row['wer']:.2f} %, ours {100 * row['our_wer']:.2f} %"
        for row in rows
    ]
    for line in said or ["not checked: prepare_run_id names no test split"]:
        print(line, flush=True)
    print("; ".join(f"{name} in {folder}" for name, folder in places.items()), flush=True)
    shown = markdown_table(table) if rows else ""
    step.describe(
        f"## Exported {options.model} as {', '.join(places)}\n{'; '.join(said) or 'Not checked on a test split.'}\n\n{shown}"
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
