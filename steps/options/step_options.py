"""Options that say how a run is started and shown, not what it finds: every step has `resume` and `log_file`, one with pictures `no_plot`."""

import dataclasses
import importlib.util
import os
import re
from pathlib import Path

from moe.audio.augmentation import AugmentationOptions
from moe.clustering.options import N_EXPERTS, ExpertCountOptions
from moe.experts.routed_lora import AdapterOptions
from moe.options import NONE, Options, names_of, option, to_text
from moe.routing.options import RoutingOptions
from moe.systems.whisper.features import AudioContextOptions
from moe.training.averaging import AveragingOptions
from moe.training.checkpoints import CheckpointOptions
from moe.training.plan import ComputeOptions
from moe.training.precision import PrecisionOptions
from moe.training.schedule import ScheduleOptions
from moe.training.sharding import ShardingOptions

SYNTHETIC = "synthetic"
STYLES_OF_SYNTHETIC = 6
DASHBOARDS = ("wandb", "tensorboard")
DASHBOARD_PINS = "requirements-dashboards.txt"
HUB_TOKEN = "HF_TOKEN"
MODEL_FILES = ("config.json", "model.json", "generation_config.json", "base/config.json")  # a folder of a model has one of them
WEIGHTS = ("*.safetensors", "*.onnx", "model.bin")  # and files like these
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class RunOptions(Options):
    """What every step takes."""

    resume: bool = option(True, "go on in the run and the work that an interrupted start left; false discards them")
    log_file: str | None = option(None, "file to which all logging of the run is added; the run keeps a copy")
    run_name: str | None = option(None, "name of the run in the store (none: the step and what matters most of it)")

    not_in_fingerprint = frozenset({"resume", "log_file", "run_name"})


@dataclasses.dataclass(frozen=True)
class PlotOptions(RunOptions):
    """What every step that draws takes."""

    group = "run"

    no_plot: bool = option(False, "make no plots; a run that is reused keeps those it has")

    not_in_fingerprint = frozenset({"no_plot"})


@dataclasses.dataclass(frozen=True)
class AudioOptions(RunOptions):
    """What every step takes that shows recordings."""

    group = "run"

    share_audio: bool = option(True, "put short recordings into pages and the store; false keeps every recording out of it")


@dataclasses.dataclass(frozen=True)
class SkipPretrainingOptions(ExpertCountOptions):
    """How gate and experts start."""

    group = "asr"

    skip_pretraining: bool = option(
        False, "gate and experts start random: no embed, cluster, gate and experts runs; needs a number of experts"
    )

    def faults(self) -> list[str]:
        """Experts that nothing counts."""
        if self.skip_pretraining and self.n_asked is None:
            return [f"num_experts={to_text(self.num_experts)}: skip_pretraining=true has no clusters to count; give a number"]
        return []


def default_experts(synthetic: bool) -> int:
    """The number of experts where none is given: one per style of the synthetic corpus."""
    return STYLES_OF_SYNTHETIC if synthetic else N_EXPERTS


@dataclasses.dataclass(frozen=True)
class SeedOptions(Options):
    """What everything drawn follows from."""

    group = "run"

    seed: int = option(42, "seed of everything drawn", low=0, common=True)


@dataclasses.dataclass(frozen=True)
class DataPercentOptions(SeedOptions):
    """Which part of the train split a stage works on; the parts of one seed nest."""

    group = "data"

    data_percent: float = option(100.0, "scales every stage's part of the train split", above=0, high=100, common=True)
    stage_floor: int = option(
        2000, "a stage gets at least so many utterances where there are so many, scaled by data_percent", low=1
    )


@dataclasses.dataclass(frozen=True)
class StagePercentOptions(DataPercentOptions, AudioContextOptions):
    """What joint training takes of the train split."""

    group = "data"

    asr_percent: float = option(100.0, "part of the train split for joint training, percent", above=0, high=100)


@dataclasses.dataclass(frozen=True)
class ReportOptions(Options):
    """Where a training is followed beside the store."""

    group = "training"
    watches_system = True  # the run has what the training uses of the machine

    report_to: str = option(NONE, "follow training there too; MLflow has it in any case", choices=(NONE, *DASHBOARDS))

    def faults(self) -> list[str]:
        """A package that is not installed."""
        if self.report_to == NONE or importlib.util.find_spec(self.report_to):
            return []
        return [f"report_to={self.report_to}: not installed; pip install -r {DASHBOARD_PINS}"]


