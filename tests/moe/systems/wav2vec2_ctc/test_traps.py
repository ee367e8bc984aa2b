"""What goes wrong in transformers' own Wav2Vec2-BERT, and does not here; each trap is shown to be there where that is cheap."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from moe.recognition.decoding import decode
from moe.system import DecodingOptions
from moe.systems.wav2vec2_ctc.asks import CTCAsk
from moe.systems.wav2vec2_ctc.inputs import CTCInputs
from moe.systems.wav2vec2_ctc.system import CTCSystem
from moe.training.batches import Draw, collate
from moe.training.dataset import refused
from tests.toys.ctc import ctc_dataset, toy_ctc
from tests.toys.models import write_corpus

LENGTHS_S = (0.3, 0.31, 0.32, 0.33, 0.34, 0.35, 0.8)  # odd and even numbers of mels and of frames


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    root = tmp_path_factory.mktemp("toy")
    return write_corpus(root, LENGTHS_S), root


def outputs(system: CTCSystem, batch: dict) -> list[Tensor]:
    """Log-probabilities (T', V) of each utterance, without what lies past its end."""
    with torch.no_grad():
        said = system.module.log_probabilities(batch["features"], batch["n_frames"])
    return [row[:n] for row, n in zip(said, system.module.frames.n_outputs(batch["n_frames"]).tolist(), strict=True)]


@pytest.mark.parametrize("shape", [{"ctc_frame_ms": 40}, {}, {"add_adapter": True}], ids=["40 ms", "20 ms", "adapter"])
def test_an_utterance_says_the_same_alone_and_in_any_batch(corpus, shape: dict) -> None:
    system = toy_ctc(**shape)
    data = ctc_dataset(system, *corpus)
    items = [data[index] for index in range(len(data))]
    together = outputs(system, collate(data, items))
    for number, item in enumerate(items):
        (alone,) = outputs(system, system.inputs.collate([item]))
        torch.testing.assert_close(together[number], alone, atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1][: len(together[0])]).abs().max() > 1e-3  # utterances differ, so the comparison can fail


def test_an_odd_number_of_frames_before_the_adapter_would_read_past_the_end() -> None:
    system = toy_ctc(add_adapter=True)
    torch.nn.init.ones_(system.module.network.wav2vec2_bert.adapter.layers[0].residual_layer_norm.bias)
    features = torch.randn(1, 9, 160)
    alone, padded = (
        system.module.network(each, attention_mask=(torch.arange(each.shape[1]) < 9).long()[None]).logits[0, 4].detach()
        for each in (features, torch.cat([features, torch.zeros(1, 3, 160)], dim=1))
    )
    assert (alone - padded).abs().max() > 1e-3  # so frames are even: `Frames.n_frames`


def test_layerdrop_never_skips_the_adapters_stride() -> None:
    system = toy_ctc(add_adapter=True, layerdrop=0.5)
    system.module.train()
    features, n_frames = torch.randn(1, 16, 160), torch.tensor([16])
    said = [system.module.log_probabilities(features, n_frames).detach() for _ in range(12)]
    assert {each.shape[1] for each in said} == {8}
    assert len({float(each.sum()) for each in said}) > 1  # layers of the encoder are skipped


@pytest.mark.parametrize("seconds", [0.02, 0.1])
def test_masks_of_utterances_shorter_than_a_span_train(tmp_path: Path, seconds: float) -> None:
    system = toy_ctc(mask_time_prob=0.5)
    system.module.train()
    data = ctc_dataset(system, write_corpus(tmp_path, (seconds, seconds)).assign(reference="a"), tmp_path, masks=True)
    batch = collate(data, [data[0], data[1]])
    assert torch.isfinite(system.module(**batch)["loss"])


def test_masks_are_drawn_from_seed_epoch_and_utterance_alone(corpus) -> None:
    system = toy_ctc(mask_time_prob=0.3)
    data = ctc_dataset(system, *corpus, masks=True)
    drawn = [[data[Draw(index, epoch)]["mask"] for index in range(len(data))] for epoch in (0, 0, 1)]
    assert all(np.array_equal(first, again) for first, again in zip(drawn[0], drawn[1], strict=True))
    assert not all(np.array_equal(first, later) for first, later in zip(drawn[0], drawn[2], strict=True))
    assert data.example(0).keys() == {"features", "labels"}  # what is kept is not masked


