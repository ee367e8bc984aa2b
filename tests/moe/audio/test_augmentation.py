"""Augmentation follows from (seed, epoch, utterance id) alone and stays within its options."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.audio.augmentation import SLOPES, AugmentationOptions, augment, augment_waveform, generator, noise
from moe.audio.sampling import SAMPLE_RATE

MEL = np.random.default_rng(0).normal(size=(16, 50)).astype(np.float32)


def heard(seed: int = 1, epoch: int = 0, name: str = "u1", options: AugmentationOptions = AugmentationOptions()) -> np.ndarray:
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
    assert np.array_equal(heard(options=AugmentationOptions(n_masks=0, gain=0.0)), MEL)


@given(st.integers(0, 10**6), st.integers(0, 16), st.integers(0, 60), st.integers(0, 3))
def test_masks_are_no_wider_than_asked_and_the_rest_is_only_louder(seed: int, mels: int, frames: int, n_masks: int) -> None:
    sound = heard(seed, options=AugmentationOptions(n_masks=n_masks, mask_mels=mels, mask_frames=frames, gain=0.2))
    offset = np.median(sound - MEL)
    changed = ~np.isclose(sound, MEL + offset, atol=1e-5)
    if n_masks * (mels / 16 + min(frames, 50) / 50) < 0.45:  # else the median may be of masked cells
        assert abs(offset) <= 0.2 + 1e-6
        assert changed.all(axis=1).sum() <= n_masks * mels
        assert changed.all(axis=0).sum() <= n_masks * frames
        assert changed.sum() <= n_masks * (mels * 50 + frames * 16)


WAVE = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)


def changed(seed: int = 1, max_samples: int = 10**6, wave: np.ndarray = WAVE, **options) -> np.ndarray:
    return augment_waveform(wave, AugmentationOptions(**options), generator(seed, 0, "u"), max_samples)


def pitch(wave: np.ndarray) -> float:
    """Frequency of the strongest component, Hz."""
    return float(np.abs(np.fft.rfft(wave)).argmax() * SAMPLE_RATE / len(wave))


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.1, 1.25])
def test_a_speed_shortens_and_raises_in_proportion(speed: float) -> None:
    wave = changed(speed_factors=str(speed))
    assert len(wave) == pytest.approx(len(WAVE) / speed, abs=1) and pitch(wave) == pytest.approx(440 * speed, abs=2)
    assert wave.dtype == np.float32


def test_every_speed_is_drawn_and_one_leaves_the_samples_alone() -> None:
    lengths = {len(changed(seed, speed_factors="0.9,1.0,1.1")) for seed in range(30)}
    assert lengths == {17778, 16000, 14545}
    assert np.array_equal(changed(speed_factors="1.0"), WAVE)


def test_no_utterance_is_slowed_beyond_the_window() -> None:
    """Nothing is cut."""
    assert np.array_equal(changed(speed_factors="0.5", max_samples=20_000), WAVE)


@pytest.mark.parametrize("colour", SLOPES)
@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_has_the_ratio_and_the_colour_asked_for(colour: str, snr_db: float) -> None:
    options = {"noise_share": 1.0, "noise_colour": colour, "noise_snr_low": snr_db, "noise_snr_high": snr_db}
    rest = changed(**options) - WAVE
    measured = 10 * np.log10(np.mean(WAVE**2) / np.mean(rest**2))
    assert measured == pytest.approx(snr_db, abs=0.01)
    power = np.abs(np.fft.rfft(noise(1 << 16, colour, generator(0, 0, "n")))) ** 2
    low, high = power[100:200].mean(), power[1600:3200].mean()  # four octaves apart
    assert np.log2(low / high) / 4 == pytest.approx(SLOPES[colour], abs=0.15)


def test_the_share_of_noisy_utterances_is_as_asked_and_silence_stays_silent() -> None:
    noisy = [not np.array_equal(changed(seed, noise_share=0.3), WAVE) for seed in range(300)]
    assert 0.2 < np.mean(noisy) < 0.4
    assert not changed(wave=np.zeros(100, np.float32), noise_share=1.0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed_factors": "0.9,fast"}, "speed_factors='0.9,fast': must be numbers from 0.5 to 2 or none"),
        ({"speed_factors": "3"}, "must be numbers from 0.5 to 2"),
        ({"noise_snr_low": 40.0}, "noise_snr_low=40: must be at most noise_snr_high=30"),
    ],
)
def test_what_cannot_be_played_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentationOptions(**options)
