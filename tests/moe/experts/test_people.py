"""People above a finished recogniser: what one has is nobody else's, in training, in a batch and on disk; sums by hand and PEFT agree."""

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers.modeling_outputs import BaseModelOutput

from moe.audio.augmentation import AugmentationOptions
from moe.experts.people import training
from moe.experts.people.folders import OtherRecogniser, PersonRecord, load_person, read_person_record, save_person
from moe.experts.people.options import AS_IT_IS, PersonOptions
from moe.experts.people.parts import FEWEST_CHOSEN, FEWEST_HELD_BACK, FEWEST_LEARNT, divide, too_few
from moe.experts.people.person import SCALE, Layer, Layout, Person, name_faults
from moe.experts.people.training import Enrolment, Learnt, Recordings, learn_people
from moe.recognition.decoding import decode
from moe.system import DecodingOptions
from moe.systems.whisper.encoder import encode
from moe.systems.whisper_moe.decoding import decoder_prompt, scored, searched
from moe.systems.whisper_moe.system import WhisperSystem
from moe.training.batches import collate
from moe.training.dataset import SpeechDataset
from tests.toys.models import N_EXPERTS, WORDS, bare_model, system_of, toy_mixture, write_corpus

TARGETS, R = ("q_proj", "v_proj"), 3
DECODING = DecodingOptions(max_tokens_per_s=6.0)
KINDS = pytest.mark.parametrize("n_experts", [0, N_EXPERTS])


INPUTS = SimpleNamespace(window_s=None)


def toy(n_experts: int) -> WhisperSystem:
    return system_of(toy_mixture(n_experts))


def awake(layout, seed: int, name: str = "x") -> Person:
    """Somebody whose expert says something."""
    vector = layout.new(seed, name)
    torch.manual_seed(seed)
    return Person(name, layout, vector + 0.2 * torch.randn_like(vector))


def weighted(seed: int, n_experts: int) -> Person:
    return Person("w", weights=torch.from_numpy(np.random.default_rng(seed).normal(0, 1, n_experts).astype(np.float32)))


@pytest.fixture
def data(tmp_path: Path) -> tuple[pd.DataFrame, Path]:
    (tmp_path / "audio").mkdir()
    return write_corpus(tmp_path / "audio"), tmp_path / "audio"


def batch_of(system: WhisperSystem, data: tuple[pd.DataFrame, Path], n: int = 6) -> dict:
    rows, root = data
    dataset = SpeechDataset(rows.iloc[:n], root, system.inputs)
    return collate(dataset, [dataset[index] for index in range(n)])


@KINDS
@torch.no_grad()
def test_a_new_expert_changes_no_bit(tmp_path: Path, data, n_experts: int) -> None:
    system = toy(n_experts)
    batch = batch_of(system, data)
    before = system.person_losses(batch, [None] * 6)
    hypotheses = system.decode(batch, DECODING, system.ask_type())
    layout = system.layout(TARGETS, R)
    person = Person("new", layout, layout.new(7, "new"))
    assert torch.equal(system.person_losses(batch, [None] * 6), before)
    assert torch.equal(system.person_losses(batch, [person] * 6), before)
    system.people = [person]
    again = system.decode(batch | {"person": torch.zeros(6, dtype=torch.long)}, DECODING, system.ask_type())
    assert [each.text for each in again] == [each.text for each in hypotheses]
    assert [each.mean_logprob for each in again] == [each.mean_logprob for each in hypotheses]


