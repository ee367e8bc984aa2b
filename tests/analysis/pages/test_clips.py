"""Clips in the error explorer: what is chosen, in what order, within which budget, and that it is the audio."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
import soundfile
from matplotlib.image import imread

from analysis.pages.clips import BAND_HEIGHT, WAVE_HEIGHT, WIDTH, clip_of, clip_order, clip_uri, embed_clips, picture_uri


def counted(errors):
    ids = [f"u{number:03d}" for number in range(len(errors))]
    return pd.DataFrame({"utterance_id": ids, "word_errors": errors, "n_words": 5})


def wave_of(utterance_id):
    return np.sin(np.arange(16_000) * 0.05 * (1 + int(utterance_id[1:]))).astype(np.float32) * 0.5


def test_a_clip_is_an_mp3_of_the_same_sound():
    kind, _, data = clip_uri(wave_of("u000")).partition(";base64,")
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
    assert (kind, rate) == ("data:audio/mpeg", 16_000) and len(samples) == pytest.approx(16_000, abs=3000)  # padded to frames
    strongest = np.fft.rfft(samples[2000:10_000]).__abs__().argmax() / 8000 * 16_000
    assert strongest == pytest.approx(0.05 / (2 * np.pi) * 16_000, rel=0.05)


def size_of(clip):
    return len(clip.audio) + len(clip.picture)


@pytest.mark.parametrize("hertz", [500, 3000, 7000])
def test_a_picture_shows_when_it_is_loud_and_at_which_frequency(hertz):
    """A tone in the second half: the wave is flat before it, and the darkest row lies at its height between 0 and 8 kHz."""
    seconds = np.arange(16_000) / 16_000
    kind, _, data = picture_uri(np.sin(2 * np.pi * hertz * seconds) * (seconds > 0.5)).partition(";base64,")
    dark = 1 - imread(io.BytesIO(base64.b64decode(data)), format="png")[..., 0]
    assert kind == "data:image/png" and dark.shape == (WAVE_HEIGHT + BAND_HEIGHT, WIDTH)
    wave, bands = dark[:WAVE_HEIGHT], dark[WAVE_HEIGHT:]
    assert (wave[:, :110] > 0.3).sum(0).max() <= 2 and (wave[:, 130:] > 0.3).sum(0).min() > WAVE_HEIGHT / 2
    assert bands[:, 130:].mean(1).argmax() == pytest.approx((BAND_HEIGHT - 1) * (1 - hertz / 8000), abs=1)
    assert bands[:, :110].max() < 0.1


@pytest.mark.parametrize("n_samples", [0, 1, 100])
def test_a_picture_of_almost_nothing_is_one(n_samples):
    assert picture_uri(np.zeros(n_samples)).startswith("data:image/png")


def test_the_order_takes_worst_and_random_in_turn_each_once_whatever_the_row_order():
    table = counted([0, 1, 5, 2, 0, 3])
    order = clip_order(table, seed=1)
    assert sorted(order) == table["utterance_id"].tolist() and order[0] == "u002"
    assert clip_order(table.iloc[::-1], seed=1) == order
    worst = [name for name in order if name in ("u002", "u005", "u003")]
    assert worst == ["u002", "u005", "u003"] or order.index("u003") < 4  # in falling order unless drawn earlier


def test_clips_keep_to_the_budget_and_use_it():
    table, size = counted(list(range(40))), size_of(clip_of(wave_of("u039")))
    found = embed_clips(table, wave_of, budget_mb=10.5 * size / 1e6)
    assert sum(map(size_of, found.values())) <= 10.5 * size and len(found) >= 8
    assert "u039" in found and set(found) <= set(table["utterance_id"])
    assert embed_clips(table, wave_of, budget_mb=100).keys() == set(table["utterance_id"])


def test_no_budget_reads_no_audio():
    assert embed_clips(counted([1]), lambda name: pytest.fail("was read"), 0) == {}


def test_a_recording_that_does_not_fit_leaves_room_for_shorter_ones():
    waves = {"u000": np.zeros(16_000 * 60, np.float32), "u001": wave_of("u001")}
    budget = size_of(clip_of(waves["u001"])) * 1.5 / 1e6
    assert list(embed_clips(counted([9, 1]), waves.__getitem__, budget)) == ["u001"]
