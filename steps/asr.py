"""Entry point `asr`: joint training of gate, experts and shared adapter with top-k routing; writes the artifact `model`.

Reads `prepare`, `pretrain`, and, unless pretraining is skipped, `embed`, `cluster`, `gate` and `experts` runs. Example:
    mlflow run . -e asr -P prepare_run_id=ID -P pretrain_run_id=ID -P embed_run_id=ID -P cluster_run_id=ID -P gate_run_id=ID -P experts_run_id=ID
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from moe.experts.joint_training import JointOptions, TrainedMixture, experts_faults, train_jointly
from moe.experts.routed_lora import AdapterOptions
from moe.files import read_json
from moe.options import names_of, option
from moe.routing.ablations import majority
from moe.routing.curriculum import CurriculumOptions
from moe.routing.embeddings import read_by_gate
from moe.routing.gate import Gate, GateConfig
from moe.routing.losses import BalanceOptions
from moe.routing.options import RoutingOptions
from moe.systems.whisper.base_model import BaseModel
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.folder import ModelRecord, load_adapters, save_model
from moe.systems.whisper_moe.model import WhisperMoE
from moe.training.loop import seed_everything
from moe.training.precision import precision
from steps.inputs.corpus import Prepared, read_prepared, soft_labels
from steps.inputs.training import checkpoints_of, embeddings_of, plan_of, read_base, reporter, speech_set
from steps.options.step_options import TRAINING, MixtureStepOptions, SkipPretrainingOptions
from steps.reports.mixture import log_experts, log_training, routed_rows
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun


@dataclasses.dataclass(frozen=True)
class StepOptions(JointOptions, CurriculumOptions, BalanceOptions, SkipPretrainingOptions, MixtureStepOptions):
    """Train gate and experts jointly."""

    embed_run_id: str | None = option(None, "run that made the embeddings (none: computed here)")
    cluster_run_id: str | None = option(None, "run that made the clusters (none: with skip_pretraining)")
    gate_run_id: str | None = option(None, "run that trained the gate (none: with skip_pretraining)")
    experts_run_id: str | None = option(None, "run that trained the experts (none: with skip_pretraining)")

    def faults(self) -> list[str]:
        """Faults between fields."""
        found, upstream = [], ("cluster_run_id", "gate_run_id", "experts_run_id")
        if not self.skip_pretraining and self.num_experts is not None:
            found.append(f"num_experts={self.num_experts}: only skip_pretraining=true has it, else there are as many as clusters")
        if self.skip_pretraining and self.n_asked is not None and self.top_k > self.n_asked:
            found.append(f"top_k={self.top_k}: num_experts={self.num_experts} has no more to mix")
        if self.skip_pretraining and self.freeze_gate:
            found.append("freeze_gate=true: skip_pretraining=true starts with a random gate, which would stay random")
        if self.skip_pretraining and self.alignment_coefficient:
            found.append(
                f"alignment_coefficient={self.alignment_coefficient:g}: skip_pretraining=true has no clusters to align the gate to"
            )
        if self.skip_pretraining and any(getattr(self, name) for name in upstream):
            found.append(f"skip_pretraining=true reads none of {', '.join(upstream)}")
        if not self.skip_pretraining:
            found += [f"{name} is missing" for name in upstream if getattr(self, name) is None]
        if self.n_asked is not None:
            found += self.experts_faults(self.n_asked)
        return found + self._gate_faults()

    def idle(self) -> dict[str, str]:
        """What no training reads."""
        names = [*names_of(JointOptions, CurriculumOptions, BalanceOptions, but=["asr_epochs"]), *TRAINING]
        return {} if self.asr_epochs else dict.fromkeys(names, "asr_epochs=0 trains nothing")

    def experts_faults(self, n_experts: int) -> list[str]:
        """Options that so many experts leave without effect, or cannot satisfy."""
        return experts_faults(n_experts, self.part(RoutingOptions), self.part(CurriculumOptions), self.part(BalanceOptions))

    def _gate_faults(self) -> list[str]:
        """What a frozen gate leaves without effect, and a gate that nothing teaches."""
        if self.freeze_gate:
            terms = [field.name for field in dataclasses.fields(BalanceOptions) if getattr(self, field.name) != "none"]
            return [f"{name}={getattr(self, name)}: freeze_gate=true trains no gate" for name in terms if self.is_changed(name)]
        if self.asr_epochs and self.top_k == 1 and self.gate_scaling == "renormalised" and not self.soft_epochs and not self.teaches_gate:
            return [
                "top_k=1 gives the gate no gradient from the transcription, and no other loss is asked for: set gate_scaling=probability, "
                "a balance, minimum_usage, entropy or alignment term, soft_epochs, or freeze_gate=true"
            ]
        return []


def run(options: StepOptions) -> str:
    """Train the mixture, log the model and return the run id."""
    name = f"asr · {'from random' if options.skip_pretraining else 'joint'} · top {options.top_k} · seed {options.seed}"
    with runs.step_run("asr", options, name) as step:
        prepared = read_prepared(options.prepare_run_id)
        base, base_dir = read_base(options.pretrain_run_id)
        train = prepared.train(options.asr_percent, options.data_percent, options.stage_floor, options.seed)
        dev = prepared.rows("dev")
        scored = prepared.dev(len(train), options.eval_share, options.seed)
        prepared.log_input(step, train, "training")
        prepared.log_input(step, scored, "validation")
        routing, context = options.part(RoutingOptions), options.part(AudioContextOptions)
        rows = pd.concat([train, dev])
        embeddings = embeddings_of(prepared, rows, base, routing, context, options.embed_run_id, precision(options))
        vectors = {"train": read_by_gate(options.gate_unit, train, embeddings), "dev": read_by_gate(options.gate_unit, dev, embeddings)}
        scored_vectors = vectors["dev"][dev["utterance_id"].isin(scored["utterance_id"]).to_numpy()]
        seed_everything(options.seed)
        model = initial_mixture(options, base, vectors["train"])
        trained = train_jointly(
            model,
            speech_set(prepared, train, base, options, {"embedding": vectors["train"], **_targets(options, train)}),
            speech_set(prepared, scored, base, extras={"embedding": scored_vectors}),
            options.part(JointOptions),
            options.part(CurriculumOptions),
            plan_of(options, options.asr_epochs, options.asr_batch_size, options.asr_learning_rate),
            options.part(AudioContextOptions),
            reporter(step),
            options.eval_every_n_epochs,
            checkpoints_of(step, options),
        )
        routed = routed_rows(model.gate, dev, vectors["dev"], options.top_k, prepared.root)
        record = _record(options, prepared, model, trained, routed)
        _log_model(step, options, model, base, base_dir, record)
        _report(step, options, prepared, trained, record)
        log_experts(step, routed, prepared)
    return step.run_id


def initial_mixture(options: StepOptions, base: BaseModel, train_embeddings: np.ndarray) -> WhisperMoE:
    """Gate and experts as earlier runs left them, or random with skip_pretraining."""
    adapters, routing, balance = options.part(AdapterOptions), options.part(RoutingOptions), options.part(BalanceOptions)
    if options.skip_pretraining and options.n_asked:
        gate = Gate(GateConfig(train_embeddings.shape[1], options.n_asked), options.seed)
        gate.set_statistics(torch.from_numpy(train_embeddings))
        return WhisperMoE(base.model, options.n_asked, adapters, routing, gate, balance)
    experts_dir = artifacts.upstream(options.experts_run_id, artifacts.EXPERTS)
    gate = Gate.load(artifacts.upstream(options.gate_run_id, artifacts.GATE))
    n_experts = read_json(artifacts.upstream(options.experts_run_id, artifacts.EXPERTS_RECORD))["n_experts"]
    if faults := options.experts_faults(n_experts):
        raise ValueError("; ".join(faults))
    if gate.gate_config.n_experts != n_experts:
        raise ValueError(
            f"gate run {options.gate_run_id} has {gate.gate_config.n_experts} experts, experts run {options.experts_run_id} {n_experts}"
        )
    model = WhisperMoE(base.model, n_experts, adapters, routing, gate, balance)
    load_adapters(experts_dir, model, adapters.shared_rank)
    return model


def _targets(options: StepOptions, train: pd.DataFrame) -> dict[str, np.ndarray]:
    if not (options.alignment_coefficient and options.cluster_run_id):
        return {}
    labels = pd.read_parquet(artifacts.upstream(options.cluster_run_id, artifacts.LABELS)).set_index("utterance_id")
    return {"cluster_weights": soft_labels(labels.loc[train["utterance_id"]])}


def _record(
    options: StepOptions,
    prepared: Prepared,
    model: WhisperMoE,
    trained: TrainedMixture,
    routed: pd.DataFrame,
) -> ModelRecord:
    n_trainable = sum(parameter.numel() for parameter in model.trainable_parameters().values())
    earlier = read_json(artifacts.upstream(options.experts_run_id, artifacts.EXPERTS_RECORD)) if options.experts_run_id else {}
    return ModelRecord(
        system="whisper_moe",
        n_experts=model.n_experts,
        adapters=options.part(AdapterOptions),
        routing=options.part(RoutingOptions),
        context=options.part(AudioContextOptions),
        normaliser=prepared.normaliser,
        language=prepared.language,
        expert_of_etiology=_oracle(options, routed),
        information={
            "synthetic": bool(prepared.note),
            "n_trainable": n_trainable,
            "n_total": sum(parameter.numel() for parameter in model.parameters()),
            "n_utterances_seen": trained.summary.n_utterances + earlier.get("n_utterances_seen", 0),
            "n_updates": trained.summary.n_updates + earlier.get("n_updates", 0),
            "n_bad_updates": len(trained.summary.bad_updates),
            "training_seconds": trained.summary.seconds + earlier.get("seconds", 0.0),
            "seed": options.seed,
        },
    )


def _oracle(options: StepOptions, routed: pd.DataFrame) -> dict[str, int]:
    """The expert of each etiology: its training speakers' cluster, or, without clusters, the gate's choice on dev."""
    if options.cluster_run_id:
        labels = pd.read_parquet(artifacts.upstream(options.cluster_run_id, artifacts.LABELS))
        labels = labels[labels["split"] == "train"]
        return majority(labels["cluster"].to_numpy(), labels["etiology"])
    return majority(routed["expert"].to_numpy(), routed["etiology"])


def _log_model(
    step: StepRun, options: StepOptions, model: WhisperMoE, base: BaseModel, base_dir: Path, record: ModelRecord
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / artifacts.MODEL
        save_model(folder, model, base.processor, record, base_dir)
        if options.cluster_run_id:
            shutil.copytree(artifacts.upstream(options.cluster_run_id, artifacts.CLUSTERS), folder / artifacts.CLUSTERS)
        step.log_folder(folder, artifacts.MODEL)


def _report(step: StepRun, options: StepOptions, prepared: Prepared, trained: TrainedMixture, record: ModelRecord) -> None:
    numbers = {name: value for name, value in record.information.items() if name not in ("synthetic", "seed")}
    step.log_metrics({"dev/wer_kept": trained.wer, **({} if trained.epoch is None else {"best_epoch": trained.epoch}), **numbers})
    log_training(step, trained, prepared.note)
    step.describe(_description(options, prepared, trained, record))


def _description(options: StepOptions, prepared: Prepared, trained: TrainedMixture, record: ModelRecord) -> str:
    info = record.information
    start = "random gate and experts" if options.skip_pretraining else "the trained gate and experts"
    top_k, note = min(options.top_k, record.n_experts), ""
    if top_k == 1 < record.n_experts and options.gate_scaling == "renormalised" and not options.freeze_gate:
        note = " With one expert per utterance and renormalised weights the gate learnt from the routing losses alone."
    return (
        f"## Mixture{' on SYNTHETIC speech' if prepared.note else ''}\nJoint training from {start}: {record.n_experts} experts, top "
        f"{top_k}, mixing `{options.mixing}`, gate at layer `{options.gate_layer}`. {info['n_trainable']:,} trainable of "
        f"{info['n_total']:,} parameters; {info['n_utterances_seen']:,} utterances seen in all. {trained.kept} is kept by dev WER, "
        f"{100 * trained.wer:.1f} % (at the start {100 * trained.start_wer:.1f} %). Training took {trained.summary.seconds:.0f} s. "
        f"`model/` rebuilds the recogniser by itself; `exemplars.html` lets each expert's dev utterances be heard.{note}"
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
