"""A Whisper decoder that reads on from where it was.

transformers prepares inputs, masks and caches anew for every token, which on a small model costs as much as the model. Here keys and
values lie in tensors made once; those of the audio are the utterance's, however many hypotheses read it.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperForConditionalGeneration

from moe.systems.whisper.packed_linear import packed


class StepDecoder:
    """The decoder of a Whisper, some tokens at a time, after those that it has read.

    The hypotheses of an utterance pass through a layer side by side, as positions of its one row: adapters of an utterance are then
    multiplied once, and its audio is attended to by all of them together.

    Args:
        base: the model; its adapters, if any, are as they are when it is called.
        states: of the encoder, (R, T, D).
        n_most: tokens that will be read at most.
    """

    def __init__(self, base: WhisperForConditionalGeneration, states: Tensor, n_most: int) -> None:
        self.decoder, self.n_most, self.n_read, self.n_rows = base.model.decoder, n_most, 0, len(states)
        self.audio = [
            (self._heads(a, a.k_proj(states)), self._heads(a, a.v_proj(states))) for a in self._attentions("encoder_attn")
        ]
        self.text: list[tuple[Tensor, Tensor]] = []
        self.head = packed(base.proj_out)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read tokens (R·n, m), m of each of the n hypotheses of a row, and return the logits of the next ones, (R·n, V) float32."""
        (n_hypotheses, n), at = tokens.shape, self.n_read
        self.n_read += n
        hidden = self.decoder.embed_tokens(tokens) + self.decoder.embed_positions.weight[at : self.n_read]
        hidden = hidden.view(self.n_rows, -1, hidden.shape[-1])  # (R, n·m, D)
        for index, layer in enumerate(self.decoder.layers):
            hidden = hidden + self._own(index, layer.self_attn, layer.self_attn_layer_norm(hidden), n_hypotheses)
            hidden = hidden + self._heard(index, layer.encoder_attn, layer.encoder_attn_layer_norm(hidden))
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
        last = hidden.view(n_hypotheses, n, -1)[:, -1]
        return self.head(self.decoder.layer_norm(last)).float()

    def follow(self, origins: Tensor) -> None:
        """Go on with other hypotheses: each of (R·n,) is the number of the one whose tokens it has read so far."""
        self.text = [(self._followed(keys, origins), self._followed(values, origins)) for keys, values in self.text]

    def _followed(self, held: Tensor, origins: Tensor) -> Tensor:
        read = held[:, :, : self.n_read].index_select(0, origins)
        if len(held) != len(origins):
            held = held.new_empty((len(origins), *held.shape[1:]))
        held[:, :, : self.n_read] = read
        return held

    def _own(self, index: int, attention: Any, hidden: Tensor, n_hypotheses: int) -> Tensor:
        """What the hypotheses add to themselves, each from its own tokens: (R, n·m, D) → (R, n·m, D)."""
        queries, keys, values = (
            self._heads(attention, projection(hidden).reshape(n_hypotheses, -1, hidden.shape[-1]))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )  # (R·n, heads, m, D / heads)
        if index == len(self.text):  # (R·n, heads, n_most, D / heads), in the precision that is computed in
            shape = (*keys.shape[:2], self.n_most, keys.shape[-1])
            self.text.append((keys.new_empty(shape), values.new_empty(shape)))
        n = keys.shape[2]
        for held, new in zip(self.text[index], (keys, values), strict=True):
            held[:, :, self.n_read - n : self.n_read] = new
        held_keys, held_values = (held[:, :, : self.n_read] for held in self.text[index])
        found = F.scaled_dot_product_attention(queries, held_keys, held_values, is_causal=n == self.n_read > 1)
        added: Tensor = attention.out_proj(self._joined(found).view(hidden.shape))
        return added

    def _heard(self, index: int, attention: Any, hidden: Tensor) -> Tensor:
        """What the audio adds, (R, n·m, D) → (R, n·m, D)."""
        queries = self._heads(attention, attention.q_proj(hidden))
        added: Tensor = attention.out_proj(self._joined(F.scaled_dot_product_attention(queries, *self.audio[index])))
        return added

    def _attentions(self, name: str) -> list[Any]:
        return [getattr(layer, name) for layer in self.decoder.layers]

    @staticmethod
    def _heads(attention: Any, projected: Tensor) -> Tensor:
        """(R, n, D) → (R, heads, n, D / heads)."""
        heads: Tensor = projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        return heads

    @staticmethod
    def _joined(found: Tensor) -> Tensor:
        """(R, heads, n, D / heads) → (R, n, D)."""
        return found.transpose(1, 2).flatten(2)
