"""What steering costs, as ratios of CPU time within one run; and, on a GPU, the shapes of real models with random weights.

    python -m benchmarks.steering_speed               ratios, on the processor: an encoder layer of large-v2's width, padding, sizes, cache
    python -m benchmarks.steering_speed --shapes      on a GPU: whisper-large-v3's shape with decoders of 0.5 and 7 thousand million parameters

Needs torch, transformers, accelerate, peft, numpy and safetensors alone. Writes benchmarks/results/steering_speed.json or steering_shapes.json.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer

from benchmarks.timing import alternate, one_thread
from moe.systems.steer_moe.audio_prompt import AudioPrompt
from moe.systems.steer_moe.encoder import SteeredEncoder
from moe.systems.steer_moe.language_model import embed, generate
from moe.systems.steer_moe.model import SteerMoE
from moe.systems.steer_moe.options import AudioPromptOptions, SteeringOptions
from moe.systems.steer_moe.sequence import training_rows
from moe.systems.steer_moe.steering import Steering

RESULTS = Path(__file__).with_name("results")
LARGE: dict[str, Any] = {"d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "encoder_layers": 32}
LARGE |= {"num_mel_bins": 128, "max_source_positions": 1500}
SMALL_LM: dict[str, Any] = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
LARGE_LM: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
DECODERS: dict[str, dict[str, Any]] = {
    "0.5 B": {**SMALL_LM, "tie_word_embeddings": True},
    "7 B": {**LARGE_LM, "tie_word_embeddings": False},
}
VOCABULARY, N_EXPERTS, FRAME_MS = 151_936, 8, 20
REPEATS, NO_END = 15, 1 << 20  # an id that is never written


def ratios() -> dict[str, Any]:
    """All that a processor can measure, on one thread."""
    one_thread()
    return {**layer_ratios(), **padding_ratio(), **sizes(), **cache_ratio()}


def layer_ratios(n_frames: int = 250, width: int = 1280) -> dict[str, str]:
    """What steering adds to an encoder layer, forward and backward: timed by itself, since it is less than two timings of a layer differ by."""
    config = WhisperConfig(**LARGE)
    config._attn_implementation = "sdpa"
    layer = WhisperEncoderLayer(config).eval().requires_grad_(False)
    steering = Steering((1,), width, SteeringOptions(steer_experts=N_EXPERTS))
    routers = torch.randn(32 * N_EXPERTS, width, requires_grad=True)
    hidden, valid = torch.randn(1, n_frames, width, requires_grad=True), torch.ones(1, n_frames, dtype=torch.bool)

    def bare() -> None:
        layer(hidden, None).sum().backward()

    def steered() -> None:
        steering(1, hidden, valid).sum().backward()

    def all_routers() -> None:
        mixed = (hidden @ routers.T).view(1, n_frames, 32, N_EXPERTS).softmax(-1)[:, :, 0]
        (hidden + steering.scales[0] * mixed @ steering.vectors[0]).sum().backward()

    def router_of(n: int) -> Callable[[], None]:
        part = routers.detach()[: n * N_EXPERTS].requires_grad_()
        return lambda: (hidden.detach() @ part.T).view(1, n_frames, n, N_EXPERTS).softmax(-1).sum().backward()

    ways = {"bare": bare, "steered": steered, "all": all_routers, "one router": router_of(1), "32 routers": router_of(32)}
    found = alternate(ways, REPEATS)
    return {
        "steering / encoder layer": ratio(found, "steered", "bare"),
        "steering with the routers of all 32 layers / encoder layer": ratio(found, "all", "bare"),
        "routers of 32 layers / router of one": ratio(found, "32 routers", "one router"),
    }


def padding_ratio() -> dict[str, str]:
    """An update of 5 s and 30 tokens against the same padded to 30 s and 448 tokens."""
    module = steered(
        WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536), _llama(384, 6, 8192)
    )
    short, long = update_of(module, 500, 500, 30), update_of(module, 3000, 3000, 448)
    found = alternate({"short": short, "padded": long}, 3)
    return {"update padded to 30 s and 448 tokens / update of 5 s": ratio(found, "padded", "short")}


def sizes() -> dict[str, float]:
    """Bytes of what a checkpoint holds against those of the whole model, large-v3's shape with 0.5 thousand million parameters."""
    with torch.device("meta"):
        module = steered(WhisperConfig(**LARGE), Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, **DECODERS["0.5 B"])))
    trained = sum(each.numel() for each in module.parameters() if each.requires_grad)
    total = sum(each.numel() for each in module.parameters())
    return {"parameters that train": trained, "parameters of the model": total, "model / checkpoint": round(total / trained, 1)}