def test_masked_frames_say_nothing_and_no_global_generator_is_read(corpus) -> None:
    system = toy_ctc(mask_time_prob=0.3)
    data = ctc_dataset(system, *corpus, masks=True)
    batch = collate(data, [data[6]])
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    system.module.train()
    said = [system.module.log_probabilities(batch["features"], batch["n_frames"], mask) for mask in (batch["mask"], None)]
    changed = batch["features"].masked_fill(batch["mask"][..., None], 7.0)
    same = system.module.log_probabilities(changed, batch["n_frames"], batch["mask"])
    assert batch["mask"].any() and torch.equal(said[0], same) and not torch.equal(*said)
    assert np.array_equal(np.random.get_state()[1], state) and torch.equal(torch.get_rng_state(), torch_state)
    system.module.eval()
    torch.testing.assert_close(system.module.log_probabilities(batch["features"], batch["n_frames"]), said[1])


def test_lengths_of_loss_decoding_times_and_feasibility_are_one(corpus) -> None:
    system = toy_ctc(add_adapter=True)
    data = ctc_dataset(system, *corpus)
    batch = collate(data, [data[index] for index in range(len(data))])
    n_outputs = system.module.frames.n_outputs(batch["n_frames"]).tolist()
    for number, seconds in enumerate(data.durations):
        assert n_outputs[number] == system.inputs.frames.n_outputs(system.inputs.frames.n_frames(round(seconds * 16_000)))
    for number, hypothesis in enumerate(system.decode(batch, DecodingOptions(), CTCAsk())):
        ends = [word["end_s"] for word in hypothesis.details["words"]]
        assert all(end <= n_outputs[number] * system.module.frames.output_s + 1e-6 for end in ends)


def test_what_no_path_writes_is_named_and_everything_else_has_a_finite_loss(corpus) -> None:
    manifest, root = corpus
    system = toy_ctc(add_adapter=True)
    crowded = manifest.assign(reference=["oak" * 5, "ooo", "elm", "fig", "oo oo oo", "yew" * 3, "aaaa" * 6])
    left_out = refused(crowded, system.inputs)  # u5 has exactly as many outputs as labels
    assert set(left_out["utterance_id"]) == {"u0", "u4", "u6"} and left_out["reason"].str.contains("more labels").all()
    data = ctc_dataset(system, crowded, root)
    batch = collate(data, [data[index] for index in range(len(data))])
    system.module.network.config.ctc_zero_infinity = False
    finite = torch.isfinite(system.module(**batch)["utterance_loss"])
    assert [data.utterance_ids[index] for index in range(len(data)) if not finite[index]] == left_out["utterance_id"].tolist()
    found = decode(system, data, DecodingOptions())
    assert [each.utterance_id for each in found if each.details["infinite_loss"]] == left_out["utterance_id"].tolist()
    assert system.measures(found)["infinite_losses"] == 3
    with pytest.raises(ValueError, match="3 utterances have more labels"):
        ctc_dataset(system, crowded, root, trains=True)


def test_dev_and_test_utterances_without_a_path_are_decoded_all_the_same(corpus) -> None:
    manifest, root = corpus
    system = toy_ctc(add_adapter=True)
    data = ctc_dataset(system, manifest.assign(reference="oak" * 40), root)
    found = system.decode(collate(data, [data[0]]), DecodingOptions(), CTCAsk(), with_loss=True)
    assert found[0].utterance_loss == 0 and found[0].n_tokens >= 1


def test_inputs_take_thirty_seconds_at_once() -> None:
    inputs: CTCInputs = toy_ctc().inputs
    assert inputs.window_s == 30 and inputs.length(30 * 16_000) == 1504


def test_masked_features_are_drawn_for_each_utterance_and_change_what_is_said(corpus) -> None:
    system = toy_ctc(mask_feature_prob=0.8)
    data = ctc_dataset(system, *corpus, masks=True)
    batch = collate(data, [data[5], data[6]])
    assert batch["feature_mask"].shape == (2, 16) and batch["feature_mask"].any() and "mask" not in batch
    assert np.array_equal(data[Draw(5, 0)]["feature_mask"], batch["feature_mask"][0].numpy())
    state, n_frames = np.random.get_state()[1].copy(), batch["n_frames"]
    system.module.train()
    said = [system.module.log_probabilities(batch["features"], n_frames, None, mask) for mask in (batch["feature_mask"], None)]
    assert not torch.equal(*said) and np.array_equal(np.random.get_state()[1], state)
    system.module.eval()