@KINDS
@torch.no_grad()
def test_who_has_nothing_of_their_own_keeps_every_bit_beside_those_who_have(tmp_path: Path, data, n_experts: int) -> None:
    system = toy(n_experts)
    batch = batch_of(system, data)
    alone = system.person_losses(batch, [None] * 6)
    states = system.model.encode(system.model.route(batch["mel"], batch["n_frames"])).states
    texts = system.decode(batch, DECODING, system.ask_type())
    layout, other = system.layout(TARGETS, R), system.layout(("fc1",), 2)
    somebody = [awake(layout, 1, "a"), awake(other, 2, "b"), awake(layout, 3, "c")]
    if n_experts:
        somebody.append(weighted(4, n_experts))
        somebody.append(dataclasses.replace(somebody[0], name="e", weights=weighted(5, n_experts).weights))
    system.people = somebody
    numbers = torch.tensor([-1, 0, 1, -1, len(somebody) - 1, -1])
    people = [somebody[number] if number >= 0 else None for number in numbers.tolist()]
    beside = system.person_losses(batch, people)
    nobody = (numbers < 0).nonzero().flatten()
    assert torch.equal(beside[nobody], alone[nobody]) and not torch.isclose(beside, alone, atol=1e-5)[numbers >= 0].any()
    routed = dataclasses.replace(system.model.route(batch["mel"], batch["n_frames"]), people=people)
    assert torch.equal(system.model.encode(routed).states[nobody], states[nobody])
    again = system.decode(batch | {"person": numbers}, DECODING, system.ask_type())
    for index in nobody.tolist():
        assert (again[index].text, again[index].mean_logprob) == (texts[index].text, texts[index].mean_logprob)


@torch.no_grad()
def test_who_has_something_of_their_own_is_never_backed_off(tmp_path: Path, data) -> None:
    """Their expert was trained above the mixture; others of the batch back off as without them."""
    system = toy(N_EXPERTS)
    layout = system.layout(TARGETS, R)
    system.people = [weighted(1, N_EXPERTS), awake(layout, 2, "a")]
    batch, numbers = batch_of(system, data), torch.tensor([0, 1, -1, -1, -1, -1])
    own, found = (
        system.decode(batch | {"person": numbers}, DECODING, system.ask_type(backoff=backoff)) for backoff in (0.0, 1.0)
    )
    nobody = system.decode(batch, DECODING, system.ask_type(backoff=1.0))
    assert [each.text for each in found] == [*(each.text for each in own[:2]), *(each.text for each in nobody[2:])]
    off = [each.details["backed_off"] for each in found]
    assert off[:2] == [0.0, 0.0] and off[2:] == [each.details["backed_off"] for each in nobody[2:]] and any(off)


