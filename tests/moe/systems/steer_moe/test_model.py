"""SteerMoE as a module: what learns, what stays, and that it writes the same alone and in company."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from moe.system import DecodingOptions, System
from moe.systems.steer_moe.audio_prompt import AudioPrompt, n_vectors, stride_of
from moe.systems.steer_moe.language_model import embed, generate
from moe.systems.steer_moe.model import SteeredWriter, SteerMoE
from moe.systems.steer_moe.options import AudioPromptOptions
from moe.systems.steer_moe.sequence import AUDIO, unpadded, with_prompts
from moe.systems.steer_moe.shapes import EncoderShape, encoder_shape
from moe.systems.steer_moe.steering import balance_loss, use_sums
from moe.systems.steer_moe.system import SteerSystem, load
from moe.training.batches import collate
from moe.training.dataset import SpeechDataset, refused
from tests.toys.models import partial_checkpoint, shared_base, write_corpus
from tests.toys.steer import N_UNITS, toy_steer

LEARNS = {
    "encoder.steering.vectors", "encoder.steering.scales", "encoder.steering.routers", "prompt.projector.weight", "prompt.projector.bias",
}  # fmt: skip


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> SteerSystem:
    return toy_steer(tmp_path_factory.mktemp("steer"))


@pytest.fixture(scope="module")
def data(system: System, tmp_path_factory: pytest.TempPathFactory) -> SpeechDataset:
    root = tmp_path_factory.mktemp("corpus")
    return SpeechDataset(write_corpus(root), root, system.inputs)


def batch_of(data: SpeechDataset, *indices: int) -> dict:
    return collate(data, [data[index] for index in indices])


def test_everything_that_learns_gets_a_gradient_and_nothing_else_changes(system: SteerSystem, data: SpeechDataset) -> None:
    before = {name: each.detach().clone() for name, each in system.module.named_parameters()}
    optimizer = torch.optim.SGD([each for each in system.module.parameters() if each.requires_grad], lr=1e-3)
    system.module.train()
    system.module(**batch_of(data, 0, 1))["loss"].backward()
    gradients = {name: each.grad for name, each in system.module.named_parameters() if each.grad is not None}
    assert set(gradients) == LEARNS == set(system.trained())
    for name in ("vectors", "scales", "routers"):  # of every layer and every expert
        rows = gradients[f"encoder.steering.{name}"].reshape(2, 3 if name != "scales" else 1, -1)
        assert bool((rows.abs().amax(-1) > 0).all()), name
    optimizer.step()
    changed = {name for name, each in system.module.named_parameters() if not torch.equal(each, before[name])}
    with torch.no_grad():
        for name, parameter in system.module.named_parameters():
            parameter.copy_(before[name])
    system.module.zero_grad()
    assert changed == LEARNS


@pytest.mark.parametrize("writer", ["llm", "whisper"])
def test_recomputing_activations_gives_the_same_gradients(tmp_path: Path, data: SpeechDataset, writer: str) -> None:
    found = []
    for checkpointing in (False, True):
        made = toy_steer(tmp_path / str(checkpointing), writer=writer)
        own = SpeechDataset(pd.DataFrame(data.rows), data.root, made.inputs)
        if checkpointing:
            made.module.enable_checkpointing()
        made.module.train()
        made.module(**batch_of(own, 0, 3))["loss"].backward()
        found.append(made.module.encoder.steering.vectors.grad)
    torch.testing.assert_close(*found)


def test_balance_is_asked_of_the_mean_use_in_the_training_loss(system: SteerSystem, data: SpeechDataset, tmp_path: Path) -> None:
    """The original had written the loss and never called it."""
    balanced, batch = toy_steer(tmp_path, balance=0.7), batch_of(data, 0, 3)
    with torch.no_grad():
        encoded, plain = system.module.encode(batch["mel"], batch["n_frames"]), system.module(**batch)["loss"]
        found = balanced.module(**batch)["loss"]
    torch.testing.assert_close(found, plain + 0.7 * balance_loss(use_sums(encoded.passes, encoded.valid)))
    assert found > plain


@pytest.mark.parametrize("writer", ["llm", "whisper"])
def test_in_training_nothing_that_is_frozen_drops_anything(tmp_path: Path, writer: str) -> None:
    module = toy_steer(tmp_path, writer=writer, steering_dropout=0.5).module.train()
    frozen = [*module.encoder.encoder.modules(), *module.writer.modules()]
    assert not any(each.training for each in frozen) and module.encoder.steering.dropout.training


def test_what_does_not_write_cannot_be_made(system: SteerSystem) -> None:
    class Silent(SteeredWriter):
        """Only encodes."""

    with pytest.raises(TypeError, match="abstract.*losses.*write"):
        Silent(system.module.encoder)


def test_an_audio_prompt_is_as_long_as_its_audio(system: SteerSystem, data: SpeechDataset) -> None:
    batch = batch_of(data, *range(len(data)))
    n_audio = [row.count(AUDIO) for row in unpadded(batch["opening"])]
    stride = system.module.prompt.stride
    assert n_audio == [math.ceil(math.ceil(n / 2) / stride) for n in batch["n_frames"].tolist()]
    assert n_vectors(torch.tensor([1, 2, 3, 8, 9]), 2).tolist() == [1, 1, 1, 2, 3]


def test_frames_are_pooled_among_the_valid_ones() -> None:
    states = torch.arange(6.0).view(1, 6, 1)  # of which mel frames 1 to 9, encoder frames 0 to 4, hold audio
    for pooling, wanted in (("mean", [0.5, 2.5, 4.0]), ("max", [1.0, 3.0, 4.0])):
        prompt = AudioPrompt(1, 1, 20.0, AudioPromptOptions(prompt_ms=40, prompt_pooling=pooling, projector="none"))
        assert prompt(states, torch.tensor([9])).flatten().tolist() == wanted


@pytest.mark.parametrize("decoder_width", [4, 64])
def test_the_first_vectors_are_as_large_as_the_language_models_embeddings(decoder_width: int) -> None:
    torch.manual_seed(0)
    prompt = AudioPrompt(64, decoder_width, 20.0, AudioPromptOptions(prompt_ms=20, projector="linear"), spread=0.05)
    states = torch.nn.functional.layer_norm(torch.randn(4, 200, 64), (64,))
    vectors = prompt(states, torch.full((4,), 400))
    assert math.isclose(float(vectors.detach().square().mean().sqrt()), 0.05, rel_tol=0.2)


def test_unequal_widths_need_a_projector_and_a_vector_whole_frames() -> None:
    with pytest.raises(ValueError, match="projector=none.*8 numbers.*reads 9.*projector=linear"):
        AudioPrompt(8, 9, 20.0, AudioPromptOptions(projector="none"))
    with pytest.raises(ValueError, match="prompt_ms=30: must be a multiple of 20"):
        AudioPrompt(8, 8, 20.0, AudioPromptOptions(prompt_ms=30))
    assert stride_of(80, 40.0) == 2 and stride_of(80, 20.0) == 4


def test_the_shape_of_a_partial_base_is_known_without_a_processor(tmp_path: Path) -> None:
    """Whisper's own feature extractor is then taken, whose encoder frames last 20 ms."""
    config = shared_base().model.config
    partial_checkpoint(tmp_path, "model.decoder.layers.1.fc1.weight")
    assert encoder_shape(str(tmp_path)) == EncoderShape(config.encoder_layers, config.d_model, 20.0)


