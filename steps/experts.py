"""Entry point `experts`: train all experts and the shared adapter beneath them, together, each utterance on its cluster's expert.

Reads `prepare`, `pretrain`, `embed`-ded and `cluster`-ed runs; writes the artifact `experts`: one PEFT folder per adapter. Example:
    mlflow run . --env-manager local -e experts -P prepare_run_id=ID -P pretrain_run_id=ID -P cluster_run_id=ID
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis.plots.training import from_start, training_curves
from analysis.report import percent
from moe.experts.alike import AlikeExperts, Merging, MergingOptions, copy_adapters
from moe.experts.expert_training import ExpertOptions, TrainedExperts, dev_wer, train_experts
from moe.experts.rank_split import split_ranks
from moe.experts.routed_lora import AdapterOptions
from moe.experts.stacking import TrainingsOptions, adapter_tensors, stack, stacked_options
from moe.files import write_json
from moe.options import NONE, names_of, option
from moe.recognition.decoding import device_of
from moe.routing.options import RoutingOptions
from moe.routing.weights import one_hot
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.folder import MIXTURE, WhisperShape, new_record, save_adapters
from moe.systems.whisper_moe.mixture_system import WhisperMoESystem
from moe.systems.whisper_moe.model import WhisperMoE
from moe.training.loop import Training, seed_everything, together
from steps.inputs.corpus import Prepared
from steps.inputs.training import TrainingInputs, plan_of, read_base, training_inputs
from steps.options.step_options import TRAINING, MixtureStepOptions
from steps.reports.merging import is_kept, log_merging, merging_line
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun


@dataclasses.dataclass(frozen=True)
class StepOptions(ExpertOptions, MergingOptions, TrainingsOptions, MixtureStepOptions):
    """Train the experts."""

    cluster_run_id: str = option(help="run that made the clusters")
    experts_percent: float = option(15.0, "part of the train split for expert training, percent", above=0, high=100)

    not_in_fingerprint = MixtureStepOptions.not_in_fingerprint | {
        "top_k",
        "mixing",
        "gate_unit",
        "gate_scaling",
    }  # here each utterance has one expert

    def faults(self) -> list[str]:
        """Faults between fields."""
        found = []
        if self.drop_experts and not self.shared_expert:
            found.append("drop_experts=true: shared_expert=false leaves the utterances of a dropped expert to the base model")
        if self.shared_epochs and not self.shared_expert:
            found.append(f"shared_epochs={self.shared_epochs}: shared_expert=false leaves nothing to train in them")
        elif self.experts_init == "shared" and self.adapter_rank is not None:
            found.append(f"adapter_rank={self.adapter_rank} with experts_init=shared: give lora_r, which is shared_r too")
        elif self.experts_init == "shared" and self.shared_rank != self.lora_r:
            found.append(
                f"experts_init=shared: shared_r={self.shared_rank} must be lora_r={self.lora_r}, for the experts to be copies"
            )
        return found

    def idle(self) -> dict[str, str]:
        """What no training reads."""
        names = [] if self.expert_epochs else [*names_of(ExpertOptions, MergingOptions, but=["expert_epochs"]), *TRAINING]
        by_epochs = {"eval_every_n_updates": "each expert is judged by its epochs"}
        return by_epochs | dict.fromkeys(names, "expert_epochs=0 trains nothing")


def run(options: StepOptions) -> str:
    """Train the experts, log them and return the run id."""
    return runs.in_run("experts", options, _work, f"experts · seed {options.seed}")


def _work(step: StepRun, options: StepOptions) -> None:
    plan = plan_of(options, options.expert_epochs, options.expert_batch_size, options.expert_learning_rate)
    given = training_inputs(step, options, options.experts_percent, plan)
    labels = pd.read_parquet(artifacts.upstream(options.cluster_run_id, artifacts.LABELS))
    n_experts = sum(name.startswith("soft_") for name in labels.columns)
    clusters = {split: _clusters(labels, rows) for split, rows in (("train", given.train), ("dev", given.dev))}
    _refuse_empty(clusters["train"], n_experts)
    ranks, trained, members = split_ranks(options.part(AdapterOptions), n_experts), [], []
    for number, seed in enumerate(options.seeds(options.seed)):
        seed_everything(seed)
        system = _new_mixture(options, given.prepared, ranks, n_experts)
        trained.append(_train(system, options, given, clusters, given.training.of(number, seed)))
        members.append(adapter_tensors(system.model.base))
    if options.trainings > 1:
        system = _new_mixture(options, given.prepared, stacked_options(ranks, options.trainings), n_experts)
        stack(system.model.base, members)
    kept = _together(system, options, given, clusters["dev"], trained)
    sizes, experts = np.bincount(clusters["train"], minlength=n_experts), list(range(n_experts))
    if options.merge_experts != NONE:
        system, kept, experts = _merge(step, options, given, system, kept, labels, sizes)
    _log_experts(step, options, system.model, kept, experts)
    _report(step, options, given.prepared, kept, sizes, system.model)


def _train(
    system: WhisperMoESystem, options: StepOptions, given: TrainingInputs, clusters: dict[str, np.ndarray], training: Training
) -> TrainedExperts:
    weights = one_hot(torch.from_numpy(clusters["train"]), system.n_experts).weights.numpy()
    train_set, dev_set = given.train_set(system.inputs, {"routing_weights": weights}), given.dev_set(system.inputs)
    return train_experts(system, train_set, dev_set, clusters["dev"], options.part(ExpertOptions), training)


def _together(
    system: WhisperMoESystem,
    options: StepOptions,
    given: TrainingInputs,
    dev_clusters: np.ndarray,
    trained: Sequence[TrainedExperts],
) -> TrainedExperts:
    """What several trainings did, as one, and the WER of their stack on dev."""
    if len(trained) == 1:
        return trained[0]
    system.model.use_precision(given.training.plan.precision)
    wer = dev_wer(system, given.dev_set(system.inputs), dev_clusters, options.part(ExpertOptions), given.training)
    history = tuple({"training": number, **row} for number, each in enumerate(trained) for row in each.history)
    kept = f"the mean of {len(trained)} trainings"
    return TrainedExperts(together([each.summary for each in trained]), kept, wer, history, trained[0].start)


def _merge(
    step: StepRun,
    options: StepOptions,
    given: TrainingInputs,
    system: WhisperMoESystem,
    trained: TrainedExperts,
    labels: pd.DataFrame,
    sizes: np.ndarray,
) -> tuple[WhisperMoESystem, TrainedExperts, list[int]]:
    """Experts that do not differ as one, where dev WER is not worse by that: the mixture, what is kept, and the expert of each cluster."""
    dev = given.prepared.rows("dev")  # all of it: losses take one pass, where decoding takes one for each token
    dev_set = dataclasses.replace(given, dev=dev).dev_set(system.inputs)
    alike = AlikeExperts(system, dev_set, _clusters(labels, dev), dev["speaker"].to_numpy(), sizes.tolist())
    merging, wer, reduced = alike.merge(options.merge_alpha, options.seed), float("nan"), system
    if len(merging.groups) < len(sizes):
        reduced = _reduced(options, given, system, merging)
        scored = np.array(merging.expert_of_cluster)[_clusters(labels, given.dev)]
        wer = dev_wer(reduced, given.dev_set(reduced.inputs), scored, options.part(ExpertOptions), given.training)
    line = merging_line(merging, options.merge_alpha, trained.wer, wer)
    log_merging(step, merging, wer, line)
    if not is_kept(trained.wer, wer):
        alike.restore()
        return system, trained, list(range(len(sizes)))
    kept = f"{trained.kept}, merged from {len(sizes)} to {len(merging.groups)} experts"
    return reduced, dataclasses.replace(trained, kept=kept, wer=wer), list(merging.expert_of_cluster)


def _reduced(options: StepOptions, given: TrainingInputs, system: WhisperMoESystem, merging: Merging) -> WhisperMoESystem:
    """A mixture of the experts that are left."""
    reduced = _new_mixture(options, given.prepared, system.model.adapter_options, len(merging.groups))
    copy_adapters(system.model.base, reduced.model.base, merging.groups)
    reduced.place(device_of(system), given.training.plan.precision)
    return reduced


def _new_mixture(options: StepOptions, prepared: Prepared, adapters: AdapterOptions, n_experts: int) -> WhisperMoESystem:
    """A mixture without a gate: routing is given."""
    base, base_dir = read_base(options.pretrain_run_id, prepared.language)
    routing = options.part(RoutingOptions)
    shape = WhisperShape(n_experts, adapters, routing, options.part(AudioContextOptions))
    record = new_record(MIXTURE, shape, prepared.language, prepared.label_normaliser, {})
    return WhisperMoESystem(WhisperMoE(base.model, n_experts, adapters, routing), base, base_dir, record)


def _clusters(labels: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """Cluster of each row, (N,).

    Raises:
        ValueError: an utterance that the cluster run does not know.
    """
    cluster = labels.set_index("utterance_id")["cluster"]
    missing = rows.loc[~rows["utterance_id"].isin(cluster.index), "utterance_id"].tolist()
    if missing:
        raise ValueError(f"{len(missing)} utterances have no cluster, e.g. {missing[:3]}; embed and cluster them first")
    return cluster.loc[rows["utterance_id"]].to_numpy(np.int64, copy=True)


def _refuse_empty(clusters: np.ndarray, n_experts: int) -> None:
    empty = sorted(set(range(n_experts)) - set(clusters.tolist()))
    if empty:
        raise ValueError(f"experts {empty} have no training utterance among {len(clusters)}: use fewer experts or more data")


def _log_experts(
    step: StepRun, options: StepOptions, model: WhisperMoE, trained: TrainedExperts, expert_of_cluster: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / artifacts.EXPERTS
        folder.mkdir()
        save_adapters(folder, model)
        record = {
            "n_experts": model.n_experts,
            "expert_of_cluster": expert_of_cluster,
            "adapters": dataclasses.asdict(model.adapter_options),
            "routing": dataclasses.asdict(options.part(RoutingOptions)),
            "context": dataclasses.asdict(options.part(AudioContextOptions)),
            "kept": trained.kept,
            "n_utterances_seen": trained.summary.n_utterances,
            "n_updates": trained.summary.n_updates,
            "seconds": trained.summary.seconds,
            "cpu_seconds": trained.summary.cpu_seconds,
        }
        write_json(folder / Path(artifacts.EXPERTS_RECORD).name, record)
        step.log_folder(folder, artifacts.EXPERTS)


def _report(
    step: StepRun, options: StepOptions, prepared: Prepared, trained: TrainedExperts, sizes: np.ndarray, model: WhisperMoE
) -> None:
    n_trainable = sum(parameter.numel() for parameter in model.trainable_parameters().values())
    step.log_metrics(
        {
            "dev/wer_kept": trained.wer,
            "n_experts": model.n_experts,
            "n_trainable": n_trainable,
            "n_updates": trained.summary.n_updates,
            "n_utterances_seen": trained.summary.n_utterances,
            "n_bad_updates": len(trained.summary.bad_updates),
            "seconds": trained.summary.seconds,
            **trained.summary.throughput(),
        }
    )
    history = pd.DataFrame(trained.history)
    if len(history):
        step.log_table(history, "tables/history.json")
    if len(history) and not options.no_plot:
        wer = ["wer", *(name for name in history.columns if name.startswith("wer/"))]
        panels = {"dev WER": wer, "dev loss": [name.replace("wer", "loss") for name in wer]}
        shown = from_start(history, trained.start)
        step.log_figure(
            training_curves(shown, panels, "Experts, each on its own cluster", note=prepared.note), "plots/training.png"
        )
    ranks = model.adapter_options
    step.add_to_name(prepared.name, f"dev WER {percent(trained.wer)}")
    step.describe(
        f"Dev WER {100 * trained.wer:.1f} % with each utterance on its cluster's expert{', SYNTHETIC speech' if prepared.note else ''}.\n\n"
        f"{model.n_experts} experts of rank {ranks.lora_r}"
        f"{f' above a shared adapter of rank {ranks.shared_rank}' if ranks.shared_rank else ''}, {n_trainable:,} trainable parameters, "
        f"{_start(options)}trained together in {trained.summary.n_updates} updates over clusters of {', '.join(map(str, sizes))} utterances. "
        f"Kept: {trained.kept}. Each adapter is an ordinary "
        f"PEFT folder in `experts/`. It took {trained.summary.seconds:.0f} s."
    )


def _start(options: StepOptions) -> str:
    if not options.shared_epochs:
        return ""
    then = "as its copies" if options.experts_init == "shared" else "from zero"
    return f"the shared adapter alone for {options.shared_epochs} epochs, then experts {then}, "


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
