"""The synthetic corpus: the same bytes in any order, speaker-disjoint, honestly labelled, its times right."""

import dataclasses
import functools
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moe.files import folder_digest, read_json
from moe.synthesis import effects
from moe.synthesis.articulation import FRONTING_AND_GLIDING, STOPPING, WEAK_CLOSURES, misarticulate
from moe.synthesis.corpus import N_TAKES, _short_enough, render_speaker, synthesize
from moe.synthesis.effects import SAMPLE_RATE, Speech
from moe.synthesis.enrolment import ENROLMENT
from moe.synthesis.espeak import Espeak, Prosody
from moe.synthesis.grammar import Grammar, grammars, is_held_out
from moe.synthesis.planning import N_ALTERNATIVES, N_SHORT, SynthesisOptions, plan
from moe.synthesis.rendering import render
from moe.synthesis.styles import STYLES
from moe.synthesis.voices import RESERVED_VARIANTS, make_speaker

TOY = {"n_train_speakers": 2, "n_dev_speakers": 1, "n_test_speakers": 1, "n_utterances": 2, "n_dev_utterances": 1, "n_test_utterances": 2,
       "seen_share": 0.5, "n_workers": 1}  # fmt: skip
planned = functools.cache(plan)
MAKEFILE = Path(__file__).resolve().parents[3] / "Makefile"
NORMAL = Prosody(rate=170, pitch=50, pitch_range=50)


@functools.cache
def base_corpus() -> SynthesisOptions:
    """The corpus that `make base` trains the shipped base model on."""
    target = MAKEFILE.read_text().partition("\nbase: ")[2].partition("\n\n")[0].partition("synthetic-en\n")[0]
    given = {name: yaml.safe_load(value) for name, value in re.findall(r"-P (\w+)=(\S+)", target)}
    return SynthesisOptions(
        **{field.name: given[field.name] for field in dataclasses.fields(SynthesisOptions) if field.name in given}
    )


def speaker_of(style: str, language: str = "en", key: object = 0):
    return make_speaker(f"{style}-{key}", style, (style, key), grammars()[language].accents)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "corpus"
    options = SynthesisOptions(**TOY, n_reserved_speakers=1)
    summary = synthesize(options, folder)
    return options, folder, summary, pd.read_csv(folder / "manifest.csv")


# ---------------------------------------------------------------- determinism


def test_any_number_of_workers_gives_the_same_bytes(toy, tmp_path):
    options, folder, summary, _ = toy
    again = synthesize(dataclasses.replace(options, n_workers=2), tmp_path / "two")
    assert again == summary
    assert folder_digest(tmp_path / "two") == folder_digest(folder)


def test_any_order_of_speakers_gives_the_same_bytes(toy, tmp_path):
    """Pitfall 13's kind: espeak's own state makes bytes depend on what was said before, unless each utterance starts afresh."""
    options, folder, _, _ = toy
    plans = plan(options)
    random.Random(1).shuffle(plans)
    (tmp_path / "audio").mkdir()
    for each in plans:
        render_speaker(each, options, tmp_path)
    for path in sorted((folder / "audio").iterdir()):
        assert (tmp_path / "audio" / path.name).read_bytes() == path.read_bytes(), path.name


def test_another_seed_gives_other_audio(toy, tmp_path):
    options, _, summary, _ = toy
    other = synthesize(dataclasses.replace(options, seed=1, styles="typical"), tmp_path / "other")
    assert other.digest != summary.digest


