"""Entry point `steer`: SteerMoE, a frozen Whisper whose frames are steered and a frozen language model that writes; writes the artifact `model`.

Reads a `prepare`, a `pretrain` and a `decoder` run. Example:
    mlflow run . --env-manager local -e steer -P prepare_run_id=ID -P pretrain_run_id=ID -P decoder_run_id=ID -P steer_experts=8
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.plots.steering import dev_figure, history_figure
from analysis.report import percent
from moe.experts.routed_lora import matched_rank
from moe.options import names_of, option
from moe.system import read_record
from moe.systems.steer_moe.decoder import files_of
from moe.systems.steer_moe.options import LORA, WHISPER, SteerModelOptions
from moe.systems.steer_moe.parts import Sources, lora_of
from moe.systems.steer_moe.shapes import decoder_shape, encoder_shape, shape_faults
from moe.systems.steer_moe.system import NAME, SteerSystem, build
from moe.systems.steer_moe.training import WARNING, SteerTrainingOptions, TrainedSteer, train
from moe.systems.whisper.base_model import BaseModel
from moe.systems.whisper.features import AudioContextOptions
from moe.training.loop import seed_everything
from moe.training.plan import TrainingPlan
from moe.training.precision import precision
from steps.inputs.feasible import feasible
from steps.inputs.training import TrainingInputs, log_system, plan_of, read_base, training_facts, training_inputs
from steps.options.step_options import TRAINING, ExportOptions, TrainingStepOptions
from steps.reports.training import log_curves, log_kept
from steps.tracking import artifacts, runs
from steps.tracking.artifacts import NONE_GIVEN
from steps.tracking.step_run import StepRun

OF_STEERING = (
    "steering_learning_rate", "scale_learning_rate", "router_learning_rate", "steering_gradient_clip", "steering_balance_coefficient",
    "steering_log_every",
)  # fmt: skip
COMPILED = ("none", "encoder", "all")
NO_CLIP = float("inf")  # the loop's own would scale every group by the gradient of the vectors


@dataclasses.dataclass(frozen=True)
class StepOptions(SteerTrainingOptions, SteerModelOptions, AudioContextOptions, ExportOptions, TrainingStepOptions):
    """Train SteerMoE."""

    pretrain_run_id: str = option(help="run that holds the base model")
    decoder_run_id: str = option("none", "run that holds the language model")
    match_run_id: str | None = option(None, "steer run whose trainable parameters steer_adapter=lora gets")
    compile: str = option("none", "what torch.compile compiles", choices=COMPILED)
    max_quarantined: float = option(0.05, "share of the corpus that may be quarantined before the step fails", low=0, high=1)

    def faults(self) -> list[str]:
        """What is missing beside the other options."""
        found = []
        if self.steer_adapter == LORA and self.match_run_id is None:
            found.append(
                "match_run_id is missing: steer_adapter=lora is as large as another steer run; start steer by itself, -e steer"
            )
        if self.writer != WHISPER and self.decoder_run_id in NONE_GIVEN:
            found.append("decoder_run_id is missing: writer=llm needs a language model")
        if not (self.projects or self.steers or self.steer_adapter == LORA):
            who = "writer=whisper" if self.writer == WHISPER else "projector=none"
            found.append(f"{who} and steer_experts=0: nothing would train")
        return found

    def idle(self) -> dict[str, str]:
        """What has nothing to act on."""
        found = {} if self.steer_adapter == LORA else {"match_run_id": f"steer_adapter={self.steer_adapter} matches no run"}
        if self.writer == WHISPER:
            found["decoder_run_id"] = "writer=whisper uses no language model"
        if not (self.projects or self.steer_adapter == LORA):
            found["steer_learning_rate"] = "there is no projector to train"
        if not self.steers:
            found |= dict.fromkeys(OF_STEERING, "there is no steering to train")
        elif self.steer_experts == 1:
            found |= dict.fromkeys(
                ("router_learning_rate", "steering_balance_coefficient"), "steer_experts=1 leaves nothing to choose"
            )
        if not self.use_layer_scales:
            found["scale_learning_rate"] = "use_layer_scales=false learns no scales"
        if not self.steer_epochs:
            names = names_of(SteerTrainingOptions, but=["steer_epochs", "steer_percent", "steer_select"])
            found |= dict.fromkeys([*names, *set(TRAINING) & set(names_of(type(self)))], "steer_epochs=0 trains nothing")
        return found


def run(options: StepOptions) -> str:
    """Train SteerMoE, log the model and return the run id."""
    return runs.in_run("steer", options, _work, f"steer · {_variant(options)} · seed {options.seed}")


def _work(step: StepRun, options: StepOptions) -> None:
    plan = plan_of(options, options.steer_epochs, options.steer_batch_size, options.steer_learning_rate)
    refuse_shapes(options)
    n_lora = _lora_size(options)
    given = training_inputs(step, options, options.steer_percent, _plan(options, plan))
    base, base_dir = read_base(options.pretrain_run_id, given.prepared.language)
    seed_everything(options.seed)
    system = _system(options, given, base, base_dir, n_lora)
    given = feasible(step, given, system.inputs, options.max_quarantined, "allow longer ones")
    etiologies = pd.concat([given.train, given.dev]).set_index("utterance_id")["etiology"].to_dict()
    train_set, dev_set = (
        make(system.inputs, system.from_manifest(rows))
        for make, rows in ((given.train_set, given.train), (given.dev_set, given.dev))
    )
    trained = train(system, train_set, dev_set, options.part(SteerTrainingOptions), given.training, etiologies)
    facts = training_facts(system, trained.summary, options.seed)
    facts |= {f"n_trainable/{group.name}": group.n_parameters for group in system.parameter_groups()}
    log_system(step, system, {"synthetic": bool(given.prepared.note), **facts}, options)
    _report(step, options, given, system, trained, facts)


def refuse_shapes(options: StepOptions) -> None:
    """Refuse what base, language model and options do not agree on, before either is loaded.

    Raises:
        ValueError: all of it.
    """
    asked, decoder = options.part(SteerModelOptions), None
    encoder = encoder_shape(str(artifacts.upstream(options.pretrain_run_id, artifacts.BASE)))
    if options.writer != WHISPER:
        decoder = decoder_shape(files_of(artifacts.upstream(options.decoder_run_id, artifacts.DECODER)), asked)
    if encoder is not None and (faults := shape_faults(asked, encoder, decoder)):
        raise ValueError("; ".join(faults))


def _variant(options: StepOptions) -> str:
    who = "Whisper writes" if options.writer == WHISPER else "LLM writes"
    return f"{'LoRA' if options.steer_adapter == LORA else f'{options.steer_experts} experts'}, {who}"


def _plan(options: StepOptions, plan: TrainingPlan) -> TrainingPlan:
    return dataclasses.replace(plan, weight_decay=options.steer_weight_decay, max_grad_norm=NO_CLIP)


def _system(options: StepOptions, given: TrainingInputs, base: BaseModel, base_dir: Path, n_lora: int) -> SteerSystem:
    """An untrained one in the precision of the training; a LoRA in its encoder has `n_lora` parameters, to the nearest rank."""
    writes = options.writer != WHISPER
    sources = Sources(base_dir, artifacts.upstream(options.decoder_run_id, artifacts.DECODER) if writes else None)
    rank = matched_rank(base.model.model.encoder, lora_of(1), n_lora) if n_lora else 0
    system = build(
        sources,
        options.part(SteerModelOptions),
        options.part(AudioContextOptions),
        given.prepared.language,
        given.prepared.label_normaliser,
        options.rates,
        rank,
        options.steering_balance_coefficient,
    )
    system.module.use_precision(precision(options))
    if options.compile != "none":
        (system.module.encoder if options.compile == "encoder" else system.module).compile()
    return system


def _lora_size(options: StepOptions) -> int:
    """Parameters of a LoRA in the encoder: as many as the steering of another run trained; 0 without LoRA.

    Raises:
        ValueError: the other run steered nothing.
    """
    if options.steer_adapter != LORA:
        return 0
    record = read_record(artifacts.upstream(options.match_run_id, artifacts.MODEL))
    n_steering = record.facts["n_trainable"] - record.facts.get("n_trainable/projector", 0)
    if record.system != NAME or not n_steering:
        raise ValueError(
            f"match_run_id={options.match_run_id}: {record.title} steers nothing; name a steer run with steer_experts above 0"
        )
    return int(n_steering)


def _report(
    step: StepRun,
    options: StepOptions,
    given: TrainingInputs,
    system: SteerSystem,
    trained: TrainedSteer,
    facts: Mapping[str, float],
) -> None:
    note, history, analyses = given.prepared.note, pd.DataFrame(trained.history), pd.DataFrame(trained.analyses)
    log_kept(step, options.steer_select, trained, system, facts)
    if trained.warnings:
        given.training.checkpoints.events.report(WARNING, f"kept model: {'; '.join(trained.warnings)}")
    kept = pd.DataFrame(list(trained.steering.items()), columns=["measure", "value"])
    for table, name in ((history, "history"), (analyses, "steering"), (kept, "steering_kept")):
        if len(table):
            step.log_table(table, f"tables/{name}.json")
    _plots(step, options, system, trained, note)
    step.describe(_description(options, given, system, trained, facts))
    step.add_to_name(given.prepared.name, f"dev {options.steer_select.upper()} {percent(trained.rate)}")


def _plots(step: StepRun, options: StepOptions, system: SteerSystem, trained: TrainedSteer, note: str) -> None:
    if options.no_plot:
        return
    if trained.history:
        panels = {f"dev {name.upper()}": [name] for name in ("wer", options.steer_select)} | {"dev loss": ["loss"]}
        log_curves(step, options.steer_select, trained, panels, system, note)
    if len(trained.analyses) > 1:
        step.log_figure(history_figure(pd.DataFrame(trained.analyses), note), "plots/steering.png")
    if trained.steering and options.steer_experts > 1:
        step.log_figure(dev_figure(trained.steering, note), "plots/steering_use.png")


def _description(
    options: StepOptions, given: TrainingInputs, system: SteerSystem, trained: TrainedSteer, facts: Mapping[str, float]
) -> str:
    rate, parts = options.steer_select.upper(), "; ".join(f"{key}: {text}" for key, text in system.describe().items())
    groups = ", ".join(f"{group.name} {group.n_parameters:,} at {group.learning_rate:g}" for group in system.parameter_groups())
    warned = f"\n\n**Not as document 002 says:** {'; '.join(trained.warnings)}." if trained.warnings else ""
    return (
        f"Dev {rate} {100 * trained.rate:.1f} %, {100 * trained.start_rate:.1f} % at the start"
        f"{', SYNTHETIC speech' if given.prepared.note else ''}.\n\n{system.record.title}. {parts}. "
        f"{facts['n_trainable']:,} trainable of {facts['n_total']:,} parameters ({groups}). {facts['n_utterances_seen']:,} utterances seen. "
        f"{trained.kept} is kept by dev {rate}.{warned}"
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
