"""The base model: from scratch, from a partial checkpoint in two phases, and the phonemes its encoder learns to hear."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from moe.systems.whisper.base_model import BaseModel, complete_base, load_base
from moe.systems.whisper.base_source import TOKEN_TABLE, is_complete
from moe.systems.whisper.phonemes import align
from moe.systems.whisper.pretraining import SILENCE_WEIGHT, BaseTraining, PretrainingOptions, pretrain, pretraining_plan
from moe.systems.whisper.tokens import language_ids
from moe.systems.whisper_moe.zero_shot import base_wer
from moe.training.loop import seed_everything
from tests.toys.training import CONTEXT, Notes, changed, dataset, tokenizer, toy_base, training, weights, write_corpus

REAL = Path(__file__).resolve().parents[5] / "shared" / "data" / "whisper_tiny_en"
FAST = PretrainingOptions(pretrain_updates=2, missing_updates=2, pretrain_batch_size=8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("toy")
    return write_corpus(root, 8), root


def run(base: BaseModel, corpus, options: PretrainingOptions, report=None, n_phonemes: int = 0, **extras):
    manifest, root = corpus
    data = dataset(manifest, root, extras=extras)
    around = training(pretraining_plan(options, seed=5, num_workers=0, precision="fp32"), report)
    dev_set = dataset(manifest, root)
    return pretrain(base, data, lambda: base_wer(base, dev_set, CONTEXT), options, around, n_phonemes)


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    """A checkpoint without its token table and one layer norm; names without `model.`, as some conversions have them."""
    base = toy_base(seed=8)
    state = {
        name.removeprefix("model."): value
        for name, value in base.model.state_dict().items()
        if name not in (TOKEN_TABLE, "proj_out.weight")
    }
    del state["decoder.layer_norm.bias"]
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(base.model.config.to_dict()))
    return tmp_path


def complete(folder: Path) -> BaseModel:
    """The partial checkpoint filled in; the toy's own extractor, since Whisper's hears 30 s."""
    seed_everything(0)
    base = complete_base(folder, tokenizer(), "en")
    return BaseModel(base.model, toy_base().processor, base.missing)


def test_from_scratch_it_learns_eight_utterances_by_heart(corpus) -> None:
    """With a class for each frame, as from alignments; without, as many updates leave this toy at half its words wrong."""
    manifest, root = corpus
    options = PretrainingOptions(pretrain_updates=250, pretrain_batch_size=8, pretrain_learning_rate=6e-3)
    base = toy_base(d_model=32)
    everyone, one = dataset(manifest, root), dataset(manifest.head(1), root)
    frames = np.broadcast_to(1 + np.arange(80)[:, None] % 8, (80, 50)).copy()
    tenfold = dataset(pd.concat([manifest] * 10), root, extras={"phonemes": frames})  # scored after each tenth update only
    before = base_wer(base, everyone, CONTEXT)
    around = training(pretraining_plan(options, 5, 0, "fp32"))
    done = pretrain(base, tenfold, lambda: base_wer(base, one, CONTEXT), options, around, n_phonemes=9)
    assert len(done.summaries) == 1 and done.summaries[0].n_updates == 250 and len(done.history) == 25
    assert before > 0.8 and base_wer(base, everyone, CONTEXT) <= 0.05


def test_what_a_partial_checkpoint_lacks_is_named(partial: Path) -> None:
    assert set(complete(partial).missing) == {TOKEN_TABLE, "model.decoder.layer_norm.bias"}
    assert not is_complete(str(partial))


def test_the_first_phase_changes_only_what_was_missing(partial: Path, corpus) -> None:
    base = complete(partial)
    before = weights(base.model)
    done = run(base, corpus, dataclasses.replace(FAST, pretrain_updates=0))
    assert changed(before, done.base.model) == set(base.missing) and len(done.summaries) == 1


def test_the_second_phase_changes_everything_that_can_change(partial: Path, corpus) -> None:
    base = complete(partial)
    before, frozen = weights(base.model), "model.encoder.embed_positions.weight"  # Whisper's sinusoids are no weights
    done = run(base, corpus, FAST)
    assert set(before) - changed(before, done.base.model) <= {frozen}
    assert [summary.n_updates for summary in done.summaries] == [2, 2]


def test_a_loaded_part_learns_at_its_own_rate(partial: Path, corpus) -> None:
    """Document 002's pitfall: rates per group were never passed on. A rate of nearly 0 leaves the encoder where it was."""
    base = complete(partial)
    before = weights(base.model)
    run(base, corpus, dataclasses.replace(FAST, encoder_learning_rate=1e-12))
    moved = {name: (parameter.detach() - before[name]).abs().max().item() for name, parameter in base.model.named_parameters()}
    assert max(value for name, value in moved.items() if name.startswith("model.encoder")) < 1e-8
    assert moved["model.decoder.layers.0.fc1.weight"] > 1e-5 and moved[TOKEN_TABLE] > 1e-3


