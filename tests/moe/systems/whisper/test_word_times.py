"""Words are timed where they were said: by hand, against transformers' own attention, and on speech whose times espeak knows."""

from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from moe.recognition.recognizer import Recognizer
from moe.routing.options import RoutingOptions
from moe.synthesis.espeak import SAMPLE_RATE, Espeak, Prosody
from moe.system import DecodingOptions
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper.word_times import alignment_heads, attention_weights, timed_words, token_starts, watched_attention
from moe.systems.whisper_moe.zero_shot import base_system
from tests.toys.models import N_EXPERTS, bare_model, system_of, tokenizer, toy_mixture, toy_wave
from tests.toys.speech import RATE

ROOT = Path(__file__).resolve().parents[4]


def test_token_starts_by_hand() -> None:
    """Two tokens of a prompt, then three tokens on 4, 10 and 6 frames of 20, then the end of text on the last frames."""
    weights = torch.full((1, 6, 24), 0.01)
    for row, (start, stop) in {1: (0, 4), 2: (4, 14), 3: (14, 20), 4: (20, 24)}.items():
        weights[0, row, start:stop] = 1.0
    assert token_starts(weights, n_prompt=2).tolist() == [0, 4, 14, 20, 24]


def test_words_are_made_of_their_tokens() -> None:
    tokens = tokenizer()(" elm fig", add_special_tokens=False).input_ids
    starts = np.arange(len(tokens) + 1, dtype=float)
    found = timed_words(tokenizer(), tokens, starts, [-0.5] * len(tokens), frame_s=0.1)
    assert [word.word for word in found] == ["elm", "fig"] and found[0].start_s == 0
    assert found[0].end_s == found[1].start_s and found[1].end_s == pytest.approx(0.1 * len(tokens))
    assert [word.confidence for word in found] == pytest.approx([np.exp(-0.5)] * 2)


def test_watched_attention_is_transformers_own() -> None:
    model = bare_model()
    model.set_attn_implementation("eager")
    states, tokens = torch.randn(2, 30, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 5, 7], [1, 6, 9]])
    with torch.no_grad(), watched_attention(model) as seen:
        said = model.model.decoder(input_ids=tokens, encoder_hidden_states=states, use_cache=False, output_attentions=True)
    heads = [(layer, head) for layer in range(2) for head in range(2)]
    expected = torch.stack([said.cross_attentions[layer][:, head] for layer, head in heads], 1)
    torch.testing.assert_close(attention_weights(model, seen, heads, 30), expected)
    assert not model.model.decoder.layers[0].encoder_attn.q_proj._forward_hooks


def test_heads_are_those_of_the_generation_config_or_of_the_upper_half() -> None:
    model = bare_model()
    assert alignment_heads(model) == [(1, 0), (1, 1)]
    model.generation_config.alignment_heads = [[0, 1]]
    assert alignment_heads(model) == [(0, 1)]


@pytest.mark.parametrize("mixing", ["delta", "loss"])
def test_every_way_of_mixing_times_its_words_within_the_recording(mixing: str) -> None:
    system = system_of(toy_mixture(N_EXPERTS, routing=RoutingOptions(mixing=mixing)))
    (found,) = Recognizer(system).transcribe([toy_wave(1, 1.5)], DecodingOptions(max_tokens_per_s=4.0, word_times=True))
    (plain,) = Recognizer(system).transcribe([toy_wave(1, 1.5)], DecodingOptions(max_tokens_per_s=4.0))
    assert found.text == plain.text and found.words and not plain.words
    times = [time for word in found.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times) and 0 <= times[0] and times[-1] <= 1.5
    assert all(0 < word.confidence <= 1 for word in found.words)


def test_the_shipped_base_times_words_as_espeak_spoke_them() -> None:
    """Median error below 0.2 s where a word lasts 0.3 s; benchmarks/word_times.py measures it. Silence is as long as in its training."""
    system = base_system(load_base(str(ROOT / "base/synthetic-en")), Path(), "en", "basic")
    with Espeak("en-us+f2", 0) as espeak:
        spoken = espeak.speak("where is my blue cup", Prosody(rate=150, pitch=55, pitch_range=50))
    wave = np.pad(soxr.resample(spoken.samples, SAMPLE_RATE, RATE).astype(np.float32), RATE // 10)
    wave += np.random.default_rng(0).normal(0, 1e-3, len(wave)).astype(np.float32)
    (found,) = Recognizer(system, 0.3).transcribe([wave], DecodingOptions(word_times=True))
    assert found.text == "where is my blue cup" and [word.word for word in found.words] == found.text.split()
    errors = np.array([word.start_s for word in found.words]) - (0.1 + spoken.word_starts / SAMPLE_RATE)
    assert np.median(np.abs(errors)) < 0.2
