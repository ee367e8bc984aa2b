"""The chain at work: every stage in turn, each given the ids of the runs it reads."""

from types import ModuleType

from moe.options import Options
from steps import evaluate
from steps.chain.options import ChainOptions
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


class Chain:
    """Runs the stages in order and keeps the ids of their runs."""

    def __init__(self, options: ChainOptions) -> None:
        self.options = options
        self.run_ids: dict[str, str] = {}

    def run(self) -> None:
        """Every stage up to `until`, but for those left out."""
        stages = stages_of(self.options)
        for name in NAMES:
            for stage in (stage for stage in stages if stage.step == name):
                self._train(stage)
            if name == "evaluate":
                self._evaluate()
            elif name in ("compare", "register"):
                self._judge(name)
            if name == self.options.until:
                return

    def _train(self, stage: Stage) -> None:
        given = training_given(stage, self.options, self.run_ids)
        self._launch(stage.name, stage.module, stage_options(stage.module, self.options, **given))

    def _evaluate(self) -> None:
        for system in chosen_systems(self.options):
            given = evaluation_given(system, self.run_ids["prepare"], self.run_ids[system]) | unasked(system, self.options)
            self._launch(f"evaluate {system}", evaluate, stage_options(evaluate, self.options, **given))

    def _judge(self, name: str) -> None:
        module = STAGES[NAMES.index(name)]
        if module not in left_out(self.options):
            run_ids = ",".join(self.run_ids[f"evaluate {system}"] for system in chosen_systems(self.options))
            self._launch(name, module, stage_options(module, self.options, evaluate_run_ids=run_ids))

    def _launch(self, name: str, module: ModuleType, options: Options) -> None:
        step = step_name(module)
        title = name if name.startswith(step) else f"{step} {name}"
        self.run_ids[name] = launch(module, options, self.options.force in ("all", step), title, self.options.accept_changes)