def test_another_take_differs_and_the_same_take_does_not():
    speaker = speaker_of("stroke")
    first, again, other = (render(speaker, "call one two three four", 0, take).samples for take in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or not np.array_equal(first, other)


# ---------------------------------------------------------------- espeak


def test_espeak_refuses_an_unknown_voice_and_works_afterwards():
    with pytest.raises(RuntimeError, match="no voice 'xx-nowhere'"), Espeak("xx-nowhere", 0):
        pass
    with Espeak("en", 0) as espeak:
        assert len(espeak.speak("hello", NORMAL).samples) > 4000


def test_espeak_is_refused_twice_at_once():
    with Espeak("en", 0), pytest.raises(RuntimeError, match="already in use"), Espeak("en", 0):
        pass


def test_word_times_rise_and_there_is_one_for_each_word():
    with Espeak("en", 0) as espeak:
        spoken = espeak.speak("please bring my red coat", NORMAL)
    assert len(spoken.word_starts) == 5
    assert (np.diff(spoken.word_starts) > 0).all() and spoken.word_starts[-1] < len(spoken.samples)


@pytest.mark.parametrize("tape_speed", [0.93, 1.0, 1.08])
def test_phoneme_times_point_at_the_phonemes(tape_speed):
    """Oracle: within an aligned s the energy is above 3 kHz, within an aligned vowel below it."""
    speaker = dataclasses.replace(speaker_of("typical"), tape_speed=tape_speed, voice="en-us+m3")
    share = {"s": [], "vowel": []}
    for take in range(6):
        rendering = render(speaker, "sarah saw a soft cat outside", take)
        assert (np.diff(rendering.phoneme_starts) >= 0).all()
        ends = [*rendering.phoneme_starts[1:], len(rendering.samples)]
        for label, start, end in zip(rendering.phonemes, rendering.phoneme_starts, ends, strict=True):
            kind = "s" if label == "s" else "vowel" if label.startswith("'") else None
            if kind and end - start > 640:
                power = np.abs(np.fft.rfft(rendering.samples[start:end])) ** 2
                share[kind].append(power[int(3000 * (end - start) / SAMPLE_RATE) :].sum() / power.sum())
    assert len(share["s"]) >= 12 and np.median(share["s"]) > 0.8
    assert len(share["vowel"]) >= 12 and np.median(share["vowel"]) < 0.2


# ---------------------------------------------------------------- grammar


def test_english_gives_many_distinct_short_sentences_of_its_words():
    grammar, rng = grammars()["en"], np.random.default_rng(0)
    sentences = grammar.distinct(rng, 5000)
    assert len(set(sentences)) == 5000
    assert {word for sentence in sentences for word in sentence.split()} <= set(grammar.words)
    assert {len(sentence.split()) for sentence in sentences} <= set(range(3, 9))
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)*", sentence) for sentence in sentences)


def test_one_sentence_in_five_is_held_out():
    sentences = grammars()["en"].distinct(np.random.default_rng(0), 3000)
    assert 0.17 < np.mean([is_held_out(sentence) for sentence in sentences]) < 0.23


def test_optional_slots_are_sometimes_empty():
    grammar = Grammar("xx", ("en",), {"a": ("x",)}, ("go {a?1}",))
    assert set(grammar.distinct(np.random.default_rng(0), 2)) == {"go", "go x"}


def test_too_few_sentences_are_reported():
    grammar = Grammar("xx", ("en",), {"a": ("x", "y")}, ("go {a}",))
    with pytest.raises(ValueError, match="'xx' gave 2 distinct sentences; 3 were asked for"):
        grammar.distinct(np.random.default_rng(0), 3)


@pytest.mark.parametrize("language", ["ko", "ne"])
def test_other_languages_have_sentences_for_the_default_corpus(language):
    rows = [row[0] for each in plan(SynthesisOptions(synthetic_language=language)) for row in each.candidates]
    assert len(rows) == 2580 and not any(re.search("[a-z]", sentence) for sentence in rows)


@pytest.mark.parametrize("language", ["en", "ko", "ne"])
def test_every_style_speaks_every_language(language):
    sentence = max(grammars()[language].distinct(np.random.default_rng(1), 20), key=len)
    for style in STYLES:
        rendering = render(speaker_of(style, language), sentence, 0)
        assert 0.7 < rendering.duration_s < 6, style
        assert rendering.samples.dtype == np.float32 and np.isfinite(rendering.samples).all()
        assert 0.01 < np.abs(rendering.samples).max() <= 0.981


