"""Entry point `export`: a recogniser as an ordinary Whisper, for who has no copy of this project; each form checked against ours.

`transformers` writes the base with the shared adapter and a fixed mixture of the experts in its weights; `ctranslate2` (for
faster-whisper) and `onnx` convert that folder; `peft` writes the base with one adapter per expert, each with the shared one in it, since
an expert is nothing without `shared`. With `prepare_run_id` all but `peft` decode the test split, faster-whisper too where it can, and
the difference from our own hypotheses under the same fixed mixture is written beside each, and into the run. An ordinary Whisper pads to
its whole window, which this project does not (`audio_context=bucketed`), so ours are decoded both ways. Example:
    mlflow run . --env-manager local -e export -P output_dir=exported -P formats=transformers,peft
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.report import markdown_table
from moe.files import write_json
from moe.options import listed, option
from moe.system import Merges, Routes, System
from moe.systems.table import load_system
from moe.systems.whisper import conversion
from steps.inputs.corpus import read_prepared
from steps.options.step_options import HubOptions, model_folder_faults
from steps.registry import exports, versions
from steps.reports.export_check import CTRANSLATE2, FASTER_WHISPER, MERGED, ONNX, Checked, check, faster_whisper_fault
from steps.tracking import runs
from steps.tracking.step_run import StepRun

PEFT = "peft"
FORMATS = (MERGED, PEFT, CTRANSLATE2, ONNX)
UNIFORM, SHARED = "uniform", "shared"
MEASURED = ("wer", "difference", "n_different", "n_different_in_window")
REPORT = "export.json"


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
        found += [fault for each in self.chosen if each in conversion.NEEDED and (fault := conversion.missing(each))]
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
        fault = faster_whisper_fault(places)
        rows = check(system, experts, prepared, places, not fault) if prepared else []
        _report(step, options, system, experts, places, rows, fault)
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
    for name, convert in ((CTRANSLATE2, conversion.to_ctranslate2), (ONNX, conversion.to_onnx)):
        if name in places:
            convert(places[MERGED], places[name])
    if PEFT in places:
        system.save_adapters(places[PEFT])
    return places


def _report(
    step: StepRun,
    options: StepOptions,
    system: System,
    experts: tuple[float, ...],
    places: dict[str, Path],
    rows: list[Checked],
    fault: str | None,
) -> None:
    facts = {"model": options.model, "system": system.record.system, "language": system.record.language, "experts": list(experts)}
    checks = {row.format: dataclasses.asdict(row) for row in rows}
    for name, folder in places.items():
        more = {FASTER_WHISPER: fault or checks.get(FASTER_WHISPER)} if name == CTRANSLATE2 else {}
        write_json(folder / REPORT, {**facts, "format": name, "check": checks.get(name), **more})
        if options.push_to_hub and options.hub_model_id and name == options.chosen[0]:
            step.set_tags({exports.HUB_TAG: exports.push(folder, options.hub_model_id, options.hub_private, step.run_id)})
    step.log_metrics({f"{name}/{key}": row[key] for name, row in checks.items() for key in MEASURED})
    table = pd.DataFrame(checks.values())
    if rows:
        step.log_table(table, "tables/exports.json")
    said = [str(row) for row in rows] or ["not checked: prepare_run_id names no test split"]
    said += [f"{FASTER_WHISPER} cannot say the same: {fault}"] if fault else []
    print("\n".join(said), flush=True)
    print("; ".join(f"{name} in {folder}" for name, folder in places.items()), flush=True)
    shown = markdown_table(table) if rows else ""
    step.describe(f"## Exported {options.model} as {', '.join(places)}\n{'; '.join(said)}\n\n{shown}")


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
