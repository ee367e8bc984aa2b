"""The chain at work: every stage in turn, each given the ids of the runs it reads; systems side by side where that is asked for."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from moe.options import Options
from steps import evaluate
from steps.chain.branches import PLANNED, SHARED, branches, lora_given, not_as_planned, own_stages, planned_epochs
from steps.chain.options import LORA, MIXTURE
from steps.chain.reuse import launch
from steps.chain.stages import (
    NAMES,
    STAGES,
    Stage,
    chosen_systems,
    evaluation_given,
    left_out,
    stage_options,
    stages_of,
    step_name,
    training_given,
    unasked,
)
from steps.tracking.parents import parent_id
from steps.tracking.side_by_side import side_by_side


class Chain:
    """Runs the stages in order and keeps the ids of their runs.

    Args:
        options: `steps.main.StepOptions`, whose fields are those of all stages.
        run_ids: of stages that have run, which do not run again.
    """

    def __init__(self, options: Any, run_ids: Mapping[str, str] | None = None) -> None:
        self.options = options
        self.run_ids = dict(run_ids or {})

    def run(self) -> None:
        """Every stage up to `until`, but for those left out."""
        systems = branches(self.options)
        if systems:
            self._run(SHARED)
            self._side_by_side(systems)
        self._run(NAMES)

    def run_system(self, system: str) -> None:
        """The stages that are a system's alone, and its evaluation, up to `until`."""
        for stage in own_stages(self.options, system):
            self._train(stage)
        if "evaluate" in self._wanted(NAMES):
            self._evaluate(system)

    def _wanted(self, names: Sequence[str]) -> Sequence[str]:
        """Of these steps, in their order, those up to `until`."""
        last = NAMES.index(self.options.until)
        return [name for name in names if NAMES.index(name) <= last]

    def _run(self, names: Sequence[str]) -> None:
        stages = [stage for stage in stages_of(self.options) if stage.name not in self.run_ids]
        for name in self._wanted(names):
            for stage in (stage for stage in stages if stage.step == name):
                self._train(stage)
            if name == "evaluate":
                for system in chosen_systems(self.options):
                    self._evaluate(system)
            elif name in ("compare", "register"):
                self._judge(name)

    def _side_by_side(self, systems: Sequence[str]) -> None:
        at_once, works = self.options.systems_together, [Branch(self.options, self.run_ids, system) for system in systems]
        print(f"side by side, {min(at_once, len(systems))} at a time: {', '.join(systems)}", flush=True)
        for found in side_by_side(run_branch, works, parent_id(), at_once):
            self.run_ids |= found
        if {MIXTURE, LORA} <= self.run_ids.keys():
            self._leave_out_unfair_lora()

    def _leave_out_unfair_lora(self) -> None:
        """One LoRA that got other than the mixture is trained again, where its turn comes."""
        found = not_as_planned(self.run_ids[MIXTURE], self.run_ids[LORA], lora_given(self.options)["adapter_rank"])
        if found:
            print(f"{LORA} is trained again: the mixture has {found}", flush=True)
            del self.run_ids[LORA]
            self.run_ids.pop(f"evaluate {LORA}", None)

    def _train(self, stage: Stage) -> None:
        given = training_given(stage, self.options, self.run_ids)
        if stage is PLANNED:
            given["lora_epochs"] = planned_epochs(self.options, self.run_ids["prepare"])
        self._launch(stage.name, stage.module, stage_options(stage.module, self.options, **given))

    def _evaluate(self, system: str) -> None:
        name = f"evaluate {system}"
        if name not in self.run_ids:
            given = evaluation_given(system, self.run_ids["prepare"], self.run_ids[system]) | unasked(system, self.options)
            self._launch(name, evaluate, stage_options(evaluate, self.options, **given))

    def _judge(self, name: str) -> None:
        module = STAGES[NAMES.index(name)]
        if module not in left_out(self.options):
            run_ids = ",".join(self.run_ids[f"evaluate {system}"] for system in chosen_systems(self.options))
            self._launch(name, module, stage_options(module, self.options, evaluate_run_ids=run_ids))

    def _launch(self, name: str, module: ModuleType, options: Options) -> None:
        step = step_name(module)
        title = name if name.startswith(step) else f"{step} {name}"
        self.run_ids[name] = launch(module, options, self.options.force in ("all", step), title, self.options.accept_changes)


@dataclasses.dataclass(frozen=True)
class Branch:
    """A system to train and evaluate above the stages that have run."""

    options: Any
    run_ids: dict[str, str]
    system: str


def run_branch(branch: Branch) -> dict[str, str]:
    """The ids of all its runs, those that had run before too."""
    chain = Chain(branch.options, branch.run_ids)
    chain.run_system(branch.system)
    return chain.run_ids
