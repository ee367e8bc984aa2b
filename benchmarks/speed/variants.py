"""What `benchmarks.speed` times: the ways to train and decode, by name, as calls without arguments; `names` names those to embed too."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed.reference_way import ReferenceWay, mixed_adapters_loss
from benchmarks.speed.workbench import TARGETS, Step, Workbench, start_of, trainable
from benchmarks.timing import Variants, peak_memory
from moe.routing.options import LAST, RoutingOptions
from moe.systems.whisper_moe.model import WhisperMoE

SINGLE, NAMES, LOOP = "PEFT single LoRA", "PEFT adapter_names, top-1", "expert-by-expert loop, top-2"
NO_ADAPTERS = "the frozen base alone"
DELTA, DELTA_SHARED, LOSS, LOSS_SHARED = "delta", "delta, shared adapter", "loss", "loss, shared adapter"
MANY, SOFT = "delta, many experts", "delta, soft"
REFERENCE, REFERENCE_BEAMS = "reference way", "reference way, beam 4"
MIDDLE, MIDDLE_SHARED, OWN_PASS = "gate in the middle", "gate in the middle, shared adapter", "gate_layer last, two passes"
SHORT, SHORT_HALF, SHORT_DEFAULT = "everything on, 5 s", "everything on, 5 s, bf16", "default options, 5 s"
EVALUATION = "evaluation, 5 s"
SHORT_BEAMS, MIXED_LOSS = "everything on, 5 s, beam 4", "gate in the middle, loss"
ONE_BY_ONE, OURS_STEM = "one by one, full window, unpooled", "ours, default layer"
OURS_LAST, OURS_LAST_HALF = "ours, last layer", "ours, last layer, bf16"
POOLED, POOLED_LARGE = "pooled", "pooled, large-v2's width"
OURS, OURS_ROUTED, OURS_ROUTED_HALF = "ours, no adapters", "ours, top-2 of 8", "ours, top-2 of 8, bf16"
OURS_HALF, OURS_EIGHT_BITS = "ours, no adapters, bf16", "ours, no adapters, int8"
PACKED, EIGHT_BITS = "CTranslate2, fp32", "CTranslate2, int8"
OURS_BEAMS, GENERATE_BEAMS, PACKED_BEAMS = (
    "ours, no adapters, beams",
    "`generate`, no adapters, beams",
    "CTranslate2, fp32, beams",
)
OURS_ROUTED_BEAMS, GENERATE_ROUTED_BEAMS = "ours, top-2 of 8, beams", "`generate`, top-2 of 8, beams"
N_BEAMS = 4


def training_variants(bench: Workbench) -> Variants:
    """One update on audio of the same length; they differ in the adapters alone, routing is given or from cached embeddings."""
    bench = bench.with_window(bench.workload.same_s)
    mel, labels, n_experts = bench.window_mel, bench.labels, bench.workload.n_experts
    reference, weights = _reference(bench), bench.routing_weights(2)
    return {
        SINGLE: _single_step(bench),
        NO_ADAPTERS: _step_without_adapters(bench),
        NAMES: Step(
            bench, lambda: mixed_adapters_loss(reference, mel, labels, weights.argmax(-1).tolist()), trainable(reference)
        ),
        LOOP: Step(bench, lambda: reference.train().loss(mel, labels, weights, 2), trainable(reference)),
        DELTA: _cached_step(bench),
        DELTA_SHARED: _cached_step(bench, shared=True),
        LOSS: _cached_step(bench, mixing="loss"),
        LOSS_SHARED: _cached_step(bench, mixing="loss", shared=True),
        MANY: _cached_step(bench, n_experts=bench.workload.n_many_experts),
        SOFT: _cached_step(bench, top_k=n_experts),
    }


def whole_step_variants(bench: Workbench) -> Variants:
    """A whole update with the gate's part in it: at the full window, and on short utterances."""
    middle = bench.shape.middle
    variants: dict[str, Callable[[], object]] = {
        SINGLE: _single_step(bench),
        REFERENCE: reference_step(bench),
        OWN_PASS: _window_step(bench, gate_layer=LAST),
        MIDDLE: _window_step(bench, gate_layer=middle),
        MIDDLE_SHARED: _window_step(bench, gate_layer=middle, shared=True),
        SHORT: short_step(bench),
        SHORT_DEFAULT: short_step(bench, gate_layer=RoutingOptions().gate_layer),
        EVALUATION: _evaluation(bench),
    }
    return variants if bench.dtype == "bf16" else variants | {SHORT_HALF: short_step(bench, dtype="bf16")}


def decoding_variants(bench: Workbench) -> Variants:
    """A fixed number of new tokens, the gate's part included."""
    single, reference = bench.single_lora().eval(), _reference(bench).eval()
    window, short = (bench.window_mel, bench.n_frames(bench.window_mel.shape[-1])), bench.short_mel()
    middle, shared, loss = (
        bench.mixture(gate_layer=bench.shape.middle, **options).eval() for options in ({}, {"shared": True}, {"mixing": "loss"})
    )
    return {
        SINGLE: _decoding(bench, lambda options: single.generate(input_features=window[0], **options)),
        REFERENCE: _decoding(bench, lambda options: _reference_decoding(reference, window[0], options)),
        REFERENCE_BEAMS: _decoding(bench, lambda options: _reference_decoding(reference, window[0], options), N_BEAMS),
        MIDDLE: _decoding(bench, lambda options: _our_decoding(middle, window, options)),
        MIDDLE_SHARED: _decoding(bench, lambda options: _our_decoding(shared, window, options)),
        MIXED_LOSS: _decoding(bench, lambda options: _our_decoding(loss, window, options)),
        SHORT: _decoding(bench, lambda options: _our_decoding(shared, short, options)),
        SHORT_BEAMS: _decoding(bench, lambda options: _our_decoding(shared, short, options), N_BEAMS),
    }