def test_one_layer_is_w_plus_s_times_ba_by_hand(tmp_path: Path) -> None:
    system = toy(0)
    layout = system.layout(("q_proj",), R)
    person = awake(layout, 1)
    name = layout.layers[0].name
    layer = system.model.base.get_submodule(name)
    a, b = (matrix[0] for matrix in layout.matrices(person.expert[None])[name])
    x = torch.randn(3, 5, layout.layers[0].n_in)
    inner = layer.inner
    merged = inner.base_layer.weight + inner.shared_scaling * inner.shared_B @ inner.shared_A + SCALE * b @ a
    with torch.no_grad(), system.model.experts(None, [person] * 3):
        found = layer(x)
    expected = x @ merged.T + (0 if inner.bias is None else inner.bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_own_weights_stand_in_for_the_gates(tmp_path: Path, data, beams: int) -> None:
    """Also negative ones, also for the rows of a beam search: the mixture that is given these weights is the oracle."""
    system = toy(N_EXPERTS)
    system.layout(TARGETS, R)
    batch = batch_of(system, data, 3)
    people = [weighted(seed, N_EXPERTS) for seed in range(3)]
    own = torch.stack([person.weights for person in people])
    routed = system.model.route(batch["mel"], batch["n_frames"])
    given = dataclasses.replace(routed, weights=dataclasses.replace(routed.weights, weights=own, top_k=N_EXPERTS))
    found = system.model.encode(dataclasses.replace(routed, people=people))
    expected = system.model.encode(given)
    torch.testing.assert_close(found.states, expected.states, atol=1e-4, rtol=1e-4)
    texts = [system.model.search(each, num_beams=beams, max_length=8) for each in (found, expected)]
    assert torch.equal(*texts)


@KINDS
@pytest.mark.parametrize("beams", [1, 3])
def test_a_search_writes_under_the_experts_of_the_decoder_too(data, n_experts: int, beams: int) -> None:
    """A second pass of transformers' decoder is the oracle; only layers of the decoder are people's own, so the encoder cannot stand in."""
    system = toy(n_experts)
    layout = system.layout(("decoder.layers.0.self_attn.q_proj", "decoder.layers.0.fc1"), R)
    people: list[Person | None] = [awake(layout, 1, "a"), None, awake(layout, 2, "b"), awake(layout, 3, "c")]
    batch, tokenizer = batch_of(system, data, 4), system.inputs.processor.tokenizer
    routed = system.model.route(batch["mel"], batch["n_frames"])
    encoded = system.model.encode(dataclasses.replace(routed, people=people))
    tokens, means, _ = searched(system.model, tokenizer, encoded, beams, 12)
    expected, _ = scored(system.model, encoded, decoder_prompt(system.model, tokenizer), tokens, 12).means(tokenizer.eos_token_id)
    assert means == pytest.approx(expected, abs=1e-4)
    _, of_nobody, _ = searched(system.model, tokenizer, system.model.encode(routed), beams, 12)
    assert [abs(a - b) > 1e-4 for a, b in zip(means, of_nobody, strict=True)] == [True, False, True, True]


def test_peft_reads_an_expert_above_a_merged_recogniser(tmp_path: Path, data) -> None:
    system = toy(0)
    layout = system.layout(TARGETS, R)
    person = awake(layout, 1, "ann")
    save_person(tmp_path / "ann", person, PersonRecord("ann", "d", "expert", TARGETS, R, (3, 2, 5)))
    batch = batch_of(system, data, 1)
    merged = bare_model().eval()
    for layer in layout.layers:
        inner = system.model.base.get_submodule(layer.name).inner
        merged.get_submodule(layer.name).weight.data += inner.shared_scaling * inner.shared_B.data @ inner.shared_A.data
    peft = PeftModel.from_pretrained(merged, str(tmp_path / "ann" / "expert")).eval()
    states = system.model.encode(dataclasses.replace(system.model.route(batch["mel"], batch["n_frames"]), people=[person]))
    inputs = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        theirs_states = encode(peft.get_base_model().model.encoder, batch["mel"])
        torch.testing.assert_close(theirs_states, states.states, atol=1e-4, rtol=1e-4)
        theirs = peft.get_base_model()(encoder_outputs=BaseModelOutput(theirs_states), decoder_input_ids=inputs).logits
        with system.model.experts(None, [person]):
            ours = system.model.base(
                encoder_outputs=BaseModelOutput(states.states), decoder_input_ids=inputs, use_cache=False
            ).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_person_is_read_as_they_were_written_and_only_above_their_recogniser(tmp_path: Path) -> None:
    system = toy(N_EXPERTS)
    layout = system.layout(TARGETS, R)
    person = dataclasses.replace(awake(layout, 1, "ann"), weights=weighted(2, N_EXPERTS).weights)
    record = PersonRecord("ann", "digest", "both", TARGETS, R, (3, 2, 5), {"wer": 0.5})
    save_person(tmp_path / "ann", person, record)
    again = load_person(tmp_path / "ann", layout, "digest")
    assert read_person_record(tmp_path / "ann") == record
    assert torch.equal(again.expert, person.expert) and torch.equal(again.weights, person.weights)
    with pytest.raises(OtherRecogniser, match="ann was enrolled with another recogniser"):
        load_person(tmp_path / "ann", layout, "another")
    with pytest.raises(ValueError, match="does not fit"):
        load_person(tmp_path / "ann", system.layout(TARGETS, R + 1), "digest")
    with pytest.raises(ValueError, match="holds no person"):
        load_person(tmp_path, layout, "digest")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([f"sentence {n}" for n in range(25)]), min_size=1, max_size=40),
    st.floats(0.1, 0.4),
    st.floats(0.1, 0.4),
)
def test_no_sentence_is_in_two_parts_and_all_utterances_are_in_one(sentences, choose_share, held_back_share) -> None:
    parts = divide(sentences, choose_share, held_back_share)
    each = [{sentences[number] for number in part} for part in (parts.learn, parts.choose, parts.held_back)]
    assert sorted(np.concatenate([parts.learn, parts.choose, parts.held_back])) == list(range(len(sentences)))
    assert not (each[0] & each[1] or each[0] & each[2] or each[1] & each[2])
    enough = parts.counts[0] >= FEWEST_LEARNT and parts.counts[1] >= FEWEST_CHOSEN and parts.counts[2] >= FEWEST_HELD_BACK
    assert (too_few("ann", parts) is None) == enough


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=2, max_size=30), st.data())
def test_agreement_is_that_with_other_sentences_however_often_each_is_said(sentences: list[str], data: st.DataObject) -> None:
    """Where a loss is 1 under what was said and 2 under anything else, it is ½, also of one sentence that is said again and again."""
    assume(len(set(sentences)) > 1)
    said = data.draw(st.lists(st.sampled_from(sorted(set(sentences))), min_size=1, max_size=3))
    numbers = np.flatnonzero([sentence in said for sentence in sentences])
    ids = [f"u{number}" for number in range(len(sentences))]
    rows = pd.DataFrame({"utterance_id": ids, "duration_s": 1.0, "reference": sentences})
    true = dict(zip(ids, sentences, strict=True))

    def losses(system: object, given: SpeechDataset, people: object, asked: list[np.ndarray]) -> list[np.ndarray]:
        return [np.array([1.0 if given.rows[n]["reference"] == true[given.rows[n]["utterance_id"]] else 2.0 for n in asked[0]])]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "reference_losses", losses)
        assert training.agreement(None, SpeechDataset(rows, Path("nowhere"), INPUTS), numbers) == 0.5