@pytest.mark.parametrize("beams", [1, 3])
def test_left_padded_together_it_writes_what_it_writes_alone(system: SteerSystem, data: SpeechDataset, beams: int) -> None:
    options = DecodingOptions(beam_size=beams, max_tokens_per_s=4.0)
    together = system.decode(batch_of(data, 3, 5), options, system.ask_type())  # of one length bucket
    alone = [system.decode(batch_of(data, index), options, system.ask_type())[0] for index in (3, 5)]
    assert [each.text for each in together] == [each.text for each in alone]
    assert [each.mean_logprob for each in together] == pytest.approx([each.mean_logprob for each in alone], abs=1e-4)


@torch.no_grad()
def read_again(module: SteerMoE, opening: list[int], vectors: torch.Tensor, max_new_tokens: int) -> list[int]:
    """The most likely tokens after an opening; everything is read anew for each."""
    written: list[int] = []
    while len(written) < max_new_tokens and module.end not in written:
        read = embed(module.decoder, torch.tensor([[*opening, *written]]), vectors)
        written.append(int(module.decoder(inputs_embeds=read, use_cache=False).logits[0, -1, : module.n_text].argmax()))
    return [token for token in written if token != module.end]


def test_with_and_without_the_cache_it_writes_the_same_and_never_an_id_that_is_no_text(
    system: SteerSystem, data: SpeechDataset
) -> None:
    module, batch = system.module, batch_of(data, 1, 3)
    vectors = module.prompt(module.encode(batch["mel"], batch["n_frames"]).states, batch["n_frames"])
    openings = unpadded(batch["opening"])
    found = generate(module.decoder, openings, vectors, module.n_text, module.end, 12)
    own = vectors.split([row.count(AUDIO) for row in openings])
    assert found == [read_again(module, *each, 12) for each in zip(openings, own, strict=True)]
    assert max(map(max, found)) < module.n_text
    assert len(module.decoder.get_input_embeddings().weight) == module.n_text + N_UNITS
    some = sorted({token for row in found for token in row})[0]  # what it wrote counts as text no more
    assert all(token < some for row in generate(module.decoder, openings, vectors, some, 0, 12) for token in row)


def test_the_shortest_audio_and_the_empty_text_have_a_finite_loss(system: SteerSystem) -> None:
    example = system.inputs.example(np.zeros(1, np.float32), "")
    loss = system.module(**system.inputs.collate([example]))["loss"]
    assert example["opening"].count(AUDIO) == 1 and len(example["text"]) == 1 and bool(torch.isfinite(loss))


