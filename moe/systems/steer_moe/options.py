"""What is said of SteerMoE: how the encoder is steered, what the language model reads, and which language model writes."""

import dataclasses

from moe.options import Options, names_of, option

FRAME, UTTERANCE = "frame", "utterance"
STEERING, LORA = "steering", "lora"
LLM, WHISPER = "llm", "whisper"
SHIPPED_DECODER = "base/synthetic-en-decoder"
UNITS = ("phonemes", "letters", "none")
ALL = "all"


@dataclasses.dataclass(frozen=True)
class SteeringOptions(Options):
    """How the frozen encoder is steered: vectors, scales and routers of each layer."""

    group = "steering"

    steer_experts: int = option(8, "steering vectors of each layer; 0: none, the projector trains alone", low=0)
    steering_scale: float = option(0.1, "first value of every layer's scale", low=0)
    use_layer_scales: bool = option(True, "the scales are learnt; false: they stay at steering_scale")
    steering_std: float = option(0.01, "standard deviation of the first vectors", low=0)
    steering_layers: str = option(ALL, "encoder layers after which frames are steered: all, or a comma list, 1 is the first")
    steering_unit: str = option(
        FRAME, "what the router decides for: each frame, or the mean of an utterance's frames", choices=(FRAME, UTTERANCE)
    )
    steering_top_k: int | None = option(None, "vectors mixed in a decision (none: all)", low=1)
    steering_dropout: float = option(0.0, "dropout of the vectors' sum in training", low=0, high=0.9)

    def faults(self) -> list[str]:
        """Layers that are no numbers, and more vectors to mix than there are."""
        found = []
        if self.steering_top_k is not None and self.steering_top_k > self.steer_experts > 0:
            found.append(f"steering_top_k={self.steering_top_k}: steer_experts={self.steer_experts} has no more to mix")
        parts = [part.strip() for part in self.steering_layers.split(",")]
        if self.steering_layers != ALL and not (all(part.isdigit() for part in parts) and len(set(parts)) == len(parts)):
            found.append(f"steering_layers={self.steering_layers}: must be all, or numbers of layers, each once")
        return found

    def idle(self) -> dict[str, str]:
        """Everything about steering, where there is none; a choice among one vector."""
        if self.steer_experts == 1:
            return dict.fromkeys(("steering_unit", "steering_top_k"), "steer_experts=1 leaves nothing to choose")
        names = names_of(SteeringOptions, but=["steer_experts"])
        return {} if self.steer_experts else dict.fromkeys(names, "steer_experts=0 steers nothing")

    def layers(self, n_layers: int) -> tuple[int, ...]:
        """The steered layers of an encoder, rising, counted from 1.

        Raises:
            ValueError: the encoder has no such layer.
        """
        if not self.steer_experts:
            return ()
        if faults := self.layer_faults(n_layers):
            raise ValueError("; ".join(faults))
        every = range(1, n_layers + 1)
        return tuple(every) if self.steering_layers == ALL else tuple(sorted(map(int, self.steering_layers.split(","))))

    def layer_faults(self, n_layers: int) -> list[str]:
        """Layers that an encoder lacks."""
        named = [] if self.steering_layers == ALL else [int(part) for part in self.steering_layers.split(",")]
        if all(1 <= number <= n_layers for number in named):
            return []
        return [f"steering_layers={self.steering_layers}: the encoder has layers 1 to {n_layers}"]


@dataclasses.dataclass(frozen=True)
class AudioPromptOptions(Options):
    """How encoder frames become vectors that a language model reads."""

    group = "steering"

    prompt_ms: int = option(80, "milliseconds of audio in one vector of the audio prompt", low=10, high=1000)
    prompt_pooling: str = option("mean", "how its frames are pooled", choices=("mean", "max"))
    projector: str = option(
        "mlp",  # on dev, three seeds, the projector alone: 32.3 % WER, linear 41.8
        "from the encoder's width to the language model's; none only where they are equal",
        choices=("linear", "mlp", "none"),
    )


@dataclasses.dataclass(frozen=True)
class PromptTextOptions(Options):
    """The instruction that a language model reads after the audio."""

    group = "steering"

    textual_prompt: str | None = option(None, "instruction after the audio prompt (none: the language model's own)")


@dataclasses.dataclass(frozen=True)
class SequenceOptions(PromptTextOptions):
    """What surrounds the audio prompt, and how long everything may be."""

    group = "steering"

    chat_template: str = option("auto", "auto: the language model's chat template, where it has one", choices=("auto", "none"))
    max_text_tokens: int = option(448, "tokens of an utterance's text, at most; a longer one is quarantined", low=1)
    max_sequence_tokens: int = option(512, "audio prompt, textual prompt, text and its end together, at most", low=8)
    max_prompt_tokens: int = option(512, "vectors of the audio prompt, at most", low=1)


@dataclasses.dataclass(frozen=True)
class SteerModelOptions(SteeringOptions, AudioPromptOptions, SequenceOptions):
    """The model of SteerMoE."""

    group = "steering"

    steer_adapter: str = option(
        STEERING, "lora: a LoRA in the encoder as large as match_run_id, in place of steering", choices=(STEERING, LORA)
    )
    writer: str = option(
        LLM, "who writes: the language model, or the base's own decoder without projector", choices=(LLM, WHISPER)
    )

    def idle(self) -> dict[str, str]:
        """What a LoRA, or the base's own decoder, leaves without effect."""
        found = (
            dict.fromkeys(names_of(SteeringOptions), "steer_adapter=lora steers nothing") if self.steer_adapter == LORA else {}
        )
        sequence = names_of(AudioPromptOptions, SequenceOptions)
        return found | (dict.fromkeys(sequence, "writer=whisper reads no prompt") if self.writer == WHISPER else {})

    @property
    def steers(self) -> bool:
        """Whether there are steering vectors."""
        return self.steer_experts > 0 and self.steer_adapter != LORA

    @property
    def projects(self) -> bool:
        """Whether there is a projector to train."""
        return self.writer != WHISPER and self.projector != "none"
