"""A CTC is trained, interrupted, saved, and made of checkpoints that lack something."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2BertForCTC

from moe.recognition.decoding import decode
from moe.system import DecodingOptions
from moe.systems.table import load_system
from moe.systems.wav2vec2_ctc.building import LearningRates, build
from moe.systems.wav2vec2_ctc.folder import halve
from moe.systems.wav2vec2_ctc.options import CTCModelOptions
from moe.systems.wav2vec2_ctc.system import CTCSystem
from moe.systems.wav2vec2_ctc.training import CTCTrainingOptions, TrainedCTC, parts_of_batch, train
from moe.systems.wav2vec2_ctc.vocabulary import Vocabulary
from moe.training import loop
from moe.training.checkpoints import CheckpointOptions, Checkpoints
from moe.training.hooks import Report
from moe.training.loop import seed_everything
from tests.toys.checkpoints import Recorded, killed_after
from tests.toys.ctc import ctc_dataset, toy_ctc
from tests.toys.models import WORDS, write_corpus
from tests.toys.training import Notes, changed, plan, training, weights

RANDOM = {"mask_time_prob": 0.3, "mask_time_length": 3, "hidden_dropout": 0.2, "layerdrop": 0.3}
PART = {"head": ["lm_head.bias", "lm_head.weight"], "adapter": ["wav2vec2_bert.adapter.", "lm_head."]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    root = tmp_path_factory.mktemp("toy")
    return write_corpus(root, tuple(0.5 + 0.03 * (number * 7 % 5) for number in range(8))), root


def trained(
    system: CTCSystem, corpus, checkpoints: Checkpoints | None = None, report: Report | None = None, epochs: int = 3, **options
) -> TrainedCTC:
    manifest, root = corpus
    around = training(plan(epochs=epochs, batch_size=2), report, checkpoints)
    masks = system.inputs.masks.share > 0
    sets = ctc_dataset(system, manifest, root, masks, trains=True), ctc_dataset(system, manifest.head(4), root)
    return train(system, *sets, CTCTrainingOptions(**options), around)


def texts(system: CTCSystem, corpus) -> list[str]:
    return [each.text for each in decode(system, ctc_dataset(system, *corpus), DecodingOptions(decoding_batch_size=3))]


def test_it_learns_and_its_best_epoch_is_what_is_kept(corpus) -> None:
    seed_everything(0)
    system = toy_ctc(learning_rate=1e-2, add_adapter=False)
    report = Notes()
    done = trained(system, corpus, report=report, epochs=12)
    losses = [value for _, value in report.of("dev/loss")]
    assert losses[-1] < 0.7 * losses[0] and done.rate == min(row["cer"] for row in done.history) <= done.start_rate
    assert {"blank_share", "wer", "cer", "loss"} <= set(done.history[0])


@pytest.mark.parametrize("update", [1, 3, 7])
def test_killed_anywhere_and_started_again_it_ends_with_the_same_bits(corpus, tmp_path: Path, monkeypatch, update: int) -> None:
    def run(checkpoints: Checkpoints) -> tuple[CTCSystem, TrainedCTC]:
        seed_everything(0)
        system = toy_ctc(**RANDOM)
        return system, trained(system, corpus, checkpoints)

    whole, wanted = run(Checkpoints())
    every = CheckpointOptions(save_every_n_updates=1)
    with killed_after(update, monkeypatch):
        run(Checkpoints(tmp_path, every, Recorded()))
    assert any(tmp_path.iterdir())
    resumed, found = run(Checkpoints(tmp_path, every, Recorded()))
    assert not changed(weights(whole.module), resumed.module)
    assert (found.history, found.epoch, found.rate) == (wanted.history, wanted.epoch, wanted.rate)
    seed_everything(0)
    other = toy_ctc(**RANDOM | {"mask_time_prob": 0.6})
    trained(other, corpus)
    assert changed(weights(whole.module), other.module)  # masks do change what is learnt


@pytest.mark.parametrize("what", ["head", "adapter"])
def test_only_what_is_to_train_trains(corpus, what: str) -> None:
    seed_everything(0)
    system = toy_ctc(add_adapter=True)
    before = weights(system.module.network)
    trained(system, corpus, ctc_train=what, epochs=1, ctc_patience=100)
    moved = changed(before, system.module.network)
    groups = {group.name: group.n_parameters for group in system.parameter_groups()}
    assert all(name.startswith(tuple(PART[what])) for name in moved)
    assert set(groups) == {"head", what} and groups["head"] == sum(before[name].numel() for name in PART["head"])


def test_it_is_read_from_its_folder_as_it_was_saved(corpus, tmp_path: Path) -> None:
    system = toy_ctc(add_adapter=True, mask_time_prob=0.1)
    system.save(tmp_path / "model")
    read = load_system(tmp_path / "model")
    assert texts(read, corpus) == texts(system, corpus) and len(set(texts(read, corpus))) > 1
    assert read.record == system.record and read.vocabulary == system.vocabulary
    assert read.module.network.wav2vec2_bert.adapter.layerdrop == 0
    (tmp_path / "model" / "vocab.json").unlink()
    with pytest.raises(ValueError, match="no whole recogniser: vocab.json is missing"):
        load_system(tmp_path / "model")


# ---- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the hub has w2v-bert-2.0: without head, adapter and mask vector, and with tensors that nobody asks for."""
    folder = tmp_path_factory.mktemp("checkpoint")
    toy_ctc(seed=5).module.network.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    save_file(
        {name: each for name, each in state.items() if "lm_head" not in name}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def from_checkpoint(folder: Path, **changes) -> CTCSystem:
    seed_everything(0)
    options = CTCModelOptions(ctc_model=str(folder), **changes)
    return build(options, Vocabulary.of(WORDS, 1), "en", "basic", LearningRates(1e-3))


def test_what_a_checkpoint_lacks_is_named_and_the_rest_is_taken(checkpoint: Path) -> None:
    system = from_checkpoint(checkpoint, add_adapter=True, mask_time_prob=0.1, hidden_dropout=0.3)
    assert {"lm_head.weight", "lm_head.bias", "wav2vec2_bert.masked_spec_embed"} <= set(system.missing)
    assert all(name.startswith(("lm_head", "wav2vec2_bert.adapter.", "wav2vec2_bert.masked")) for name in system.missing)
    theirs = load_file(checkpoint / "model.safetensors")
    ours = dict(system.module.network.named_parameters())
    assert theirs and all(torch.equal(ours[name], each) for name, each in theirs.items() if name in ours)
    assert all(torch.isfinite(parameter).all() for parameter in ours.values())
    assert system.module.network.wav2vec2_bert.encoder.dropout.p == 0.3 and system.inputs.frames.divisor == 2


def test_what_is_missing_trains_first_and_alone(checkpoint: Path, corpus, monkeypatch) -> None:
    system = from_checkpoint(checkpoint)
    phases, real = [], loop.fit

    def recorded(model, *arguments):
        before = weights(model.network)
        summary = real(model, *arguments)
        phases.append((summary.n_updates, changed(before, model.network)))
        return summary

    monkeypatch.setattr("moe.systems.wav2vec2_ctc.training.fit", recorded)
    done = trained(system, corpus, head_updates=3, epochs=1, ctc_patience=9)
    assert phases[0] == (3, {"lm_head.weight", "lm_head.bias"}) and len(phases[1][1]) > 10
    assert done.earlier["n_updates"] == 3 and done.summary.n_updates == 4


def test_the_head_of_another_vocabulary_is_not_taken(checkpoint: Path, tmp_path: Path) -> None:
    whole = toy_ctc(seed=6)
    whole.module.network.save_pretrained(tmp_path)
    system = from_checkpoint(tmp_path)
    assert system.missing == ("lm_head.weight", "lm_head.bias")
    assert not torch.equal(system.module.network.lm_head.weight, whole.module.network.lm_head.weight)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"feature_projection_input_dim": 100}, "100 features: must be a multiple of 80"), ({"adapter_stride": 4}, "only 3 and 2")],
)
def test_a_checkpoint_of_another_make_is_refused(checkpoint: Path, tmp_path: Path, change: dict, said: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")) | change
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=f"ctc_model={tmp_path}: .*{said}"):
        from_checkpoint(tmp_path, add_adapter=True)