def test_what_is_too_long_is_refused_by_what_is_too_long(tmp_path: Path) -> None:
    made = toy_steer(tmp_path, max_text_tokens=2, max_sequence_tokens=40, max_prompt_tokens=20)
    assert made.inputs.refusal(3200, "") is None
    assert "max_text_tokens=2" in (made.inputs.refusal(3200, "oak elm fig ash yew") or "")
    assert "max_prompt_tokens=20" in (made.inputs.refusal(16000, "") or "")
    assert made.inputs.window_s == pytest.approx(0.8)


def test_lengths_beyond_the_language_models_positions_and_prompts_without_room_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_sequence_tokens=600: the language model has 512 positions"):
        toy_steer(tmp_path / "a", max_sequence_tokens=600)
    with pytest.raises(ValueError, match="textual_prompt: .*leaves no room for text"):
        toy_steer(tmp_path / "b", max_sequence_tokens=16, textual_prompt="a very long instruction indeed")


def test_the_base_itself_can_write_and_a_lora_can_stand_in_for_steering(tmp_path: Path, data: SpeechDataset) -> None:
    lora = {"steer_adapter": "lora", "lora_rank": 2}
    for number, changes in enumerate(({"writer": "whisper"}, lora, {"writer": "whisper", **lora})):
        made = toy_steer(tmp_path / str(number), **changes)
        own = SpeechDataset(pd.DataFrame(data.rows), data.root, made.inputs)
        batch = collate(own, [own[0]])
        made.module(**batch)["loss"].backward()
        assert ("lora" in {group.name for group in made.parameter_groups()}) == ("steer_adapter" in changes)
        assert all(each.grad is not None for each in made.trained().values())
        options = DecodingOptions(max_tokens_per_s=2.0)
        said = made.decode(batch, options, made.ask_type())
        made.save(tmp_path / f"saved{number}")
        assert [each.text for each in load(tmp_path / f"saved{number}").decode(batch, options, made.ask_type())] == [
            each.text for each in said
        ]


def test_an_utterance_may_have_a_textual_prompt_of_its_own(system: SteerSystem, data: SpeechDataset) -> None:
    rows = pd.DataFrame(data.rows)[:2].assign(prompt=["write:", None])
    own = SpeechDataset(rows, data.root, system.inputs, extras=system.from_manifest(rows))
    batch, usual = collate(own, [own[0], own[1]]), batch_of(data, 0, 1)
    losses = [system.module(**each)["utterance_loss"] for each in (batch, usual)]
    assert system.from_manifest(rows.drop(columns="prompt")) == {}
    assert losses[0][1] == pytest.approx(float(losses[1][1]), abs=1e-5) and abs(float(losses[0][0] - losses[1][0])) > 1e-4
    found = unpadded(with_prompts(batch)["opening"])
    assert found[0][-len(system.inputs.around("write:").after) :] == list(system.inputs.around("write:").after)
    assert found[1] == unpadded(usual["opening"])[1] and system.decode(
        batch, DecodingOptions(max_tokens_per_s=2.0), system.ask_type()
    )


def test_a_prompt_of_its_own_counts_where_a_sequence_is_too_long(tmp_path: Path, data: SpeechDataset) -> None:
    made, rows = toy_steer(tmp_path, max_sequence_tokens=60), pd.DataFrame(data.rows)
    assert not len(refused(rows, made.inputs))
    longer = rows.assign(prompt=[None, "write all that you understand of it:" * 3, *[""] * (len(rows) - 2)])
    left_out = refused(longer, made.inputs)
    assert left_out["utterance_id"].tolist() == [rows["utterance_id"][1]] and "max_sequence_tokens=60" in left_out["reason"][0]
    with pytest.raises(ValueError, match="1 utterances have more than max_sequence_tokens=60 places in the sequence"):
        SpeechDataset(longer, data.root, made.inputs, trains=True)


def test_prompts_that_hold_what_was_to_be_read_are_refused_and_no_single_one_by_chance(
    system: SteerSystem, data: SpeechDataset
) -> None:
    """A corpus may call the sentence on the screen a prompt, which would tell the language model the text."""
    rows = pd.DataFrame(data.rows)
    with pytest.raises(ValueError, match=f"column prompt: {len(rows)} of {len(rows)} textual prompts hold the reference"):
        system.from_manifest(rows.assign(prompt="Please read: " + rows["reference"].str.upper() + "."))
    some = ["say oak or elm:", *["write this:"] * (len(rows) - 1)]
    assert system.from_manifest(rows.assign(prompt=some, reference=["oak", *rows["reference"][1:]]))


def test_the_audio_of_another_utterance_gives_the_text_of_the_other(system: SteerSystem, data: SpeechDataset) -> None:
    options, batch = DecodingOptions(max_tokens_per_s=4.0), batch_of(data, 1, 3)
    usual = system.decode(batch, options, system.ask_type())
    other = system.decode(batch, options, system.ablations()["other_audio"])
    assert [each.text for each in other] == [usual[1].text, usual[0].text] != [each.text for each in usual]
