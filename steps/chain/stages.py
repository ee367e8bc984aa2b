"""The stages of the chain: which run, with which options, each told the ids of the runs it reads."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from moe.options import Options, names_of
from steps import asr, baseline, cluster, compare, embed, evaluate, experts, gate, prepare, pretrain, register, synthesize
from steps.chain.options import ChainOptions
from steps.chain.reuse import launch
from steps.options.step_options import SYNTHETIC, default_experts

STAGES: tuple[ModuleType, ...] = (
    synthesize, prepare, pretrain, embed, cluster, gate, experts, asr, baseline, evaluate, compare, register,
)  # fmt: skip
NAMES = tuple(stage.__name__.rpartition(".")[2] for stage in STAGES)


def left_out(options: ChainOptions) -> dict[ModuleType, str]:
    """The stages that do not run, each with the option that says so."""
    stages = {} if options.corpus == SYNTHETIC else {synthesize: f"corpus={options.corpus}"}
    return stages | (dict.fromkeys((embed, cluster, gate, experts), "skip_pretraining=true") if options.skip_pretraining else {})


def stage_options(stage: ModuleType, options: ChainOptions, **given: Any) -> Options:
    """The options of one stage: those of `main` that it has and that do something there, and `given`."""
    idle = idle_options(stage, options, given)
    values = {name: getattr(options, name) for name in names_of(stage.StepOptions) if hasattr(options, name) and name not in idle}
    return stage.StepOptions(**values | given)


def idle_options(stage: ModuleType, options: ChainOptions, given: Mapping[str, Any]) -> dict[str, str]:
    """Options that do nothing in a stage, each with the reason."""
    return stage.StepOptions.unchecked({**vars(options), **given}).all_idle()


def n_experts(options: ChainOptions) -> int | str:
    """Experts to cluster for; auto where the clusters are to say."""
    return options.num_experts or default_experts(options.corpus == SYNTHETIC)


def corpus_seed(stage: ModuleType, options: ChainOptions) -> dict[str, int]:
    """The seed of the stages that make the corpus, where it is not the chain's."""
    return {"seed": options.corpus_seed} if options.corpus_seed is not None and stage in (synthesize, prepare) else {}


class Chain:
    """Runs the stages in order and keeps the ids of their runs."""

    def __init__(self, options: ChainOptions) -> None:
        self.options = options
        self.run_ids: dict[str, str] = {}

    def run(self) -> None:
        """Every stage up to `until`, but for those left out."""
        skipped = left_out(self.options)
        for name, stage in zip(NAMES, STAGES, strict=True):
            if stage not in skipped:
                getattr(self, f"_{name}")()
            if name == self.options.until:
                return

    def _launch(self, stage: ModuleType, key: str | None = None, **given: Any) -> None:
        name = stage.__name__.rpartition(".")[2]
        force = self.options.force in ("all", name)
        self.run_ids[key or name] = launch(stage, stage_options(stage, self.options, **corpus_seed(stage, self.options), **given), force)

    def _ids(self, *names: str) -> dict[str, str]:
        return {f"{name}_run_id": self.run_ids[name] for name in names}

    def _synthesize(self) -> None:
        self._launch(synthesize)

    def _prepare(self) -> None:
        self._launch(prepare, synthesize_run_id=self.run_ids.get("synthesize"))

    def _pretrain(self) -> None:
        self._launch(pretrain, **self._ids("prepare"))

    def _embed(self) -> None:
        self._launch(embed, **self._ids("prepare", "pretrain"))

    def _cluster(self) -> None:
        self._launch(cluster, **self._ids("prepare", "embed"), num_experts=n_experts(self.options))

    def _gate(self) -> None:
        self._launch(gate, **self._ids("embed", "cluster"))

    def _experts(self) -> None:
        self._launch(experts, **self._ids("prepare", "pretrain", "cluster"))

    def _asr(self) -> None:
        skipped = self.options.skip_pretraining
        upstream = () if skipped else ("embed", "cluster", "gate", "experts")
        self._launch(asr, **self._ids("prepare", "pretrain", *upstream), num_experts=self.options.num_experts if skipped else None)

    def _baseline(self) -> None:
        self._launch(baseline, "zero_shot", system="zero_shot", **self._ids("prepare", "pretrain"))
        self._launch(baseline, "single_lora", system="single_lora", **self._ids("prepare", "pretrain", "asr"))

    def _evaluate(self) -> None:
        for system in ("zero_shot", "single_lora"):
            self._launch(evaluate, f"evaluate {system}", **self._ids("prepare"), baseline_run_id=self.run_ids[system])
        self._launch(evaluate, "evaluate asr", **self._ids("prepare", "asr"))

    def _compare(self) -> None:
        self._launch(compare, evaluate_run_ids=self._evaluations())

    def _register(self) -> None:
        self._launch(register, evaluate_run_ids=self._evaluations())

    def _evaluations(self) -> str:
        return ",".join(run_id for name, run_id in self.run_ids.items() if name.startswith("evaluate "))
