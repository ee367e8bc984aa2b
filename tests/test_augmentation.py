"""Augmentation follows from (seed, epoch, utterance id) alone and stays within its options."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe.augmentation import Augmentation, augment, generator

MEL = np.random.default_rng(0).normal(size=(16, 50)).astype(np.float32)


def heard(seed: int = 1, epoch: int = 0, name: str = "u1", options: Augmentation = Augmentation()) -> np.ndarray:
    return augment(MEL, options, generator(seed, epoch, name))


def test_the_same_key_gives_the_same_sound_whatever_was_drawn_before() -> None:
    first = heard()
    np.random.seed(7)
    np.random.rand(3)
    heard(name="u2")
    assert np.array_equal(first, heard())


def test_seed_epoch_and_utterance_each_change_the_sound() -> None:
    sounds = [heard(), heard(seed=2), heard(epoch=1), heard(name="u2"), heard(seed=11, epoch=0), heard(seed=1, epoch=10)]
    assert len({sound.tobytes() for sound in sounds}) == len(sounds)


def test_the_original_is_left_alone_and_float32_stays() -> None:
    before = MEL.copy()
    assert heard().dtype == np.float32
    assert np.array_equal(before, MEL)


def test_all_off_changes_nothing() -> None:
    assert np.array_equal(heard(options=Augmentation(n_masks=0, gain=0.0)), MEL)


@given(st.integers(0, 10**6), st.integers(0, 16), st.integers(0, 60), st.integers(0, 3))
def test_masks_are_no_wider_than_asked_and_the_rest_is_only_louder(seed: int, mels: int, frames: int, n_masks: int) -> None:
    sound = heard(seed, options=Augmentation(n_masks=n_masks, mask_mels=mels, mask_frames=frames, gain=0.2))
    offset = np.median(sound - MEL)
    changed = ~np.isclose(sound, MEL + offset, atol=1e-5)
    if n_masks * (mels / 16 + min(frames, 50) / 50) < 0.45:  # else the median may be of masked cells
        assert abs(offset) <= 0.2 + 1e-6
        assert changed.all(axis=1).sum() <= n_masks * mels
        assert changed.all(axis=0).sum() <= n_masks * frames
        assert changed.sum() <= n_masks * (mels * 50 + frames * 16)