@dataclasses.dataclass(frozen=True)
class HubOptions(Options):
    """Where on a Hugging Face hub a model goes."""

    group = "training"

    push_to_hub: bool = option(False, "also upload the model to hub_model_id, with the token in HF_TOKEN")
    hub_model_id: str | None = option(None, "repository of a Hugging Face hub, OWNER/NAME")
    hub_private: bool = option(True, "a repository that is made there is private")

    def faults(self) -> list[str]:
        """An upload to nowhere, or by nobody."""
        found = []
        if self.push_to_hub and not HUB_NAME.fullmatch(self.hub_model_id or ""):
            found.append(f"push_to_hub=true: hub_model_id={to_text(self.hub_model_id)} must be OWNER/NAME")
        if self.push_to_hub and not os.environ.get(HUB_TOKEN):
            found.append(f"push_to_hub=true: the environment has no {HUB_TOKEN}")
        return found

    def idle(self) -> dict[str, str]:
        """A repository that nothing is uploaded to."""
        return {} if self.push_to_hub else dict.fromkeys(("hub_model_id", "hub_private"), "push_to_hub=false uploads nothing")


def model_folder_faults(name: str, folder: str | None) -> list[str]:
    """Why a model cannot be written to the folder of an option: what lies there would be replaced, so only a model may."""
    if folder is None:
        return []
    path = Path(folder).absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return [f"{name}={folder}: {there} is no folder that can be written to"]
    is_model = any((path / file).is_file() for file in MODEL_FILES) and any(each for kind in WEIGHTS for each in path.rglob(kind))
    if there != path or not any(path.iterdir()) or is_model:
        return []
    return [f"{name}={folder}: the folder holds other things than a model, and would be replaced; name another"]


@dataclasses.dataclass(frozen=True)
class ExportOptions(HubOptions):
    """Where a trained model goes beside its run."""

    group = "training"

    export_dir: str | None = option(None, "also write the trained model to this folder")

    def faults(self) -> list[str]:
        """A folder that cannot be written, or that holds something else."""
        return model_folder_faults("export_dir", self.export_dir)


@dataclasses.dataclass(frozen=True)
class TrainingStepOptions(
    DataPercentOptions,
    AveragingOptions,
    ScheduleOptions,
    ComputeOptions,
    ShardingOptions,
    CheckpointOptions,
    ReportOptions,
    PlotOptions,
):
    """Options that every step training a recogniser has."""

    group = "training"

    prepare_run_id: str = option(help="run that made the manifest")
    eval_share: float = option(
        0.5, "dev utterances scored after an epoch, as a share of its own: scoring one costs 1.3 of training on it", above=0
    )

    eval_every_n_updates: int | None = option(None, "updates between validations, in place of epochs (none: by epochs)", low=1)

    not_in_fingerprint = frozenset({"num_workers", "persistent_workers"})

    def idle(self) -> dict[str, str]:
        """Epochs between validations beside updates."""
        by_updates = f"eval_every_n_updates={self.eval_every_n_updates} says it"
        return {} if self.eval_every_n_updates is None else {"eval_every_n_epochs": by_updates}

    @property
    def augmentation(self) -> AugmentationOptions | None:
        """What changes an utterance in training; None leaves it as it is."""
        return None


@dataclasses.dataclass(frozen=True)
class MixtureStepOptions(AdapterOptions, RoutingOptions, StagePercentOptions, AugmentationOptions, TrainingStepOptions):
    """Options that every step training adapters has."""

    group = "training"

    pretrain_run_id: str = option(help="run that holds the base model")
    augment: bool = option(False, "all augmentation in adapter training too (on the demo SpecAugment cost both systems WER)")

    def faults(self) -> list[str]:
        """Utterances that nothing would learn from."""
        if self.expert_dropout and not self.shared_expert:
            return [f"expert_dropout={self.expert_dropout:g}: shared_expert=false leaves such utterances to the base model"]
        return []

    @property
    def augmentation(self) -> AugmentationOptions | None:
        """All of it, or none."""
        return self.part(AugmentationOptions) if self.augment else None

    def idle(self) -> dict[str, str]:
        """Augmentation where adapters are trained without any."""
        return {} if self.augment else dict.fromkeys(names_of(AugmentationOptions), "needs augment=true")


# what only a training of adapters reads; half precision is also that of embedding and decoding
TRAINING = (
    "augment",
    "lora_dropout",
    "expert_dropout",
    *names_of(AugmentationOptions, AveragingOptions, CheckpointOptions),
    *names_of(ScheduleOptions, ReportOptions, ComputeOptions, ShardingOptions, but=names_of(PrecisionOptions)),
    "eval_every_n_updates",
)