def test_the_words_kept_for_test_are_in_no_other_split_and_have_no_character_of_their_own():
    grammar, options = grammars()["ne"], SynthesisOptions(synthetic_language="ne", test_words_share=0.25, seen_share=0.5)
    assert len(grammar.words) >= 190 and len(grammar.test_words) >= 20 and grammar.test_words <= set(grammar.words)
    assert set("".join(grammar.test_words)) <= set("".join(set(grammar.words) - grammar.test_words))
    said = {
        split: [row for each in plan(options) if each.split == split for row in each.candidates]
        for split in ("train", "dev", "test")
    }
    new = {split: [grammar.has_test_word(text) for row in said[split] for text in row] for split in said}
    assert not any(new["train"]) and not any(new["dev"]) and np.mean(new["test"]) == 0.25


def test_a_share_of_words_that_no_grammar_keeps_is_refused():
    with pytest.raises(ValueError, match="test_words_share=0.1: the grammar of synthetic_language=en keeps no words for test"):
        SynthesisOptions(test_words_share=0.1)
    with pytest.raises(ValueError, match="seen_share=0.8 and test_words_share=0.3: must not exceed 1 together"):
        SynthesisOptions(synthetic_language="ne", seen_share=0.8)


# ---------------------------------------------------------------- plan


def test_speakers_are_in_one_split_and_purposes_share_none():
    plans, base = planned(SynthesisOptions(seed=0)), planned(base_corpus())
    for each in (plans, base):
        assert len({one.speaker.name for one in each}) == len(each)
    own = {dataclasses.replace(one.speaker, name="") for one in plans + base}
    assert len(own) == len(plans) + len(base)
    assert not {one.speaker.name for one in plans} & {one.speaker.name for one in base}


def test_unseen_test_sentences_are_in_no_training_data_not_even_the_base_models():
    options = SynthesisOptions(seen_share=0.0)
    trained = {
        text
        for each in planned(options) + planned(base_corpus())
        if each.split == "train"
        for row in each.candidates
        for text in row
    }
    tested = {text for each in planned(options) if each.split == "test" for row in each.candidates for text in row}
    assert not trained & tested


def test_the_pretraining_corpus_has_the_stated_size():
    plans = planned(base_corpus())
    sizes = [(each.split, each.is_reserved_voice, len(each.candidates)) for each in plans]
    assert sum(n for split, _, n in sizes if split == "train") == 10_080
    assert sum(n for split, reserved, n in sizes if split == "test" and not reserved) == 300
    assert sum(n for split, reserved, n in sizes if split == "test" and reserved) == 300


def test_reserved_variants_are_heard_from_reserved_speakers_only():
    for each in planned(base_corpus()) + planned(SynthesisOptions()):
        assert (each.speaker.voice.split("+")[1] in RESERVED_VARIANTS) == each.is_reserved_voice


def test_further_speakers_and_styles_change_no_other_speakers_training_data():
    small = {each.speaker: each for each in planned(SynthesisOptions(styles="als", n_train_speakers=2)) if each.split == "train"}
    large = {each.speaker: each for each in planned(SynthesisOptions(n_train_speakers=4))}
    assert len(small) == 2 and all(large[speaker] == each for speaker, each in small.items())