def cache_ratio(n_tokens: int = 64) -> dict[str, Any]:
    """Tokens per second with the cache of keys and values, and how many times as many as where all is read anew for each."""
    model = _llama(256, 4, 2048).eval()
    prompts = torch.randn(4 * 60, 256)
    openings = [[-2] * 60 + [1, 2, 3]] * 4

    def cached() -> None:
        generate(model, openings, prompts, 2048, NO_END, n_tokens)

    @torch.no_grad()
    def read_again() -> None:
        read = embed(model, torch.tensor(openings), prompts)
        for _ in range(n_tokens):
            token = model(inputs_embeds=read, use_cache=False, logits_to_keep=1).logits[:, -1].argmax(-1)
            read = torch.cat([read, model.get_input_embeddings()(token)[:, None]], 1)

    found = alternate({"with": cached, "without": read_again}, 3)
    return {
        "tokens/s with cache": round(4 * n_tokens / statistics.median(found["with"])),
        "tokens/s with cache / without": ratio(found, "without", "with"),
    }


def shapes(batch_size: int = 4, seconds: float = 10.0, n_text: int = 60) -> dict[str, Any]:
    """Peak memory and seconds of an update of large-v3's shape with two decoders' shapes, in bf16, without and with checkpointing."""
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "batch_size": batch_size, "seconds_of_audio": seconds}
    for name, config in DECODERS.items():
        for checkpointing in (False, True):
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            found[f"{name}, {'with' if checkpointing else 'without'} checkpointing"] = _shape(
                config, checkpointing, batch_size, round(100 * seconds), n_text
            )
    return found


def _shape(config: dict[str, Any], checkpointing: bool, batch_size: int, n_mel: int, n_text: int) -> dict[str, float]:
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        module = steered(WhisperConfig(**LARGE), Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, **config)))
    torch.set_default_dtype(torch.float32)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if checkpointing:
        module.enable_checkpointing()
    module.train()
    optimizer = torch.optim.AdamW([each for each in module.parameters() if each.requires_grad], lr=1e-4)
    one = update_of(module, n_mel, n_mel, n_text, batch_size)
    times = []
    for _ in range(6):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            one()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return {
        "seconds_per_update": round(statistics.median(times[2:]), 4),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "n_trainable": sum(each.numel() for each in module.parameters() if each.requires_grad),
        "n_total": sum(each.numel() for each in module.parameters()),
    }


def steered(config: WhisperConfig, decoder: Any) -> SteerMoE:
    """A SteerMoE of a shape, with random weights."""
    steering = Steering(range(1, config.encoder_layers + 1), config.d_model, SteeringOptions(steer_experts=N_EXPERTS))
    prompt = AudioPrompt(config.d_model, decoder.config.hidden_size, FRAME_MS, AudioPromptOptions())
    return SteerMoE(SteeredEncoder(WhisperEncoder(config), steering), prompt, decoder.eval(), decoder.config.vocab_size, 0)


def update_of(module: SteerMoE, n_mel: int, n_valid: int, n_text: int, batch_size: int = 1) -> Callable[[], None]:
    """Forward and backward of a batch of one length."""
    device = module.device
    mel = torch.randn(batch_size, module.encoder.encoder.num_mel_bins, n_mel, device=device)
    n_frames = torch.full((batch_size,), n_valid, device=device)
    n_vectors = -(-((n_valid + 1) // 2) // module.prompt.stride)
    rows: Sequence[list[int]] = [[-2] * n_vectors + [5, 6, 7]] * batch_size
    sequence, labels = (each.to(device) for each in training_rows(rows, [[9] * n_text] * batch_size))

    def run() -> None:
        loss: Tensor = module(mel, n_frames, sequence, labels)["loss"]
        loss.backward()

    return run


def ratio(found: dict[str, list[float]], one: str, other: str) -> str:
    """Median over the rounds of the ratio within a round, and the spread."""
    ratios = [a / b for a, b in zip(found[one], found[other], strict=True)]
    return f"{statistics.median(ratios):.3g} ({min(ratios):.3g}–{max(ratios):.3g})"


def _llama(width: int, layers: int, vocabulary: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=4
    )
    return LlamaForCausalLM(config)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", action="store_true")
    wants_shapes = parser.parse_args().shapes
    found = shapes() if wants_shapes else ratios()
    RESULTS.mkdir(exist_ok=True)
    name = "steering_shapes.json" if wants_shapes else "steering_speed.json"
    (RESULTS / name).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