BAD = [
    ({"ctc_heads": 5}, "ctc_heads=5: must divide ctc_width=144"),
    ({"ctc_kernel": 30}, "ctc_kernel=30: must be odd"),
    ({"ctc_frame_ms": 25}, "ctc_frame_ms=25: must be a multiple of 10"),
    ({"mask_time_prob": 1.0}, "mask_time_prob=1: must be below 1"),
    ({"layerdrop": 1.5}, "layerdrop=1.5: must be below 1"),
    ({"hidden_dropout": -0.1}, "hidden_dropout=-0.1: must be at least 0"),
    ({"mask_time_length": 5}, "mask_time_length=5: mask_time_prob=0 masks nothing"),
    ({"ctc_model": "no/such/folder"}, "ctc_model=no/such/folder: no such folder, and no name of a hub model"),
    ({"ctc_model": "facebook/w2v-bert-2.0", "ctc_width": 32}, "ctc_width=32: a checkpoint has a shape of its own"),
]


@pytest.mark.parametrize(("given", "said"), BAD)
def test_options_that_make_no_network_are_refused_before_one_is_made(given: dict, said: str) -> None:
    with pytest.raises(ValueError) as fault:
        CTCModelOptions(**given)
    assert said in str(fault.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "needs a readable config.json"), ("{", "needs a readable config.json"), ("[]", "model_type=None"),
        ('{"model_type": "whisper"}', "model_type=whisper: must be wav2vec2-bert"), ('{"model_type": "wav2vec2-bert"}', "holds no weights"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, config: str | None, said: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        CTCModelOptions(ctc_model=str(tmp_path))


def test_every_regularisation_is_in_the_config_before_the_network_is_made() -> None:
    values = {"attention_dropout": 0.11, "hidden_dropout": 0.12, "feat_proj_dropout": 0.13, "conformer_conv_dropout": 0.14}
    network = toy_ctc(**values, final_dropout=0.15, activation_dropout=0.16, layerdrop=0.17, mask_time_prob=0.18).module.network
    found = {round(module.p, 2) for module in network.modules() if isinstance(module, torch.nn.Dropout)}
    assert found == {0.11, 0.12, 0.13, 0.14, 0.15, 0.16} and network.config.layerdrop == 0.17
    assert isinstance(network, Wav2Vec2BertForCTC) and network.wav2vec2_bert.masked_spec_embed.shape == (16,)
    assert dataclasses.asdict(CTCModelOptions())["ctc_frame_ms"] == 40


def test_a_batch_is_cut_in_equal_parts_until_the_longest_fit() -> None:
    options = CTCTrainingOptions(ctc_batch_size=12, ctc_batch_frames=1000)
    assert [parts_of_batch(options, frames) for frames in (80, 84, 200, 300, 1000)] == [1, 2, 3, 4, 12]
    with pytest.raises(ValueError, match="ctc_batch_frames=1000: the longest train utterance alone has 1001"):
        parts_of_batch(options, 1001)


def test_a_trained_one_goes_on_with_its_head_where_the_vocabulary_is_the_same(tmp_path: Path) -> None:
    whole = toy_ctc(seed=6)
    whole.save(tmp_path / "model")
    halve(tmp_path / "model")
    same = from_checkpoint(tmp_path / "model")
    assert same.missing == () and same.vocabulary == whole.vocabulary
    torch.testing.assert_close(weights(same.module), weights(whole.module), atol=1e-2, rtol=1e-3)  # rounded to half precision
    other = build(CTCModelOptions(ctc_model=str(tmp_path / "model")), Vocabulary.of(["xyz"], 1), "en", "basic")
    assert other.missing == ("lm_head.weight", "lm_head.bias")