def test_severity_is_zero_for_typical_speech_and_strong_for_styles():
    for each in planned(SynthesisOptions()):
        low, high = (0, 0) if each.speaker.style == "typical" else (0.6, 1)
        assert low <= each.speaker.severity <= high


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"styles": "typical,dysarthria"}, "styles='typical,dysarthria': must be one or more of typical, parkinsons"),
        ({"styles": ""}, "styles=''"),
        ({"styles": "als,als"}, "each once"),
        ({"alignments": True}, "only styles=typical keeps espeak's times"),
        ({"styles": "als", "n_reserved_speakers": 1}, "styles must name typical"),
        ({"synthetic_language": "fr"}, "must be one of en, ko, ne"),
        ({"n_train_speakers": 0}, "n_train_speakers=0: must be at least 1"),
        ({"seen_share": 1.5}, "must be at most 1"),
        ({"synthetic_max_s": 0.0}, "must be above 0"),
    ],
)
def test_bad_options_are_named(fault, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        SynthesisOptions(**fault)


# ---------------------------------------------------------------- corpus


def test_the_manifest_tells_the_truth_about_its_files(toy):
    _, folder, summary, manifest = toy
    n_expected = 6 * (2 * 2 + 1 + 2) + 2
    assert len(manifest) == summary.n_utterances == n_expected == len(list((folder / "audio").iterdir()))
    assert manifest["utterance_id"].is_monotonic_increasing and manifest["utterance_id"].is_unique
    assert manifest["synthetic"].all() and set(manifest["etiology"]) == set(STYLES)
    for row in manifest.itertuples():
        info = soundfile.info(folder / row.path)
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
        assert abs(info.duration - row.duration_s) < 1e-4 and row.duration_s <= 4


def test_seen_sentences_are_measured_and_make_the_asked_share(toy):
    _, _, _, manifest = toy
    train = set(manifest.loc[manifest["split"] == "train", "transcript"])
    assert (manifest["sentence_seen"] == manifest["transcript"].isin(train)).all()
    test = manifest[(manifest["split"] == "test")]
    assert test["sentence_seen"].mean() == 0.5


def test_the_source_is_labelled_synthetic_and_says_what_made_it(toy):
    options, folder, summary, _ = toy
    source = read_json(folder / "SOURCE.json")
    assert source["kind"] == "synthetic" and "not clinical models" in source["note"]
    assert source["options"]["seed"] == str(options.seed) and "n_workers" not in source["options"]
    assert source["made"]["digest"] == summary.digest and source["versions"]["espeakng-loader"]


def test_a_rendering_that_is_too_long_is_drawn_again_and_counted(tmp_path):
    options = SynthesisOptions(**TOY | {"styles": "typical", "n_utterances": 12, "synthetic_max_s": 1.9, "seed": 3})
    summary = synthesize(options, tmp_path / "corpus")
    manifest = pd.read_csv(tmp_path / "corpus" / "manifest.csv")
    assert summary.n_redrawn > 0 and len(manifest) == 2 * 12 + 1 + 2 and manifest["duration_s"].max() <= 1.9


def test_a_slow_speaker_says_one_of_the_shortest_sentences_where_no_other_is_short_enough():
    """The Korean demo's slowest speaker: without them, none of ten renderings of one utterance was within the base's 4 s."""
    plans = {each.speaker.name: each for each in plan(SynthesisOptions(synthetic_language="ko", styles="cp"))}
    slow = plans["cp_test_004"]
    _, rendering, n_redrawn = _short_enough(slow, 19, 4.0)
    assert rendering.duration_s <= 4.0 and n_redrawn == (1 + N_ALTERNATIVES) * N_TAKES
    begins = [row[1 + N_ALTERNATIVES] for row in slow.candidates[8:]]
    assert all(len(row) == 1 + N_ALTERNATIVES + N_SHORT for row in slow.candidates) and len(set(begins)) == N_SHORT


def test_an_impossible_duration_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"synthetic_max_s=0.3: \d+ renderings of utterance 0 by typical_dev_000"):
        synthesize(SynthesisOptions(**TOY | {"styles": "typical", "synthetic_max_s": 0.3}), tmp_path / "corpus")
    assert not list(tmp_path.iterdir())


def test_alignments_hold_each_utterance_and_progress_is_told(tmp_path):
    told = []
    options = SynthesisOptions(**TOY | {"styles": "typical"}, alignments=True)
    synthesize(options, tmp_path / "corpus", lambda n_done, n_total: told.append((n_done, n_total)))
    manifest = pd.read_csv(tmp_path / "corpus" / "manifest.csv")
    table = pd.read_parquet(tmp_path / "corpus" / "alignments.parquet")
    assert list(table["utterance_id"]) == list(manifest["utterance_id"])
    for row, duration_s in zip(table.itertuples(), manifest["duration_s"], strict=True):
        assert len(row.starts) == len(row.phonemes) > 5 and row.starts[-1] <= duration_s * SAMPLE_RATE
    assert told[-1] == (7, 7) and sorted(told) == told


