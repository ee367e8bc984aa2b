"""A Whisper whose decoder is conditioned on the domain: rows of its own for the new tokens, a prompt for each utterance, one pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from moe.experts.routed_lora import AdapterOptions, attach
from moe.routing.weights import Routing
from moe.system import IGNORED
from moe.systems.domain_whisper.domains import NO_DOMAIN
from moe.systems.domain_whisper.prompts import Prompts, token_table
from moe.systems.whisper import encoder as whisper_encoder
from moe.systems.whisper.beams import beams
from moe.systems.whisper.greedy import greedy
from moe.systems.whisper.head_loss import head_cross_entropy
from moe.systems.whisper.next_token import NextToken
from moe.systems.whisper.said import Said
from moe.training.precision import computing, hold_frozen
from moe.training.processes import mean_of_batch


class DomainWhisper(nn.Module):
    """See the module docstring.

    The token table is frozen, and tied to the head as it was. `rows` (n, D) are read in place of its last rows, so that they alone have
    gradient and optimizer state. The head has the other tokens only: a domain token is no text and is never said.

    Args:
        base: has the tokens of the domains as its last.
        adapters: of a LoRA on it; None for none.
        weights: (n,) of the domains in the training loss; an utterance without domain has weight 1.
        smoothing: label smoothing in training.
    """

    accepts_loss_kwargs = False

    def __init__(
        self,
        base: WhisperForConditionalGeneration,
        prompts: Prompts,
        adapters: AdapterOptions | None = None,
        weights: Sequence[float] | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        base.generation_config.max_length = None  # decoding bounds the new tokens itself
        table = token_table(base)
        self.n_old = table.num_embeddings - len(prompts.names)
        self.rows = nn.Parameter(table.weight[self.n_old :].detach().clone())  # (n, D)
        table.register_forward_hook(self._with_rows)
        self.routing = Routing() if adapters is None else attach(base, 0, adapters)
        self.base, self.prompts, self.adapters, self.smoothing = base, prompts, adapters, smoothing
        self.weights = tuple(weights or (1.0,) * len(prompts.names))
        self.precision = "fp32"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.base.device

    def use_precision(self, name: str) -> Self:
        """Compute in `fp32`, `bf16` or `fp16` from now on, and hold the frozen matrices in it; what trains stays float32."""
        self.precision = name
        hold_frozen(self.base, name)
        return self

    def enable_checkpointing(self) -> None:
        """Compute activations again in the backward pass."""
        self.base.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": self.routing.checkpoint_contexts})

    def forward(
        self,
        mel: Tensor,
        n_frames: Tensor,
        labels: Tensor,
        domain: Tensor | None = None,
        keeps_token: Tensor | None = None,
        utterance_ids: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            mel: (B, n_mels, F); labels: (B, N), the text and its end.
            domain: (B,) number of each utterance's domain, negative for none.
            keeps_token: (B,) whether the token stands in the prompt; false trains as if the domain were not known.

        Returns:
            loss (), utterance_loss (B,).
        """
        domain = torch.full((len(mel),), NO_DOMAIN, device=mel.device) if domain is None else domain
        given = domain if keeps_token is None or not self.training else domain.where(keeps_token, NO_DOMAIN)
        losses = self.decoder_loss(self.encode(mel), labels, given, self.smoothing if self.training else 0.0)
        weights = self._weights(domain)
        mean = mean_of_batch((losses * weights).sum() / weights.sum(), weights.sum())
        return {"loss": mean, "utterance_loss": losses.detach()}

    def encode(self, mel: Tensor) -> Tensor:
        """Encoder states: (B, n_mels, F) → (B, T, D)."""
        with self._computing():
            return whisper_encoder.encode(self.base.model.encoder, mel)

    def decoder_loss(self, states: Tensor, labels: Tensor, domain: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of each text after its prompt: states (B, T, D), labels (B, N), domain (B,) → (B,)."""
        texts = [[token for token in row if token != IGNORED] for row in labels.tolist()]
        prompts = [self.prompts.of(number) for number in domain.tolist()]
        inputs = [torch.tensor([*prompt, *text[:-1]]) for prompt, text in zip(prompts, texts, strict=True)]
        targets = [torch.tensor([IGNORED] * (len(prompt) - 1) + text) for prompt, text in zip(prompts, texts, strict=True)]
        padding: Any = self.base.config.pad_token_id
        said = self._decoded(states, pad_sequence(inputs, True, padding).to(states.device))
        with self._computing():
            return head_cross_entropy(said, self._head, pad_sequence(targets, True, IGNORED).to(states.device), smoothing)

    @torch.no_grad()
    def token_logprobs(self, states: Tensor, prompts: Tensor, tokens: Tensor) -> Tensor:
        """Natural log-probability of every token given those before it and its prompt: prompts (B, P), tokens (B, N) → (B, N)."""
        said = self._decoded(states, torch.cat([prompts, tokens[:, :-1]], dim=1))[:, prompts.shape[1] - 1 :]  # (B, N, D)
        with self._computing():
            logits = nn.functional.linear(said, self._head).float()  # (B, N, V)
        found: Tensor = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        return found

    @torch.no_grad()
    def say(self, states: Tensor, prompts: Tensor, n_new: int, n_beams: int = 1) -> Said:
        """Token ids after the prompts (B, P), n_new at most, and their log-probabilities by our own search, greedy or by beams."""
        with self._computing():
            next_token = NextToken(self.base, states, prompts, n_new, n_tokens=self.n_old)
            return greedy(next_token) if n_beams == 1 else beams(next_token, n_beams)

    @torch.no_grad()
    def search(self, states: Tensor, prompts: Tensor, max_length: int, n_beams: int = 1) -> Tensor:
        """Token ids (B, N) after the prompts (B, P), by transformers' own search.

        Not by Whisper's own `generate`: its ids of timestamps are all above `no_timestamps`, and so are those of new tokens; it would cut
        the text there and decode again from a prompt of its own. The search below it knows no timestamps.
        """
        with self._computing():
            base: Any = self.base
            tokens: Any = GenerationMixin.generate(
                base,
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=states.new_ones(states.shape[:2], dtype=torch.long),  # else it warns: padding is end of text
                decoder_input_ids=prompts,
                logits_processor=LogitsProcessorList([_OldTokens(self.n_old)]),
                num_beams=n_beams,
                max_length=max_length,
            )
        found: Tensor = tokens[:, prompts.shape[1] :]
        return found

    @property
    def _head(self) -> Tensor:
        return self.base.proj_out.weight[: self.n_old]  # (V, D)

    def _decoded(self, states: Tensor, tokens: Tensor) -> Tensor:
        with self._computing():
            said: Tensor = self.base.model.decoder(
                input_ids=tokens, encoder_hidden_states=states, use_cache=False
            ).last_hidden_state  # (B, N, D)
        return said

    def _with_rows(self, table: nn.Module, given: tuple[Tensor], embedded: Tensor) -> Tensor:
        new = given[0] - self.n_old
        return torch.where((new >= 0)[..., None], self.rows[new.clamp_min(0)].to(embedded.dtype), embedded)

    def _weights(self, domain: Tensor) -> Tensor:
        table = torch.tensor([*self.weights, 1.0], device=domain.device)  # the last is that of no domain
        return table[domain]

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """In the model's precision, its LoRA on where it has one."""
        with computing(self.device, self.precision), self.routing.use(None) if self.adapters else nullcontext():
            yield


class _OldTokens(LogitsProcessor):
    """Forbids the tokens from an id on."""

    def __init__(self, n_old: int) -> None:
        self.n_old = n_old

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        kept = scores.clone()
        kept[:, self.n_old :] = -torch.inf
        return kept
