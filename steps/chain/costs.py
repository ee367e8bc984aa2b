"""What a chain will cost: seconds of its stages, bytes of a process, the largest batch that fits.

Before anything has run a corpus is only known by its size; seconds of training and decoding come from a calibration on this device, those
of the synthetic corpus and of reports from what they took on an Intel Xeon. Counted are the mixture, its baselines and their evaluations;
what else a chain runs is named as not counted.
"""

import contextlib
import dataclasses
import heapq
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import psutil
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor

from moe.experts.expert_training import ExpertOptions
from moe.experts.joint_training import JointOptions
from moe.experts.rank_split import split_ranks
from moe.experts.routed_lora import AdapterOptions
from moe.options import NONE
from moe.routing.options import RoutingOptions
from moe.system import DecodingOptions
from moe.systems.whisper.base_source import resolve
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.calibration import Calibration, Mixture, rough
from moe.systems.whisper_moe.cost import Batch
from moe.training.precision import PrecisionOptions, precision
from moe.training.threads import threads
from steps.chain.branches import branches
from steps.chain.corpus_size import TOKENS_PER_S, Size, size_of
from steps.chain.options import BASE, LORA, MIXTURE
from steps.chain.stages import n_experts, running, step_name
from steps.options.step_options import SYNTHETIC
from steps.tracking.processes import threads_of_each

LIBRARIES = 450 << 20  # bytes of a process that has imported torch and transformers
COUNTED, SYSTEMS = ("experts", "asr", "baseline", "evaluate", "compare", "register"), (MIXTURE, LORA, BASE)
OWN = {MIXTURE: ("experts", "asr", "merging"), LORA: (LORA,), BASE: ()}  # trainings of each
CORPUS = ("synthesize", "prepare", "embed", "cluster", "gate")  # counted together where the corpus is synthetic
SPREAD = tuple((number + 0.5) / 8 - 0.5 for number in range(8))  # of lengths around their mean, in buckets of contexts
MADE_S = 0.05  # of a core to make, check and embed a synthetic utterance (make demo)
REPORT_S = 14.0  # of the tables and pictures of an evaluation, and of a comparison with what registers a model (make demo)
FEATURES_S = 1.5e-3  # of a core to read, augment and transform a second of audio (log-mel; measured on the demo)
SHARE_OF_MEMORY = 0.9  # of what is free that a batch may take


@dataclasses.dataclass(frozen=True)
class StageCost:
    """Seconds of a stage, and what they are for."""

    stage: str
    seconds: float
    what: str


def opening_line(options: Any) -> str | None:
    """What `main` says of the cost as it begins, in a line; None where corpus or base are not known yet, or a system is not counted."""
    if options.corpus != SYNTHETIC or not options.is_taken or not Path(resolve(options.source)).is_dir():
        return None
    if not set(options.system_names) <= set(SYSTEMS):
        return None
    cost = ChainCost(options, size_of(options, None, None, TOKENS_PER_S))
    found, of_lora = cost.measured(lambda each: rough(each, cost.training_batch, cost.device, cost.precision))
    stages, needed, free = cost.stages(found, of_lora), cost.training_bytes(found), cost.free_bytes()
    seconds = cost.total_s(stages, found)
    short = ", TOO FEW: set a smaller asr_batch_size" if needed > free else ""
    return (
        f"all of it: about {max(1, round(seconds / 60))} min, in {needed / 2**30:.1f} GiB of memory; {free / 2**30:.0f} GiB are "
        f"free{short}; `-e estimate` measures it"
    )