# ---------------------------------------------------------------- styles


@pytest.mark.parametrize(
    ("phonemes", "substitutions", "reduce_clusters", "expected"),
    [
        ("pl'i:z br'IN", WEAK_CLOSURES, False, "fl'i:z vr'IN"),
        ("tS'eI@ dZ'ak", WEAK_CLOSURES, False, "S'eI@ Z'ah"),
        ("s'Of h'aU", STOPPING, False, "t'Op 'aU"),
        ("gr'i:n k'i:", FRONTING_AND_GLIDING, False, "dw'i:n t'i:"),
        ("gr'i:n st'oUn bl'u:", FRONTING_AND_GLIDING, True, "d'i:n t'oUn b'u:"),
        ("b'Vt#3", {}, False, "b'Vt3"),
    ],
)
def test_misarticulation_by_hand(phonemes, substitutions, reduce_clusters, expected):
    assert misarticulate(phonemes, substitutions, 1.0, np.random.default_rng(0), reduce_clusters) == expected


def test_misarticulation_with_probability_zero_changes_nothing():
    assert misarticulate("pl'i:z br'IN", WEAK_CLOSURES, 0.0, np.random.default_rng(0), True) == "pl'i:z br'IN"


def test_parkinsons_is_faster_and_quieter_and_als_slower_than_typical():
    def average(style):
        renderings = [render(speaker_of(style, key=k), "the doctor cleaned the table", 0) for k in range(6)]
        return [
            np.mean([each.duration_s for each in renderings]),
            np.mean([np.sqrt(np.mean(each.samples**2)) for each in renderings]),
        ]

    typical, parkinsons, als = map(average, ("typical", "parkinsons", "als"))
    assert parkinsons[0] < 0.85 * typical[0] and parkinsons[1] < 0.7 * typical[1]
    assert als[0] > 1.15 * typical[0]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000), positions=st.lists(st.integers(200, 15_000), min_size=1, max_size=6, unique_by=lambda p: p // 1500)
)
def test_blocks_that_change_time_take_the_word_starts_along(seed, positions):
    """A click at each word start is still at the word start afterwards."""
    starts = np.array(sorted(positions))
    assume((np.diff(starts) > 100).all())  # clicks that touch hide each other
    samples = np.zeros(16_000, np.float32)
    for number, start in enumerate(starts):
        samples[start : start + 40] = number + 1
    speech, rng = Speech(samples, starts), np.random.default_rng(seed)
    blocks = (
        lambda: effects.vary_speed(speech, rng, 200, 0.7, 1.3),
        lambda: effects.pause(speech, rng, 0.8, 0.05, 0.1),
        lambda: effects.repeat_onsets(speech, rng, 0.8, (0.05, 0.09)),
    )
    for block in blocks:
        changed = block()
        heard = [changed.samples[start + 2 : start + 12].max() for start in changed.word_starts]
        np.testing.assert_allclose(heard, np.arange(len(starts)) + 1, rtol=0.01)


