"""Lengths come from one place: features, outputs, loss and decoding agree, whatever the number of samples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import SeamlessM4TFeatureExtractor

from moe.systems.wav2vec2_ctc.frames import HOP, WINDOW, Frames, extractor, features, frames_needed
from moe.systems.wav2vec2_ctc.masks import masked_frames
from tests.toys.ctc import toy_ctc

KINDS = [Frames(2), Frames(4), Frames(2, 1), Frames(2, 2)]
EXTRACTOR = extractor()


def wave(n_samples: int) -> np.ndarray:
    return np.random.default_rng(n_samples).normal(0, 0.1, n_samples).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(n_samples=st.integers(1, 6 * HOP + WINDOW), frames=st.sampled_from(KINDS))
def test_the_number_of_frames_is_known_from_the_samples(n_samples: int, frames: Frames) -> None:
    found = features(wave(n_samples), frames, EXTRACTOR)
    assert found.shape == (frames.n_frames(n_samples), 80 * frames.stack) and np.isfinite(found).all()
    assert len(found) % frames.divisor == 0 and frames.padded(len(found)) >= len(found)


@pytest.mark.parametrize("n_mels", [10, 11])
def test_features_are_those_of_the_models_own_extractor_and_the_last_odd_mel_is_kept(n_mels: int) -> None:
    waveform = wave(WINDOW + (n_mels - 1) * HOP)
    theirs = SeamlessM4TFeatureExtractor()(waveform, sampling_rate=16_000, return_tensors="np")
    ours = features(waveform, Frames(2), EXTRACTOR)
    np.testing.assert_allclose(ours, theirs["input_features"][0], rtol=1e-5, atol=1e-5)
    assert theirs["attention_mask"].sum() == n_mels // 2  # theirs leaves the last mel of an odd number out
    assert len(ours) == -(-n_mels // 2)


@settings(deadline=None, max_examples=30)
@given(n_frames=st.integers(1, 40), n_layers=st.integers(0, 2))
def test_outputs_are_as_many_as_transformers_counts(n_frames: int, n_layers: int) -> None:
    frames = Frames(2, n_layers)
    n_frames *= frames.divisor
    config = toy_ctc(add_adapter=True).module.network.config
    config.num_adapter_layers, config.add_adapter = n_layers, n_layers > 0
    counted = toy_ctc().module.network.__class__._get_feat_extract_output_lengths
    holder = type("Holder", (), {"config": config})()
    assert frames.n_outputs(n_frames) == int(counted(holder, torch.tensor(n_frames)))


@pytest.mark.parametrize(("labels", "needed"), [([], 0), ([1], 1), ([1, 2, 1], 3), ([1, 1], 3), ([1, 1, 1, 2, 2], 8)])
def test_a_blank_is_needed_between_equal_labels(labels: list[int], needed: int) -> None:
    assert frames_needed(labels) == needed


@given(n_frames=st.integers(1, 60), share=st.floats(0.0, 0.99), length=st.integers(1, 30), seed=st.integers(0, 9))
def test_masks_fit_the_utterance_and_leave_some_of_a_short_one(n_frames: int, share: float, length: int, seed: int) -> None:
    masked = masked_frames(n_frames, share, length, np.random.default_rng(seed))
    assert masked.shape == (n_frames,) and masked.sum() <= int(share * n_frames / max(1, min(length, n_frames - 1)) + 1) * length


@pytest.mark.parametrize("n_frames", [7, 50])
def test_the_share_of_masked_frames_is_that_asked_for(n_frames: int) -> None:
    random = np.random.default_rng(0)
    mean = np.mean([masked_frames(n_frames, 0.05, 10, random).mean() for _ in range(4000)])
    assert mean == pytest.approx(0.05, abs=0.008)
