"""On paper: what joint training of a large corpus costs on several GPUs, from the cost model and a rate that was measured.

    python -m benchmarks.scale                        SAP's 400 h with large-v2, E = 8, on 1, 8 and 64 GPUs
    python -m benchmarks.scale --tflops 200           at another rate of an update than that measured on an H200 by `benchmarks.device`

Data parallel: every GPU holds the whole mixture and takes its part of the global batch; a ring sums the gradients of what trains, which is
the adapters alone. Expert parallel: every GPU holds some of the experts of each layer and sends the rows of an utterance to them.
"""

import argparse
import dataclasses

from benchmarks.speed.workbench import SHAPES
from moe.experts.routed_lora import AdapterOptions
from moe.routing.options import RoutingOptions
from moe.systems.whisper_moe.calibration import Mixture
from moe.systems.whisper_moe.cost import FLOAT, HALF, Batch, n_trainable

UTTERANCE_S, N_TOKENS, BATCH = 7.0, 24, 32  # of SAP: mean length, tokens of a sentence; utterances per GPU
GIB = 2**30
ADAPTERS = AdapterOptions(lora_r=8, shared_r=8, lora_alpha=16, lora_targets="q_proj,v_proj")
HEADER = "| GPUs | what | utterances/s | hours of an epoch | s per update | of it summing gradients |\n| ---: | --- | ---: | ---: | ---: | ---: |"
EXPERTS = (
    "| E | trains, M | held per GPU for it, GiB | gradients per update, GiB | of an update, data parallel | rows sent, expert parallel |\n"
    "| ---: | ---: | ---: | ---: | ---: | ---: |"
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Operations a second that an update reaches, and bytes a second between two GPUs."""

    flops: float
    link: float

    def ring_s(self, n_bytes: float, n_gpus: int) -> float:
        """Seconds in which a ring sums so many bytes on every GPU."""
        return 2 * n_bytes * (n_gpus - 1) / n_gpus / self.link


def mixture(shape: str, n_experts: int) -> Mixture:
    """A mixture with eight experts and a shared adapter, each of rank 8; 0 experts are one LoRA of the size of eight experts and the shared adapter."""
    one = dataclasses.replace(ADAPTERS, shared_r=9 * ADAPTERS.lora_r)
    return Mixture(SHAPES[shape].config(), ADAPTERS if n_experts else one, RoutingOptions(), n_experts)


def epoch_rows(shape: str, hours: float, machine: Machine, counts: list[int]) -> list[str]:
    """A line for each number of GPUs, the mixture and one LoRA."""
    batch, lines = Batch(BATCH, round(100 * (UTTERANCE_S + 1)), N_TOKENS), []
    n_utterances = hours * 3600 / UTTERANCE_S
    for n_gpus in counts:
        for what, model in (("top-2 of 8", mixture(shape, 8)), ("one LoRA, same size", mixture(shape, 0))):
            computing = model.cost(batch, "bf16").flops / machine.flops
            summing = machine.ring_s(FLOAT * n_trainable(model.config, model.adapted), n_gpus)
            update = computing + summing
            rate = n_gpus * BATCH / update
            lines.append(
                f"| {n_gpus} | {what} | {rate:.0f} | {n_utterances / rate / 3600:.2g} | {update:.2g} | {summing / update:.1%} |"
            )
    return lines


def expert_rows(shape: str, machine: Machine, n_gpus: int) -> list[str]:
    """A line for each number of experts: what data parallel training holds and sums, against the rows that expert parallel training sends."""
    batch, lines = Batch(BATCH, round(100 * (UTTERANCE_S + 1)), N_TOKENS), []
    for n_experts in (8, 32, 128):
        model = mixture(shape, n_experts)
        cost, n_trained = model.cost(batch, "bf16"), n_trainable(model.config, model.adapted)
        summing = machine.ring_s(FLOAT * n_trained, n_gpus)
        d, n_layers = model.config.d_model, model.config.encoder_layers
        sent = (
            2 * 2 * HALF * 2 * n_layers * 2 * batch.size * batch.n_positions * d
        )  # there and back, forward and backward, q and v, k = 2
        share = summing / (summing + cost.flops / machine.flops)
        moving = sent / machine.link / (sent / machine.link + cost.flops / machine.flops)
        lines.append(
            f"| {n_experts} | {n_trained / 1e6:.0f} | {cost.trained / GIB:.2f} | {FLOAT * n_trained / GIB:.2f} | {share:.1%} | {moving:.0%} |"
        )
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="large-v2", choices=tuple(SHAPES))
    parser.add_argument("--hours", type=float, default=400.0)
    parser.add_argument(
        "--tflops", type=float, default=100.0, help="of an update, as benchmarks.device measures it (H200, bf16, batches of 32)"
    )
    parser.add_argument("--link", type=float, default=100.0, help="GB/s between two GPUs")
    parser.add_argument("--gpus", default="1,8,64")
    asked = parser.parse_args()
    machine = Machine(asked.tflops * 1e12, asked.link * 1e9)
    print("\n".join([HEADER, *epoch_rows(asked.shape, asked.hours, machine, [int(n) for n in asked.gpus.split(",")])]))
    print("\n".join(["", EXPERTS, *expert_rows(asked.shape, machine, 8)]))


if __name__ == "__main__":
    main()