@pytest.mark.parametrize("style", STYLES)
def test_no_style_changes_its_input(style):
    speech = Speech(np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1, np.array([100, 5000, 9000]))
    samples, starts = speech.samples.copy(), speech.word_starts.copy()
    STYLES[style].signal(speech, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(speech.samples, samples)
    np.testing.assert_array_equal(speech.word_starts, starts)


# ---------------------------------------------------------------- step


def test_the_step_logs_a_labelled_corpus_with_pictures_and_examples(store):
    from steps import synthesize as step
    from steps.tracking import artifacts
    from steps.tracking.store import connect

    run_id = step.run(step.StepOptions(**TOY | {"styles": "typical,als", "n_utterances": 1}))
    corpus = artifacts.upstream(run_id, artifacts.CORPUS)
    manifest = pd.read_csv(corpus / "manifest.csv")
    assert all((corpus / path).is_file() for path in manifest["path"])
    for artifact in (
        "plots/styles.png",
        "plots/durations.png",
        "plots/amounts.png",
        "tables/statistics.json",
        "examples/synthetic_als.wav",
    ):
        assert artifacts.upstream(run_id, artifact).stat().st_size > 300
    run = connect().client.get_run(run_id)
    assert "SYNTHETIC" in run.data.tags["mlflow.note.content"] and run.data.metrics["n_utterances"] == len(manifest)


# ---------------------------------------------------------------- own ways


def test_own_ways_are_test_speakers_of_every_pair_of_atypical_styles():
    options = SynthesisOptions(**TOY, own_ways=True, n_own_ways_speakers=2)
    crossed = [each for each in planned(options) if each.speaker.articulation]
    pairs = {(each.speaker.articulation, each.speaker.style) for each in crossed}
    atypical = [name for name in STYLES if name != "typical"]
    assert pairs == {(a, b) for a in atypical for b in atypical if a != b} and len(crossed) == 2 * 20
    assert {each.split for each in crossed} == {"test"} and {each.speaker.etiology for each in crossed} == {"own_ways"}
    others = [each for each in planned(options) if not each.speaker.articulation]
    assert others == planned(SynthesisOptions(**TOY)), "the cohort changes nobody else"


def test_own_ways_have_the_consonants_of_one_style_and_the_voice_of_another():
    own, articulated = speaker_of("down"), dataclasses.replace(speaker_of("down"), articulation="parkinsons")
    silent = dataclasses.replace(own, articulation_strength=0.0)
    said = {name: render(each, "take the key to the desk").phonemes for name, each in
            {"own": own, "articulated": articulated, "silent": silent}.items()}  # fmt: skip
    assert said["articulated"] != said["own"] != said["silent"]
    assert len({said["articulated"], said["own"], said["silent"]}) == 3


def test_crossed_styles_need_two():
    with pytest.raises(ValueError, match="own_ways=true: styles must name two atypical ones"):
        SynthesisOptions(styles="typical,als", own_ways=True)
    with pytest.raises(ValueError, match="n_own_ways_speakers=2: needs own_ways=true"):
        SynthesisOptions(n_own_ways_speakers=2)
    with pytest.raises(ValueError, match="styles='typical,als,cheerful': must be one or more of"):
        SynthesisOptions(styles="typical,als,cheerful", own_ways=True)
    with pytest.raises(ValueError, match="articulation_strength=0.2: no style of styles=typical replaces consonants"):
        SynthesisOptions(styles="typical", articulation_strength=0.2)


# ---------------------------------------------------------------- enrolment


def test_what_people_enrol_with_is_a_corpus_of_its_own_of_other_sentences(tmp_path):
    """The audio of all is that of a corpus in which all of it is tested on; only where it lies differs."""
    toy = TOY | {"styles": "typical,als", "seen_share": 0.0}
    synthesize(SynthesisOptions(**toy, n_enrolment_utterances=3), tmp_path / "apart")
    synthesize(SynthesisOptions(**toy | {"n_test_utterances": 5}), tmp_path / "together")
    main, together = (pd.read_csv(tmp_path / name / "manifest.csv") for name in ("apart", "together"))
    enrolment = pd.read_csv(tmp_path / "apart" / ENROLMENT / "manifest.csv")
    tests = main[main["split"] == "test"]
    assert "split" not in enrolment and set(enrolment["speaker"]) == set(tests["speaker"])
    for name, part in enrolment.groupby("speaker"):
        assert not set(part["transcript"]) & set(tests.loc[tests["speaker"] == name, "transcript"])
        assert (tests["speaker"] == name).sum() == 2 and len(part) == 3
    for row in together.itertuples():
        root = tmp_path / "apart" if row.utterance_id in set(main["utterance_id"]) else tmp_path / "apart" / ENROLMENT
        assert (root / row.path).read_bytes() == (tmp_path / "together" / row.path).read_bytes()
    with pytest.raises(ValueError, match="n_enrolment_utterances=3: only format=folder"):
        SynthesisOptions(**TOY, n_enrolment_utterances=3, format="webdataset")