def memory_peaks(bench: Workbench) -> dict[str, list[float]]:
    """MiB of one update at its peak, each variant in a process of its own."""
    arguments = (
        bench.shape,
        dataclasses.replace(bench.workload, batch_size=bench.workload.batch_size // 2),
        bench.device,
        bench.dtype,
    )
    return {name: [peak_memory(memory_step, name, *arguments)] for name in (SINGLE, REFERENCE, MIDDLE, SHORT, SHORT_DEFAULT)}


def memory_step(name: str, *arguments: Any) -> None:
    """Build one variant from nothing and make one update with it."""
    bench = Workbench(*arguments)
    steps: dict[str, Callable[[Workbench], Step]] = {
        SINGLE: _single_step,
        REFERENCE: reference_step,
        MIDDLE: lambda bench: _window_step(bench, gate_layer=bench.shape.middle),
        SHORT: short_step,
        SHORT_DEFAULT: lambda bench: short_step(bench, gate_layer=RoutingOptions().gate_layer),
    }
    steps[name](bench)()


def reference_step(bench: Workbench) -> Step:
    """The reference way's update: gate pass and expert-by-expert loop, padded to the window."""
    reference, mel, labels = _reference(bench), bench.window_mel, bench.labels
    return Step(bench, lambda: reference.train().loss(mel, labels, reference.routing(mel, 2), 2), trainable(reference))


def short_step(bench: Workbench, gate_layer: str | None = None, dtype: str | None = None) -> Step:
    """Ours with everything on: one pass, experts above the middle, shared adapter, bucketed context, cached embeddings."""
    model = bench.mixture(gate_layer=gate_layer or bench.shape.middle, shared=True)
    (mel, n_frames), labels, embedding = bench.short_mel(), bench.labels, bench.embedding
    return Step(bench, lambda: model(mel, n_frames, labels, embedding)["loss"], trainable(model), dtype)


def _evaluation(bench: Workbench) -> Callable[[], None]:
    """What an epoch's end does with a batch that training took a step on: search, its tokens' probabilities, the references' loss."""
    model = bench.mixture(gate_layer=bench.shape.middle, shared=True).eval()
    (mel, n_frames), labels, embedding, n_new = bench.short_mel(), bench.labels, bench.embedding, bench.workload.n_labels

    def evaluate() -> None:
        with torch.no_grad(), bench.precision():
            encoded = model.encode(model.route(mel, n_frames, embedding))
            model.say(encoded, start_of(model), n_new, min_new=n_new)
            model.decoder_loss(encoded, labels)

    return evaluate


def _single_step(bench: Workbench) -> Step:
    model, mel, labels = bench.single_lora(), bench.window_mel, bench.labels
    return Step(bench, lambda: model(input_features=mel, labels=labels).loss, trainable(model))


def _step_without_adapters(bench: Workbench) -> Callable[[], None]:
    """The frozen base, differentiated down to where the lowest adapters would sit: no adapter makes a step cheaper than this."""
    model, mel, labels = bench.base().train(), bench.window_mel, bench.labels
    for part in (model.model.encoder, model.model.decoder):
        for name in TARGETS:
            getattr(part.layers[0].self_attn, name).register_forward_hook(lambda *call: call[-1].detach().requires_grad_())

    def step() -> None:
        with bench.precision():
            loss = model(input_features=mel, labels=labels).loss
        loss.backward()

    return step


def _cached_step(bench: Workbench, **options: Any) -> Step:
    model, mel, labels, embedding = bench.mixture(**options), bench.window_mel, bench.labels, bench.embedding
    n_frames = bench.n_frames(mel.shape[-1])
    return Step(bench, lambda: model(mel, n_frames, labels, embedding)["loss"], trainable(model))


def _window_step(bench: Workbench, **options: Any) -> Step:
    model, mel, labels = bench.mixture(**options), bench.window_mel, bench.labels
    n_frames = bench.n_frames(mel.shape[-1])
    return Step(bench, lambda: model(mel, n_frames, labels)["loss"], trainable(model))


def _reference(bench: Workbench) -> ReferenceWay:
    """With weights of its own for the second model, as two loaded checkpoints have."""
    second = Workbench(bench.shape, bench.workload, bench.device)
    return ReferenceWay(bench.base(), second.base(), bench.workload.n_experts).to(bench.device)


def _decoding(bench: Workbench, generate: Callable[[dict[str, int]], object], n_beams: int = 1) -> Callable[[], None]:
    n_new = bench.workload.n_new_tokens
    options = {"max_new_tokens": n_new, "min_new_tokens": n_new, "num_beams": n_beams}

    def decode() -> None:
        with torch.no_grad(), bench.precision():
            generate(options)

    return decode


def _reference_decoding(reference: ReferenceWay, mel: torch.Tensor, options: dict[str, int]) -> None:
    reference.generate(mel, reference.routing(mel, 2), **options)


def _our_decoding(model: WhisperMoE, audio: tuple[torch.Tensor, torch.Tensor], options: dict[str, int]) -> None:
    n_new, n_least, n_beams = (options[name] for name in ("max_new_tokens", "min_new_tokens", "num_beams"))
    model.say(model.encode(model.route(*audio)), start_of(model), n_new, n_beams, n_least)
