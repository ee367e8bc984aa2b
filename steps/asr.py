"""Entry point `asr`: joint training of gate, experts and shared adapter with top-k routing; writes the artifact `model`.

Reads `prepare`, `pretrain`, and, unless pretraining is skipped, `embed`, `cluster`, `gate` and `experts` runs. Example:
    mlflow run . --env-manager local -e asr -P prepare_run_id=ID -P pretrain_run_id=ID -P embed_run_id=ID -P cluster_run_id=ID -P gate_run_id=ID -P experts_run_id=ID
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis.report import percent
from moe.experts.joint_training import JointOptions, TrainedMixture, experts_faults, train_jointly
from moe.experts.rank_split import split_ranks
from moe.experts.routed_lora import AdapterOptions
from moe.files import read_json
from moe.options import names_of, option
from moe.routing.ablations import majority
from moe.routing.curriculum import CurriculumOptions
from moe.routing.embeddings import read_by_gate
from moe.routing.gate import Gate, GateConfig
from moe.routing.losses import BalanceOptions
from moe.routing.options import RoutingOptions
from moe.routing.weights import CERTAINTY, RENORMALISED
from moe.systems.whisper.base_model import BaseModel
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.folder import MIXTURE, WhisperShape, load_adapters, new_record
from moe.systems.whisper_moe.mixture_system import WhisperMoESystem
from moe.systems.whisper_moe.model import WhisperMoE
from moe.training.loop import seed_everything
from moe.training.precision import precision
from steps.inputs.corpus import Prepared, soft_labels
from steps.inputs.expert_clusters import clusters_of_experts, expert_of_cluster, read_labels
from steps.inputs.training import TrainingInputs, embeddings_of, log_system, plan_of, read_base, training_facts, training_inputs
from steps.options.step_options import TRAINING, AudioOptions, ExportOptions, MixtureStepOptions, SkipPretrainingOptions
from steps.reports.mixture import log_experts, log_training, routed_rows
from steps.reports.training import log_kept
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun


@dataclasses.dataclass(frozen=True)
class StepOptions(
    JointOptions, CurriculumOptions, BalanceOptions, SkipPretrainingOptions, ExportOptions, AudioOptions, MixtureStepOptions
):
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
        if self.skip_pretraining and self.gate_scaling == CERTAINTY:
            found.append(
                f"gate_scaling={CERTAINTY}: skip_pretraining=true starts with a gate that is sure of nothing, so no expert would learn"
            )
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
        if (
            self.asr_epochs
            and self.top_k == 1
            and self.gate_scaling == RENORMALISED
            and not self.soft_epochs
            and not self.teaches_gate
        ):
            ways = ", ".join(self._ways_to_teach())
            return [
                f"top_k=1 gives the gate no gradient from the transcription, and no other loss is asked for: set one of {ways}"
            ]
        return []

    def _ways_to_teach(self) -> list[str]:
        """What teaches a gate, or lets it stay as it is, and is not refused beside the other options."""
        ways = ["minimum_usage=0.05", "entropy_coefficient=0.01", "soft_epochs=1"]
        ways.append("balance=kl" if self.balance == "none" else "balance_coefficient=0.01")
        if self.mixing != "loss":
            ways.append("gate_scaling=probability")
        if not self.skip_pretraining:
            ways.append("alignment_coefficient=0.1")
            changed = ("gate_learning_rate", "balance_coefficient", "balance_window")
            ways += [] if any(map(self.is_changed, changed)) else ["freeze_gate=true"]
        return ways


def run(options: StepOptions) -> str:
    """Train the mixture, log the model and return the run id."""
    name = f"asr · {'from random' if options.skip_pretraining else 'joint'} · top {options.top_k} · seed {options.seed}"
    return runs.in_run("asr", options, _work, name)


def _work(step: StepRun, options: StepOptions) -> None:
    plan = plan_of(options, options.asr_epochs, options.asr_batch_size, options.asr_learning_rate)
    given = training_inputs(step, options, options.asr_percent, plan)
    _n_experts(options)  # what its runs do not agree on is refused before anything is embedded
    base, base_dir = read_base(options.pretrain_run_id, given.prepared.language)
    dev = given.prepared.rows("dev")
    vectors = _read_by_gate(options, given, base, dev)
    seed_everything(options.seed)
    system = initial_mixture(options, given.prepared, base, base_dir, vectors["train"])
    trained = train_jointly(
        system,
        given.train_set(system.inputs, {"embedding": vectors["train"], **_targets(options, given.train)}),
        given.dev_set(system.inputs, {"embedding": vectors["scored"]}),
        options.part(JointOptions),
        options.part(CurriculumOptions),
        given.training,
    )
    routed = routed_rows(system.gate, dev, vectors["dev"], options.top_k, given.prepared.root)
    system.expert_of_etiology = _oracle(options, routed)
    facts = training_facts(system, trained.summary, options.seed, _earlier(options))
    with clusters_of_experts(options.cluster_run_id, options.experts_run_id) as clusters:
        log_system(step, system, {"synthetic": bool(given.prepared.note), **facts}, options, clusters)
    _report(step, options, given.prepared, trained, facts, system)
    log_experts(step, routed, given.prepared, options.share_audio)


def initial_mixture(
    options: StepOptions, prepared: Prepared, base: BaseModel, base_dir: Path, train_embeddings: np.ndarray
) -> WhisperMoESystem:
    """Gate and experts as earlier runs left them, or random with skip_pretraining; `train_embeddings` (N, D) are what a new gate scales by."""
    gate, n_experts = _initial_gate(options, train_embeddings)
    adapters, routing = _ranks(options, n_experts), options.part(RoutingOptions)
    model = WhisperMoE(base.model, n_experts, adapters, routing, gate, options.part(BalanceOptions))
    if not options.skip_pretraining:
        load_adapters(artifacts.upstream(options.experts_run_id, artifacts.EXPERTS), model)
    shape = WhisperShape(n_experts, adapters, routing, options.part(AudioContextOptions))
    record = new_record(MIXTURE, shape, prepared.language, prepared.label_normaliser, {})
    rates = {"adapters": options.asr_learning_rate, "gate": options.gate_learning_rate}
    return WhisperMoESystem(model, base, base_dir, record, rates)


def _ranks(options: StepOptions, n_experts: int) -> AdapterOptions:
    """The ranks as the experts' run trained and stacked them, or as these options say.

    Raises:
        ValueError: a shared adapter is to train alone, and there is none.
    """
    if options.experts_run_id is None:
        return split_ranks(options.part(AdapterOptions), n_experts)
    found = AdapterOptions(**read_json(artifacts.upstream(options.experts_run_id, artifacts.EXPERTS_RECORD))["adapters"])
    if options.expert_dropout and not found.shared_rank:
        raise ValueError(f"expert_dropout={options.expert_dropout:g}: experts run {options.experts_run_id} has no shared adapter")
    return found


def _initial_gate(options: StepOptions, train_embeddings: np.ndarray) -> tuple[Gate, int]:
    """The gate to begin with, and the number of experts."""
    n_experts = _n_experts(options)
    if not options.skip_pretraining:
        return _trained_gate(options), n_experts
    gate = Gate(GateConfig(train_embeddings.shape[1], n_experts), options.seed)
    gate.set_statistics(torch.from_numpy(train_embeddings))
    return gate, n_experts


def _n_experts(options: StepOptions) -> int:
    """As many as are asked for with skip_pretraining, else as the experts run trained.

    Raises:
        ValueError: the gate has another number, or the options do not go with it.
    """
    if options.skip_pretraining and options.n_asked:
        return options.n_asked
    gate = _trained_gate(options)
    n_experts: int = read_json(artifacts.upstream(options.experts_run_id, artifacts.EXPERTS_RECORD))["n_experts"]
    if faults := options.experts_faults(n_experts):
        raise ValueError("; ".join(faults))
    if gate.gate_config.n_experts != n_experts:
        raise ValueError(
            f"gate run {options.gate_run_id} has {gate.gate_config.n_experts} experts, experts run {options.experts_run_id} {n_experts}"
        )
    return n_experts


def _trained_gate(options: StepOptions) -> Gate:
    """The gate as its run left it; where experts were merged, the probabilities of their clusters are summed."""
    gate, experts = Gate.load(artifacts.upstream(options.gate_run_id, artifacts.GATE)), expert_of_cluster(options.experts_run_id)
    return gate if experts is None or len(experts) != gate.gate_config.n_experts else gate.joined(experts)


def _read_by_gate(options: StepOptions, given: TrainingInputs, base: BaseModel, dev: pd.DataFrame) -> dict[str, np.ndarray]:
    """What the gate reads (N, D) of the rows trained on, of all of dev, and of the dev rows that are scored."""
    routing, context, rows = options.part(RoutingOptions), options.part(AudioContextOptions), pd.concat([given.train, dev])
    embeddings = embeddings_of(given.prepared, rows, base, routing, context, options.embed_run_id, precision(options))
    vectors = {name: read_by_gate(options.gate_unit, part, embeddings) for name, part in (("train", given.train), ("dev", dev))}
    scored = dev["utterance_id"].isin(given.dev["utterance_id"]).to_numpy()
    return vectors | {"scored": vectors["dev"][scored]}


def _targets(options: StepOptions, train: pd.DataFrame) -> dict[str, np.ndarray]:
    if not (options.alignment_coefficient and options.cluster_run_id):
        return {}
    labels = read_labels(options.cluster_run_id, options.experts_run_id).set_index("utterance_id")
    return {"cluster_weights": soft_labels(labels.loc[train["utterance_id"]])}


def _earlier(options: StepOptions) -> dict[str, float]:
    """What training the experts took."""
    return read_json(artifacts.upstream(options.experts_run_id, artifacts.EXPERTS_RECORD)) if options.experts_run_id else {}


def _oracle(options: StepOptions, routed: pd.DataFrame) -> dict[str, int]:
    """The expert of each etiology: its training speakers' cluster, or, without clusters, the gate's choice on dev."""
    if options.cluster_run_id:
        labels = read_labels(options.cluster_run_id, options.experts_run_id)
        labels = labels[labels["split"] == "train"]
        return majority(labels["cluster"].to_numpy(), labels["etiology"])
    return majority(routed["expert"].to_numpy(), routed["etiology"])


def _report(
    step: StepRun,
    options: StepOptions,
    prepared: Prepared,
    trained: TrainedMixture,
    facts: Mapping[str, float],
    system: WhisperMoESystem,
) -> None:
    log_kept(step, "wer", trained, system, facts)
    log_training(step, trained, system, prepared.note)
    step.add_to_name(prepared.name, f"dev WER {percent(trained.rate)}")
    step.describe(_description(options, prepared, trained, facts, system.n_experts))


def _description(
    options: StepOptions, prepared: Prepared, trained: TrainedMixture, info: Mapping[str, float], n_experts: int
) -> str:
    start = "random gate and experts" if options.skip_pretraining else "the trained gate and experts"
    top_k, note = min(options.top_k, n_experts), ""
    if top_k == 1 < n_experts and options.gate_scaling == RENORMALISED and not options.freeze_gate:
        note = " With one expert per utterance and renormalised weights the gate learnt from the routing losses alone."
    return (
        f"Dev WER {100 * trained.rate:.1f} %, {100 * trained.start_rate:.1f} % at the start{', SYNTHETIC speech' if prepared.note else ''}.\n\n"
        f"Joint training from {start}: {n_experts} experts, top "
        f"{top_k}, mixing `{options.mixing}`, gate at layer `{options.gate_layer}`. {info['n_trainable']:,} trainable of "
        f"{info['n_total']:,} parameters; {info['n_utterances_seen']:,} utterances seen in all. {trained.kept} is kept by dev WER. "
        f"Training took {trained.summary.seconds:.0f} s. "
        f"`model/` rebuilds the recogniser by itself; `exemplars.html` plays each expert's dev utterances.{note}"
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