class ChainCost:
    """The costs of a chain on this device.

    Args:
        options: `steps.main.StepOptions`, whose fields are those of all stages.
        size: of the corpus.
    """

    def __init__(self, options: Any, size: Size) -> None:
        self.options, self.size = options, size
        base = resolve(options.source)
        self.config = WhisperConfig.from_pretrained(base)
        self.extractor = WhisperFeatureExtractor.from_pretrained(base)
        self.precision = precision(options.part(PrecisionOptions))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        n = n_experts(options)
        self.n_experts = n if isinstance(n, int) else 8  # auto: the clusters say
        self.adapters = split_ranks(options.part(AdapterOptions), self.n_experts)
        self.n_processes: int = options.num_processes
        self.branches = branches(options)
        self.at_once: int = min(options.systems_together, len(self.branches)) or 1

    @property
    def mixture(self) -> Mixture:
        """What joint training trains."""
        return Mixture(self.config, self.adapters, self.options.part(RoutingOptions), self.n_experts)

    @property
    def one_expert(self) -> Mixture:
        """What expert training computes for an utterance: one expert and the shared adapter."""
        routing = dataclasses.replace(self.options.part(RoutingOptions), top_k=1, mixing="delta")
        return dataclasses.replace(self.mixture, routing=routing)

    @property
    def one_lora(self) -> Mixture:
        """One adapter of the mixture's size."""
        rank = self.adapters.shared_rank + self.n_experts * self.adapters.lora_r
        return dataclasses.replace(
            self.mixture, adapters=dataclasses.replace(self.adapters, shared_expert=True, shared_r=rank), n_experts=0
        )

    def batch(self, n_utterances: int) -> Batch:
        """A batch of utterances whose lengths spread over a bucket of contexts around their mean, in the mean of their contexts."""
        context, per_s = self.options.part(AudioContextOptions), self.extractor.sampling_rate / self.extractor.hop_length
        lengths = [self.size.utterance_s + context.context_bucket_s * share for share in SPREAD]
        n_frames = statistics.fmean(context.n_frames(round(per_s * max(0.0, each)), self.extractor) for each in lengths)
        return Batch(n_utterances, 2 * round(n_frames / 2), self.size.n_tokens)

    @property
    def training_batch(self) -> Batch:
        """What a process has of a batch of joint training."""
        return self.batch(self._share(self.options.part(JointOptions).asr_batch_size))

    def threads(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block torch computes with the threads that each process will have."""
        n = self.n_processes * self.at_once
        return threads(torch.get_num_threads() if n == 1 else threads_of_each(n))

    def measured(self, measure: Callable[[Mixture], Calibration]) -> tuple[Calibration, Calibration]:
        """What the mixture takes on this device and, where it is trained, one LoRA of its size."""
        with self.threads():
            found = measure(self.mixture)
            return found, measure(self.one_lora) if self.trains_lora else found

    def stages(self, found: Calibration, of_lora: Calibration) -> list[StageCost]:
        """Seconds of each counted stage, from what the mixture and one LoRA of its size take on this device."""
        trained, steps = self._trainings(found, self.one_expert, self.mixture), self._steps()
        stages = [StageCost("corpus", self._corpus_s(), f"{self.size.n_all} utterances made, checked and embedded")]
        stages = [*(stages if "synthesize" in steps else []), *trained]
        if self.trains_lora:
            said = f"as many updates as {' and '.join(each.stage for each in trained)}"
            alike = self._trainings(of_lora, self.one_lora, self.one_lora)
            stages.append(StageCost(LORA, sum(each.seconds for each in alike), said))
        if self.options.merge_experts != NONE and "experts" in steps:
            stages.append(self._merging(found))
        return [*stages, *([self._evaluation(found)] if self._systems and "evaluate" in steps else [])]

    def total_s(self, stages: Sequence[StageCost], found: Calibration) -> float:
        """Seconds until all of them have ended: those of one system in turn, systems side by side where that is asked for."""
        all_s = sum(stage.seconds for stage in stages)
        each_s = [self._system_s(name, stages, found) for name in self.branches if name in SYSTEMS]
        return all_s - sum(each_s) + _side_by_side_s(each_s, self.at_once)

    def not_counted(self) -> list[str]:
        """What the chain runs beside the stages that are counted."""
        steps = self._steps()
        counted = COUNTED + (CORPUS if "synthesize" in steps else ())
        others = [name for name in self.options.system_names if name not in SYSTEMS and "evaluate" in steps]
        return [*(step for step in steps if step not in counted), *(f"evaluate {name}" for name in others)]

    def bytes_per_process(self, found: Calibration, n_utterances: int) -> float:
        """Bytes of a process that trains on so many utterances at a time: of its device's memory on a GPU, else of the machine's."""
        return found.peak_bytes(self.mixture.cost(self.batch(n_utterances), self.precision)) + (
            LIBRARIES if self.device == "cpu" else 0
        )

    def training_bytes(self, found: Calibration) -> float:
        """Bytes of a process in joint training."""
        return self.bytes_per_process(found, self.training_batch.size)

    def free_bytes(self) -> float:
        """Bytes that are free now for each process: on its device, or of the machine where there is none."""
        if self.device == "cuda":
            return float(torch.cuda.mem_get_info()[0])
        return psutil.virtual_memory().available / self.n_processes / self.at_once

    def largest_batch(self, found: Calibration) -> int:
        """The largest batch of joint training that fits into what is free now; 0 where no process can hold even one utterance."""
        one, two = (self.bytes_per_process(found, n) for n in (1, 2))
        share = max(0, int((SHARE_OF_MEMORY * self.free_bytes() - one) // max(1.0, two - one)) + 1)
        return share * self.n_processes

    @property
    def trains_lora(self) -> bool:
        """Whether one LoRA is counted."""
        return LORA in self._systems and "baseline" in self._steps()

    @property
    def _systems(self) -> list[str]:
        """The systems that are counted."""
        return [name for name in self.options.system_names if name in SYSTEMS]

    def _trainings(self, found: Calibration, for_experts: Mixture, for_joint: Mixture) -> list[StageCost]:
        """Expert and joint training, those that run, of what each of them trains."""
        joint, experts = self.options.part(JointOptions), self.options.part(ExpertOptions)
        n_joint, n_expert = self._part(self.options.asr_percent), self._part(self.options.experts_percent)
        trained = [
            self._training("experts", found, for_experts, n_expert, experts.expert_epochs, experts.expert_batch_size),
            self._training("asr", found, for_joint, n_joint, joint.asr_epochs, joint.asr_batch_size),
        ]
        return [each for each in trained if each.stage in self._steps()]

    def _merging(self, found: Calibration) -> StageCost:
        """Losses of dev under each expert and, at most, under all but one that are merged in turn; then what is left is scored once."""
        n, n_passes = self.options.part(DecodingOptions).decoding_batch_size, 2 * self.n_experts - 1
        n_scored = self._n_scored(self._part(self.options.experts_percent))
        forward_s = found.seconds[1] * self.one_expert.cost(self.batch(n), self.precision).forward
        seconds = n_passes * self.size.n_dev * forward_s / n / self.n_processes + self._scored_s(n_scored, found)
        return StageCost(
            "merging", seconds, f"at most {n_passes} passes over {self.size.n_dev} dev utterances, {n_scored} scored"
        )

    def _evaluation(self, found: Calibration) -> StageCost:
        """All evaluations, their reports and what compares them."""
        n_decoded, compares = sum(map(self._n_decoded, self._systems)), "compare" in self._steps()
        n_systems, n_reports = len(self._systems), len(self._systems) + compares
        seconds = sum(self._evaluation_s(name, found) for name in self._systems) + compares * REPORT_S
        said = f"{self.size.n_test} utterances by {n_systems} systems, {n_decoded} decoded in all, and {n_reports} reports"
        return StageCost("evaluate", seconds, said)

    def _evaluation_s(self, system: str, found: Calibration) -> float:
        return self._scored_s(self._n_decoded(system), found) + self._features_s(self.size.n_test) + REPORT_S

    def _n_decoded(self, system: str) -> int:
        """Test utterances that an evaluation decodes, those of a mixture's other ways too."""
        more = self._n_ablated() + (self.options.backoff > 0) * self.size.n_test if system == MIXTURE else 0
        return self.size.n_test + more

    def _system_s(self, system: str, stages: Sequence[StageCost], found: Calibration) -> float:
        """Seconds of what is one system's alone: its trainings and its evaluation."""
        trained_s = sum(stage.seconds for stage in stages if stage.stage in OWN[system])
        return trained_s + ("evaluate" in self._steps()) * self._evaluation_s(system, found)

    def _corpus_s(self) -> float:
        """Seconds until a synthetic corpus is ready to train on, on all cores."""
        return MADE_S * self.size.n_all / joblib.cpu_count()

    def _steps(self) -> list[str]:
        """The steps that the chain runs."""
        return list(dict.fromkeys(step_name(module) for module, _ in running(self.options)))

    def _part(self, percent: float) -> int:
        floor = 100.0 * self.options.stage_floor / self.size.n_train
        return math.ceil(self.size.n_train * min(100.0, max(percent, floor)) / 100 * self.options.data_percent / 100)

    def _training(self, stage: str, found: Calibration, mixture: Mixture, n: int, epochs: int, batch_size: int) -> StageCost:
        n_updates = epochs * math.ceil(n / batch_size)
        update_s = found.update_s(mixture.cost(self.batch(self._share(batch_size)), self.precision))
        n_scored = (epochs + 1) * self._n_scored(n)  # the start too
        seconds = n_updates * update_s + self._features_s(epochs * n) + self._scored_s(n_scored, found)
        return StageCost(stage, seconds, f"{n_updates} updates of {update_s:.2g} s, {n_scored} utterances scored")

    def _n_scored(self, n: int) -> int:
        """Dev utterances that a training on n scores at a time."""
        return min(self.size.n_dev, math.ceil(self.options.eval_share * n))

    def _n_ablated(self) -> int:
        """Test utterances that a mixture is decoded on in its other ways: with each expert, with all alike, with none."""
        n, most = self.size.n_test, self.options.ablation_utterances
        return self.options.ablations * (self.n_experts + 2) * (min(n, most) if most else n)

    def _share(self, batch_size: int) -> int:
        """Utterances of a batch that each process has."""
        return math.ceil(batch_size / self.n_processes)

    def _features_s(self, n_utterances: int) -> float:
        """Seconds to make the features of utterances, where nothing else is computed meanwhile."""
        at_once = self.n_processes * max(1, self.options.num_workers)
        return FEATURES_S * self.size.utterance_s * n_utterances / at_once

    def _scored_s(self, n_utterances: int, found: Calibration) -> float:
        """Seconds to decode utterances in full batches, dealt out to the processes: the encoder once, and the tokens."""
        n = self.options.part(DecodingOptions).decoding_batch_size
        forward_s = found.seconds[1] * self.mixture.cost(self.batch(n), self.precision).forward
        share = n / self.training_batch.size  # a token of a batch was measured at the training's size
        batch_s = forward_s + max(1.0, share) * found.decoding_s(self.size.n_tokens, self.config.decoder_layers)
        return batch_s * n_utterances / n / self.n_processes


def _side_by_side_s(each_s: Sequence[float], at_once: int) -> float:
    """Seconds until all have ended where the next begins when one has ended."""
    ends = [0.0] * at_once
    for seconds in each_s:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)