def test_one_sentence_repeated_cannot_be_divided() -> None:
    said = too_few("ann", divide(["the same"] * 30, 0.2, 0.3))
    assert said is not None and "ann has 30 utterances: 0 to learn from, 0 to choose by and 30 held back" in said


@pytest.mark.parametrize(("name", "is_one"), [("ann", True), ("a_b-1", True), ("", False), ("a/b", False), ("x" * 65, False), ("Ann", False), ("..", False)])  # fmt: skip
def test_names_of_people_are_never_paths(name: str, is_one: bool) -> None:
    assert (name_faults([name]) == []) == is_one


def many(root: Path, n_people: int, n_each: int = 8) -> pd.DataFrame:
    """Utterances of several people, each their own words."""
    rows = write_corpus(root, tuple(0.5 + 0.1 * (number % 7) for number in range(n_people * n_each)))
    rows["speaker"] = [f"p{number // n_each}" for number in range(len(rows))]
    rows["reference"] = [" ".join(WORDS[(number + place) % 5] for place in range(1 + number % 3)) for number in range(len(rows))]
    return rows


def learn(system, rows: pd.DataFrame, root: Path, names: list[str], options: PersonOptions, n_learn: int = 5) -> list[Learnt]:
    recordings = Recordings(
        SpeechDataset(rows, root, system.inputs, AugmentationOptions(), 3), SpeechDataset(rows, root, system.inputs)
    )
    enrolments = []
    for name in names:
        numbers = np.flatnonzero(rows["speaker"] == name)
        parts = dataclasses.replace(divide([], 0.2, 0.3), learn=numbers[:n_learn], choose=numbers[n_learn:])
        enrolments.append(Enrolment(name, parts))
    return learn_people(system, recordings, enrolments, options, 42)


@pytest.mark.parametrize(
    ("learn", "name", "value"),
    [("weights", "person_r", 4), ("weights", "person_targets", "fc1"), ("weights", "person_learning_rate", 0.1),
     ("expert", "weights_learning_rate", 0.1)],
)  # fmt: skip
def test_what_another_way_of_learning_reads_is_refused(learn: str, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}: learn={learn} does not read it"):
        PersonOptions(learn=learn, **{name: value})
    assert getattr(PersonOptions(learn="both", **{name: value}), name) == value


OPTIONS = PersonOptions(person_r=R, person_passes=2, person_batch_size=3)


