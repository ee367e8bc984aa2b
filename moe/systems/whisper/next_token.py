"""What the next token of a hypothesis may be: one distribution for greedy search and beams, of one model or of a mixture."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, WhisperForConditionalGeneration

from moe.systems.whisper.mixing import mixed
from moe.systems.whisper.step_decoder import StepDecoder

KNOWN = {  # what a generation config may hold without changing which token is likeliest, beside what our searches read
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "max_length", "max_new_tokens", "is_multilingual",
    "lang_to_id", "task_to_id", "language", "task", "no_timestamps_token_id", "prev_sot_token_id", "return_timestamps",
    "suppress_tokens", "begin_suppress_tokens", "alignment_heads", "max_initial_timestamp_index", "median_filter_width",
    "forced_decoder_ids", "transformers_version", "cache_config", "use_cache", "num_beams", "length_penalty", "early_stopping",
}  # fmt: skip


def is_plain(generation: GenerationConfig) -> bool:
    """Whether our searches do all that a generation config asks for; a penalty of repetitions, say, is left to transformers."""
    asked = set(generation.to_diff_dict()) - KNOWN
    return not asked and isinstance(generation.eos_token_id, int) and not getattr(generation, "return_timestamps", False)


class NextToken:
    """Logits of the next token of each hypothesis of a batch.

    Args:
        base: the model, its adapters as they are to be used.
        states: of the encoder, (B, T, D), or (B·k, T, D) where the probabilities of k experts are mixed.
        prompt: token ids that every hypothesis starts from, (P,) or, for each utterance its own, (B, P).
        n_new: tokens at most.
        min_new: tokens before which no hypothesis ends.
        log_values: log of the weights of the k experts, (B, k).
        n_tokens: the vocabulary, where not the whole head has a part in it.
    """

    def __init__(
        self,
        base: WhisperForConditionalGeneration,
        states: Tensor,
        prompt: Sequence[int] | Tensor,
        n_new: int,
        min_new: int = 0,
        log_values: Tensor | None = None,
        n_tokens: int | None = None,
    ) -> None:
        self.generation, self.end = base.generation_config, int(base.generation_config.eos_token_id)
        self.n_new, self.min_new, self.n_tokens, self.n_said = n_new, min_new, n_tokens, 0
        self.log_values = log_values
        self.k = 1 if log_values is None else log_values.shape[1]
        read = torch.as_tensor(prompt, device=states.device)
        self.prompts = read.expand(len(states) // self.k, read.shape[-1])  # (B, P)
        self.decoder = StepDecoder(base, states, read.shape[-1] + n_new)
        self.never, self.never_first = (
            torch.tensor(getattr(base.generation_config, name, None) or [], dtype=torch.long, device=states.device)
            for name in ("suppress_tokens", "begin_suppress_tokens")
        )

    def __call__(self, said: Tensor | None = None, origins: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read on.

        Args:
            said: the newest token of each of the n hypotheses of an utterance, (B, n); None reads the prompt, of one.
            origins: which of the hypotheses before each of them continues, (B, n); None: each itself.

        Returns:
            logits, −∞ where a token may not be said, (B·n, V), and the log of the sum of exp of all, these included, (B·n,).
        """
        if origins is not None:
            self.decoder.follow(self._rows(origins))
        read = self.prompts if said is None else said
        logits = self.decoder(read.repeat_interleave(self.k, 0).view(-1, self.prompts.shape[1] if said is None else 1))
        logits = logits[:, : self.n_tokens] if self.log_values is None else mixed(logits[:, : self.n_tokens], self.log_values)
        total = logits.logsumexp(-1)
        logits[:, self.never] = -torch.inf
        if said is None:
            logits[:, self.never_first] = -torch.inf
        if self.n_said < self.min_new:
            logits[:, self.end] = -torch.inf
        self.n_said += 1
        return logits, total

    def _rows(self, origins: Tensor) -> Tensor:
        """Rows of the decoder (B·k·n,), in which the hypotheses of an utterance lie side by side for each of its experts."""
        n_before = len(self.decoder.text[0][0]) // self.decoder.n_rows
        first = n_before * torch.arange(self.decoder.n_rows, device=origins.device)  # (B·k,)
        return (first[:, None] + origins.repeat_interleave(self.k, 0)).flatten()
