"""Who says what: the speakers of a synthetic corpus with their splits, and for each utterance its candidate sentences.

Each speaker's plan is drawn from its own key. Train sentences are never held-out ones; of the dev and test sentences a share is
taken from what is said in train (seen), the rest from the held-out part of the grammar (unseen). Where the grammar keeps words for
test, a further share of the test sentences has one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import permutations

from moe.options import Options, listed, option
from moe.synthesis.grammar import Grammar, grammars, is_held_out
from moe.synthesis.styles import STYLES
from moe.synthesis.voices import ARTICULATION_STRENGTH, RESERVED_VARIANTS, VARIANTS, Speaker, keyed_generator, make_speaker

FOLDER, WEBDATASET = "folder", "webdataset"
FORMATS = (FOLDER, WEBDATASET)
N_ALTERNATIVES = 4  # sentences an utterance may fall back on when the first is too long for the model
N_SHORT, N_POOL = 8, 24  # and then on the shortest so many out of so many: a slow speaker says no other in time


@dataclasses.dataclass(frozen=True)
class SynthesisOptions(Options):
    """Make the synthetic corpus: typical speech and simulated atypical styles, spoken by espeak-ng."""

    group = "synthesize"

    seed: int = option(42, "seed of everything drawn", low=0, common=True)
    synthetic_language: str = option("en", "language of the sentences and voices", choices=("en", "ko", "ne"))
    styles: str = option(",".join(STYLES), f"comma list of styles out of {', '.join(STYLES)}")
    n_train_speakers: int = option(10, "train speakers of each style", low=1)
    n_dev_speakers: int = option(3, "dev speakers of each style", low=0)
    n_test_speakers: int = option(5, "test speakers of each style", low=0)
    n_reserved_speakers: int = option(0, "further typical test speakers, with voice variants that no other speaker has", low=0)
    own_ways: bool = option(
        False,
        "further test speakers with the articulation of one atypical style and the voice and rhythm of another, of each pair",
    )
    n_own_ways_speakers: int = option(1, "such speakers of each pair; five styles have 20 pairs", low=1)
    n_utterances: int = option(30, "utterances of each train speaker", low=1)
    n_dev_utterances: int = option(10, "utterances of each dev speaker", low=1)
    n_test_utterances: int = option(20, "utterances of each test speaker", low=1)
    n_enrolment_utterances: int = option(
        0,
        "further utterances of each test speaker, of other sentences, in the folder `enrolment`: a corpus for personalise",
        low=0,
    )
    seen_share: float = option(0.4, "share of the dev and test utterances whose sentence is also said in train", low=0, high=1)
    test_words_share: float = option(
        0.3, "share of the test utterances with a word that no train or dev utterance has", low=0, high=1
    )
    synthetic_max_s: float = option(4.0, "longest utterance; a longer rendering is drawn again", above=0)
    articulation_strength: float = option(
        ARTICULATION_STRENGTH, "share of a style's consonants that are replaced at severity 1", low=0, high=1
    )
    format: str = option(
        FOLDER,
        "how it lies on disk: a folder of recordings, or shards by split and domain (train, train_normal, …)",
        choices=FORMATS,
    )
    alignments: bool = option(False, "write when each phoneme starts (typical speech only)")
    purpose: str = option("experiment", "corpora of different purposes share no speaker", choices=("experiment", "pretraining"))
    n_workers: int = option(0, "processes that render or decode (0: one per core)", low=0)

    def faults(self) -> list[str]:
        """Unknown or repeated styles, alignments of altered speech, reserved speakers without typical speech."""
        names, found = self.style_names, []
        if not names or set(names) - set(STYLES) or len(set(names)) < len(names):
            found.append(f"styles={self.styles!r}: must be one or more of {', '.join(STYLES)}, each once")
        if self.alignments and self.format != FOLDER:
            found.append(f"alignments=true with format={self.format}: only format={FOLDER} keeps them")
        if self.alignments and set(names) != {"typical"}:
            found.append(f"alignments=true with styles={self.styles!r}: only styles=typical keeps espeak's times")
        if self.n_enrolment_utterances and self.format != FOLDER:
            found.append(f"n_enrolment_utterances={self.n_enrolment_utterances}: only format={FOLDER} keeps them apart")
        if self.n_reserved_speakers and "typical" not in names:
            found.append(f"n_reserved_speakers={self.n_reserved_speakers}: styles must name typical, not only {self.styles!r}")
        if self.own_ways and not self.own_ways_pairs:
            found.append(f"own_ways=true: styles must name two atypical ones to be crossed, not only {self.styles!r}")
        if self.keeps_words and self.seen_share + self.test_words_share > 1:
            found.append(
                f"seen_share={self.seen_share:g} and test_words_share={self.test_words_share:g}: must not exceed 1 together"
            )
        return found

    def idle(self) -> dict[str, str]:
        """A number of speakers that nobody asked for, shares of consonants and words that styles and grammar do not have."""
        found = {} if self.own_ways else {"n_own_ways_speakers": "needs own_ways=true"}
        if not self.misarticulated:
            found["articulation_strength"] = f"no style of styles={self.styles} replaces consonants"
        if not self.keeps_words:
            found["test_words_share"] = f"the grammar of synthetic_language={self.synthetic_language} keeps no words for test"
        return found

    @property
    def own_ways_pairs(self) -> list[tuple[str, str]]:
        """Every pair of atypical styles: whose articulation, and whose voice and rhythm."""
        return list(permutations(self.misarticulated, 2)) if self.own_ways else []

    @property
    def misarticulated(self) -> list[str]:
        """The styles that replace consonants."""
        return [name for name in self.style_names if name in STYLES and STYLES[name].substitutions]

    @property
    def keeps_words(self) -> bool:
        """Whether the grammar keeps words for the test split."""
        return bool(grammars()[self.synthetic_language].test_words)

    @property
    def style_names(self) -> tuple[str, ...]:
        """The styles asked for."""
        return tuple(listed(self.styles))


@dataclasses.dataclass(frozen=True)
class SpeakerPlan:
    """A speaker, its split, and for each of its utterances the sentences to try in turn."""

    speaker: Speaker
    split: str
    is_reserved_voice: bool
    candidates: tuple[tuple[str, ...], ...]


def plan(options: SynthesisOptions) -> list[SpeakerPlan]:
    """All speakers of the corpus with their sentences, sorted by name.

    Raises:
        ValueError: the grammar has too few sentences.
    """
    grammar = grammars()[options.synthetic_language]
    train = [_train_plan(options, grammar, style, k) for style in options.style_names for k in range(options.n_train_speakers)]
    said = sorted({row[0] for each in train for row in each.candidates})
    sizes = {"dev": options.n_dev_speakers, "test": options.n_test_speakers}
    held_out = [
        _held_out_plan(options, grammar, said, style, split, k)
        for style in options.style_names
        for split, n_speakers in sizes.items()
        for k in range(n_speakers)
    ]
    reserved = [_held_out_plan(options, grammar, said, "typical", "reserved", k) for k in range(options.n_reserved_speakers)]
    crossed = [
        _crossed_plan(options, grammar, said, articulation, voice, k)
        for articulation, voice in options.own_ways_pairs
        for k in range(options.n_own_ways_speakers)
    ]
    return sorted(train + held_out + reserved + crossed, key=lambda each: each.speaker.name)


def _train_plan(options: SynthesisOptions, grammar: Grammar, style: str, k: int) -> SpeakerPlan:
    key = (options.purpose, options.synthetic_language, options.seed, style, "train", k)
    candidates = _drawn(
        grammar, key, options.n_utterances, lambda text: not is_held_out(text) and not grammar.has_test_word(text)
    )
    return SpeakerPlan(_speaker(options, grammar, style, "train", k, key), "train", False, candidates)


def _held_out_plan(options: SynthesisOptions, grammar: Grammar, said: list[str], style: str, group: str, k: int) -> SpeakerPlan:
    key = (options.purpose, options.synthetic_language, options.seed, style, group, k)
    n_utterances = options.n_dev_utterances if group == "dev" else options.n_test_utterances + options.n_enrolment_utterances
    n_seen = round(options.seen_share * n_utterances)
    n_with_word = round(options.test_words_share * n_utterances) if options.keeps_words and group != "dev" else 0
    candidates = _picked(said, key, n_seen)
    candidates += _drawn(
        grammar, key, n_utterances - n_seen - n_with_word, lambda text: is_held_out(text) and not grammar.has_test_word(text)
    )
    candidates += _drawn(grammar, (*key, "test words"), n_with_word, grammar.has_test_word)
    speaker = _speaker(options, grammar, style, group, k, key)
    return SpeakerPlan(speaker, "dev" if group == "dev" else "test", group == "reserved", candidates)


def _crossed_plan(
    options: SynthesisOptions, grammar: Grammar, said: list[str], articulation: str, voice: str, k: int
) -> SpeakerPlan:
    """A test speaker in the voice and rhythm of one style, with the articulation of another."""
    own = _held_out_plan(options, grammar, said, voice, f"own_ways_{articulation}", k)
    return dataclasses.replace(own, speaker=dataclasses.replace(own.speaker, articulation=articulation))


def _speaker(options: SynthesisOptions, grammar: Grammar, style: str, group: str, k: int, key: tuple) -> Speaker:
    prefix = "pre_" if options.purpose == "pretraining" else ""
    variants = RESERVED_VARIANTS if group == "reserved" else VARIANTS
    speaker = make_speaker(f"{prefix}{style}_{group}_{k:03d}", style, key, grammar.accents, variants)
    return dataclasses.replace(speaker, articulation_strength=options.articulation_strength)


def _drawn(grammar: Grammar, key: tuple, n: int, accept: Callable[[str], bool]) -> tuple[tuple[str, ...], ...]:
    """`n` distinct first choices from the grammar, each with alternatives."""
    first = grammar.distinct(keyed_generator("sentences", *key), n, accept)
    rng = keyed_generator("alternatives", *key)
    rows = [(sentence, *grammar.distinct(rng, N_ALTERNATIVES, accept)) for sentence in first]
    return _with_short(rows, grammar.distinct(keyed_generator("short", *key), N_POOL, accept) if rows else [])


def _picked(said: list[str], key: tuple, n: int) -> tuple[tuple[str, ...], ...]:
    """`n` first choices out of `said`, distinct while it lasts, each with alternatives."""
    rng = keyed_generator("seen", *key)
    first = rng.choice(len(said), n, replace=len(said) < n)
    rows = [(said[i], *(said[j] for j in rng.integers(len(said), size=N_ALTERNATIVES))) for i in first]
    return _with_short(rows, [said[j] for j in keyed_generator("short", *key).integers(len(said), size=N_POOL)])


def _with_short(rows: Sequence[tuple[str, ...]], pool: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The rows, each with the shortest sentences of a pool at its end, which begin with another one in each row."""
    short = sorted(dict.fromkeys(pool), key=lambda text: (len(text), text))[:N_SHORT]
    return tuple((*row, *short[number % len(short) :], *short[: number % len(short)]) for number, row in enumerate(rows))
