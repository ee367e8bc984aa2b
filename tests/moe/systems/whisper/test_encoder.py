"""The encoder in pieces is transformers' own, at any length, and the gate's view of it knows nothing of padding."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moe.routing.pooling import pool
from moe.systems.whisper.encoder import add_positions, conv_stem, encode, layer_index, pooled_embedding, run_layers
from moe.systems.whisper.features import log_mel, pad_silence, valid_frames, window_frames
from tests.toys.models import HALF, inputs, shared_base, toy_wave

ENCODER = shared_base().model.model.encoder
EXTRACTOR = shared_base().processor.feature_extractor
NEAR = {"atol": 1e-5, "rtol": 1e-5}  # kernels differ by processor and by the layout of memory


def spoken(number: int, seconds: float, n_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A chord padded with silence to `n_frames`: (1, n_mels, F) and its valid frames (1,)."""
    wave = toy_wave(number, seconds)
    mel = pad_silence(log_mel(wave, EXTRACTOR), n_frames)
    return torch.from_numpy(mel)[None], torch.tensor([valid_frames(len(wave), EXTRACTOR)])


@torch.no_grad()
def test_at_full_length_it_is_transformers_own() -> None:
    mel, _, _ = inputs()
    torch.testing.assert_close(encode(ENCODER, mel), ENCODER(mel).last_hidden_state, **NEAR)


@torch.no_grad()
def test_every_layer_is_transformers_own_at_full_length() -> None:
    mel, _, _ = inputs()
    states = ENCODER(mel, output_hidden_states=True).hidden_states
    hidden = add_positions(ENCODER, conv_stem(ENCODER, mel))
    torch.testing.assert_close(hidden, states[0], **NEAR)
    torch.testing.assert_close(run_layers(ENCODER, hidden, 0, 1), states[1], **NEAR)


@torch.no_grad()
@pytest.mark.parametrize("n_frames", [20, 50, 98])
def test_a_short_context_is_an_encoder_of_that_length(n_frames: int) -> None:
    """The oracle: transformers' own encoder with its position table sliced."""
    import copy

    mel = inputs()[0][:, :, :n_frames]
    short = copy.deepcopy(ENCODER)
    short.config.max_source_positions = n_frames // 2
    short.embed_positions = torch.nn.Embedding.from_pretrained(ENCODER.embed_positions.weight[: n_frames // 2])
    torch.testing.assert_close(encode(ENCODER, mel), short(mel).last_hidden_state, **NEAR)


@torch.no_grad()
def test_in_pieces_it_is_the_whole() -> None:
    mel, _, _ = inputs()
    hidden = add_positions(ENCODER, conv_stem(ENCODER, mel))
    halves = run_layers(ENCODER, run_layers(ENCODER, hidden, 0, 1), 1, 2)
    torch.testing.assert_close(ENCODER.layer_norm(halves), encode(ENCODER, mel), **NEAR)


def test_more_frames_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="102 mel frames: the encoder takes at most 100"):
        encode(ENCODER, torch.zeros(1, 16, 102))


def test_layers_are_checked() -> None:
    assert [layer_index(ENCODER, layer) for layer in (None, 0, 1, 2)] == [2, 0, 1, 2]
    for layer in (-1, 3):
        with pytest.raises(ValueError, match=f"gate_layer={layer}: the encoder has layers 0"):
            layer_index(ENCODER, layer)


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [6.0]]])  # (2, 3, 1)
    n_frames = torch.tensor([3, 6])  # 2 and 3 encoder frames
    torch.testing.assert_close(pool(hidden, n_frames), torch.tensor([[2.0], [4.0]]))
    spread = torch.tensor([[2.0, 1.0], [4.0, (8 / 3) ** 0.5]])
    torch.testing.assert_close(pool(hidden, n_frames, "mean_std"), spread, atol=0, rtol=2**-11)  # as near as half precision is


@pytest.mark.parametrize("pooling", ["mean", "mean_std", "flatten"])
def test_pooling_ignores_what_is_in_the_padding(pooling: str) -> None:
    """Pitfall 8: the mean ran over mostly padding, so that the gate saw the duration."""
    torch.manual_seed(0)
    hidden, n_frames = torch.randn(2, 10, 4), torch.tensor([7, 12])
    other = hidden.clone()
    other[0, 4:], other[1, 6:] = 1e3, -1e3
    assert torch.equal(pool(hidden, n_frames, pooling, 40), pool(other, n_frames, pooling, 40))
    longer = F.pad(hidden, (0, 0, 0, 30), value=7.0)
    torch.testing.assert_close(pool(longer, n_frames, pooling, 40), pool(hidden, n_frames, pooling, 40), atol=HALF, rtol=HALF)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "mean_std", "flatten"])
@pytest.mark.parametrize("seconds", [0.3, 0.62, 1.1])
def test_the_conv_stems_embedding_is_the_same_in_any_context(pooling: str, seconds: float) -> None:
    """Pitfall 8, on audio: bucketed and full context give the gate one vector."""
    views = []
    for n_frames in (62, 76, window_frames(EXTRACTOR)):
        mel, n_valid = spoken(3, seconds, n_frames)
        views.append(pooled_embedding(ENCODER, mel, n_valid, 0, pooling))
    for view in views[1:]:
        torch.testing.assert_close(view, views[0], atol=HALF, rtol=HALF)
    mel, n_valid = spoken(4, seconds, 76)
    assert not torch.allclose(pooled_embedding(ENCODER, mel, n_valid, 0, pooling), views[0], atol=5 * HALF)


@torch.no_grad()
def test_the_gates_view_of_each_layer() -> None:
    mel, n_frames, _ = inputs()
    states = ENCODER(mel, output_hidden_states=True)
    stem = states.hidden_states[0] - ENCODER.embed_positions.weight
    expected = {0: stem, 1: states.hidden_states[1], None: states.last_hidden_state}
    for layer, hidden in expected.items():
        torch.testing.assert_close(
            pooled_embedding(ENCODER, mel, n_frames, layer, "mean"), pool(hidden, n_frames), atol=HALF, rtol=HALF
        )


def test_pooling_is_finite_for_one_frame_and_in_half_precision() -> None:
    hidden = torch.full((1, 4, 2), 1e-3, dtype=torch.bfloat16)
    vector = pool(hidden, torch.tensor([1]), "mean_std")
    assert vector.isfinite().all() and np.allclose(vector[0, 2:].float(), 0)
    assert pool(torch.full((1, 4, 2), 1e6), torch.tensor([8])).isfinite().all()


def test_pooling_is_in_single_precision_and_rounded_to_half_at_its_end() -> None:
    """Half precision inside would lose a mean over 1500 frames; half precision outside holds what the gate sees."""
    torch.manual_seed(0)
    hidden, n_frames = 3 + torch.randn(2, 1500, 8), torch.tensor([2999, 1000])
    expected = torch.stack(
        [torch.cat([row[:n].mean(0), row[:n].std(0, unbiased=False)]) for row, n in zip(hidden, (1500, 500), strict=True)]
    )
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 1e-2)):
        with torch.autocast("cpu", torch.bfloat16):
            pooled = pool(hidden.to(dtype), n_frames, "mean_std")
        assert pooled.dtype == torch.float32 and torch.equal(pooled, pooled.half().float())
        torch.testing.assert_close(pooled, expected, atol=tolerance, rtol=tolerance)