def test_a_person_alone_learns_what_they_learn_among_thirty(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    rows = many(tmp_path / "audio", 30, 5)
    system = toy(N_EXPERTS)
    together = learn(system, rows, tmp_path / "audio", [f"p{n}" for n in range(30)], OPTIONS, n_learn=3)
    for name, among in zip(("p0", "p17"), (together[0], together[17]), strict=True):
        (alone,) = learn(system, rows, tmp_path / "audio", [name], OPTIONS, n_learn=3)
        assert alone.kept == among.kept
        for way, person in alone.candidates.items():
            other = among.candidates[way]
            for ours, theirs in ((person.expert, other.expert), (person.weights, other.weights)):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_learning_changes_nothing_of_the_recogniser_and_repeats_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    rows = many(tmp_path / "audio", 2)
    system = toy(N_EXPERTS)
    before = copy.deepcopy({name: value for name, value in system.model.state_dict().items()})
    first = learn(system, rows, tmp_path / "audio", ["p0", "p1"], OPTIONS)
    again = learn(system, rows, tmp_path / "audio", ["p0", "p1"], OPTIONS)
    after = {name.replace(".inner", ""): value for name, value in system.model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for one, other in zip(first, again, strict=True):
        assert one.losses == other.losses
        for way in one.candidates:
            ours, theirs = one.candidates[way].expert, other.candidates[way].expert
            assert ours is theirs or torch.equal(ours, theirs)


def test_the_best_pass_is_kept_the_start_among_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is learnt from pulls p0 to a good place and p1 to a bad one, and the choosing part says so; too large a rate ruins both."""
    (tmp_path / "audio").mkdir()
    rows, system = many(tmp_path / "audio", 2), toy(0)
    layout = system.layout(TARGETS, R)

    def losses(batch: dict, people: list[Person]) -> torch.Tensor:
        found = []
        for person in people:
            start = layout.new(42, person.name)
            moved = (start if person.expert is None else person.expert) - start
            good = 0.01 if torch.is_grad_enabled() or person.name == "p0" else -0.01
            found.append((moved - good).square().sum())
        return torch.stack(found)

    monkeypatch.setattr(system, "person_losses", losses)
    good, bad = learn(system, rows, tmp_path / "audio", ["p0", "p1"], OPTIONS)
    assert (good.kept, bad.kept) == ("expert", AS_IT_IS) and bad.person.expert is None
    assert good.losses["expert"] < good.losses[AS_IT_IS] and bad.losses["expert"] == bad.losses[AS_IT_IS]
    ruined = learn(system, rows, tmp_path / "audio", ["p0", "p1"], dataclasses.replace(OPTIONS, person_learning_rate=1.0))
    assert [each.kept for each in ruined] == [AS_IT_IS, AS_IT_IS]


def test_what_is_held_back_is_in_no_gradient(tmp_path: Path) -> None:
    """Its audio replaced by noise changes no weight."""
    (tmp_path / "audio").mkdir()
    rows = many(tmp_path / "audio", 1, 12)
    rows["reference"] = [f"{WORDS[n % 5]} {WORDS[n // 5]}" for n in range(12)]
    system = toy(0)
    parts = divide(rows["reference"].tolist(), 0.2, 0.3)

    def learnt() -> Learnt:
        recordings = Recordings(
            SpeechDataset(rows, tmp_path / "audio", system.inputs), SpeechDataset(rows, tmp_path / "audio", system.inputs)
        )
        return learn_people(system, recordings, [Enrolment("p0", parts)], OPTIONS, 1)[0]

    first = learnt()
    for number in parts.held_back:
        path = tmp_path / "audio" / rows["audio"].iloc[number]
        soundfile.write(path, np.random.default_rng(1).normal(0, 0.3, soundfile.info(path).frames), 16_000, subtype="FLOAT")
    second = learnt()
    assert first.losses == second.losses and torch.equal(first.candidates["expert"].expert, second.candidates["expert"].expert)


def test_a_dataset_says_whose_its_utterances_are(tmp_path: Path, data) -> None:
    """Through the usual decoding, by the extra column `person`."""
    rows, root = data
    system = toy(N_EXPERTS)
    layout = system.layout(TARGETS, R)
    system.people = [awake(layout, 5, "ann")]
    plain = decode(system, SpeechDataset(rows, root, system.inputs), DECODING, with_loss=True)
    numbers = np.array([0, -1, 0, -1, 0, -1])
    own = decode(system, SpeechDataset(rows, root, system.inputs, extras={"person": numbers}), DECODING, with_loss=True)
    for number, before, after in zip(numbers, plain, own, strict=True):
        assert (before.utterance_loss == pytest.approx(after.utterance_loss, abs=1e-6)) == (number < 0)


def test_a_thousand_people_of_the_demo_take_at_most_160_mb() -> None:
    """36 864 numbers each: rank 8 in 16 layers of width 144."""
    layout = Layout(tuple(Layer(f"{number}", 144, 144) for number in range(16)), 8)
    assert layout.n_numbers == 36_864 and 1000 * layout.new(1, "ann").nbytes <= 160e6