def test_the_same_seed_gives_the_same_base(corpus) -> None:
    """Design 11."""
    runs = [run(toy_base(dropout=0.1), corpus, FAST) for _ in range(2)]
    first, second = (weights(done.base.model) for done in runs)
    assert all(torch.equal(first[name], second[name]) for name in first) and runs[0].history == runs[1].history


def test_scoring_between_epochs_leaves_the_model_as_it_was(corpus) -> None:
    manifest, root = corpus
    base = toy_base()
    base.model.model.encoder.conv1.weight.requires_grad_(False)
    before = {name: (parameter.clone(), parameter.requires_grad) for name, parameter in base.model.named_parameters()}
    first, second = (base_wer(base, dataset(manifest, root), CONTEXT) for _ in range(2))
    assert first == second
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]


def test_phonemes_become_one_class_a_frame() -> None:
    """The toy's extractor has a hop of 320 samples: a frame of the encoder is 640. Stress marks are dropped, `_:` is a pause."""
    manifest = pd.DataFrame({"utterance_id": ["b", "a"], "duration_s": [4000 / 16000, 1280 / 16000]})
    events = pd.DataFrame(
        {"utterance_id": ["a", "b"], "starts": [[0], [0, 640, 2000, 3200]], "phonemes": [["t"], ["_:", "'a:", "t", "a"]]}
    )
    found = align(manifest, events, toy_base().processor)
    a, t = found.phonemes.index("a"), found.phonemes.index("t")
    assert found.phonemes == ("", "a", "t")
    assert found.frames.shape == (2, 50)
    assert found.frames[0, :9].tolist() == [0, a, a, t, t, a, a, 0, 0]  # 2000 / 640 → 3; 4000 / 640 rounded up → 7
    assert found.frames[1, :4].tolist() == [t, t, 0, 0]


def test_an_utterance_without_alignment_is_named() -> None:
    manifest = pd.DataFrame({"utterance_id": ["a", "b"], "duration_s": [0.1, 0.1]})
    events = pd.DataFrame({"utterance_id": ["a"], "starts": [[0]], "phonemes": [["t"]]})
    with pytest.raises(ValueError, match=r"1 utterances have no alignment, e.g. \['b'\]"):
        align(manifest, events, toy_base().processor)


def test_the_phoneme_loss_trains_its_head_and_fades(corpus) -> None:
    frames = np.ones((8, 50), np.int64)
    frames[:, ::3] = 2
    seen: list[float] = []
    forward = BaseTraining.forward

    def listening(self: BaseTraining, **batch):
        seen.append(self.phoneme_loss_weight)
        return forward(self, **batch)

    options = PretrainingOptions(pretrain_updates=4, pretrain_batch_size=8, phoneme_weight=1.0, phoneme_weight_end=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseTraining, "forward", listening)
        run(toy_base(), corpus, options, n_phonemes=3, phonemes=frames)
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4])
    bare, encoded = toy_base(), toy_base()
    run(bare, corpus, FAST)
    run(encoded, corpus, FAST, n_phonemes=3, phonemes=frames)
    assert changed(weights(bare.model), encoded.model)
    assert BaseTraining(bare.model, 3).phoneme_weight.tolist() == pytest.approx([SILENCE_WEIGHT, 1, 1])


def test_every_epochs_dev_wer_is_told_and_the_head_is_not_saved(corpus) -> None:
    report, base = Notes(), toy_base()
    done = run(base, corpus, FAST, report=report, n_phonemes=3, phonemes=np.zeros((8, 50), np.int64))
    assert [value for _, value in report.of("dev/wer")] == [row["wer"] for row in done.history] and len(done.history) == 2
    assert set(weights(done.base.model)) == set(weights(toy_base().model)) and not done.base.model.training


@pytest.mark.skipif(not REAL.is_dir(), reason="the real partial checkpoint is not on this machine")
def test_the_real_checkpoints_missing_tensor_is_named_exactly() -> None:
    assert not is_complete(str(REAL))
    assert complete_base(REAL, tokenizer(), "en").missing == (TOKEN_TABLE,)
    own = complete_base(REAL, None, "en")
    assert own.missing == (TOKEN_TABLE,) and language_ids(own.model.generation_config) == {}
    assert "<|en|>" in own.processor.tokenizer.get_vocab()


def test_folders_that_hold_no_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs config.json and weights"):
        complete_base(tmp_path, tokenizer(), "en")
    with pytest.raises(ValueError, match="no such folder"):
        complete_base(tmp_path / "nowhere", tokenizer(), "en")
    with pytest.raises(ValueError, match="no model there"):
        load_base(str(tmp_path))


def test_tensors_of_another_shape_are_named(partial: Path) -> None:
    config = json.loads((partial / "config.json").read_text())
    (partial / "config.json").write_text(json.dumps(config | {"encoder_ffn_dim": 32}))
    with pytest.raises(ValueError, match="model.encoder.layers.0.fc1.bias is .64,., config.json asks for .32,."):
        complete_base(partial, tokenizer(), "en")
