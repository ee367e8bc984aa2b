"""The defects of the code behind the documents, each with the tests that rule it out; those tested nowhere else are here.

A row names files below `tests/` and functions; a function that is renamed or dropped makes its row fail.
"""

import ast
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from moe.corpora.subsets import at_most, subset
from moe.experts.routed_lora import routed_layers
from moe.recognition.decoding import decode
from moe.routing.options import RoutingOptions
from moe.routing.weights import one_hot
from moe.system import DecodingOptions
from moe.systems.whisper import encoder as whisper_encoder
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.step_decoder import StepDecoder
from moe.systems.whisper_moe.model import WhisperMoE
from tests.toys.models import CONTEXT, batch_of, dataset, system_of, toy_base, toy_mixture, write_corpus

HERE = Path(__file__).parent
Pitfalls = dict[int, tuple[str, list[str]]]
WHISPER_MOE: Pitfalls = {
    1: ("joint training trained no expert", [
        "moe/experts/test_expert_training.test_one_update_on_a_mixed_batch_changes_every_expert",
        "moe/experts/test_joint_training.test_one_update_on_a_mixed_batch_changes_every_chosen_expert_and_the_gate",
        "moe/experts/test_joint_training.test_the_optimizer_holds_every_expert_the_shared_adapter_and_the_gate",
        "moe/systems/whisper_moe/test_model.test_after_one_update_on_a_mixed_batch_every_expert_with_an_utterance_has_changed"]),
    2: ("all routing collapsed to one expert, unseen and without a baseline beside it", [
        "moe/experts/test_joint_training.test_load_and_entropy_are_told_after_each_epoch",
        "moe/experts/test_joint_training.test_a_collapsed_gate_shows_as_a_load_of_one", "analysis/test_routing.test_collapse_is_seen",
        "steps/chain/test_chain.test_the_mixture_has_all_the_rows_it_must_be_seen_beside"]),
    3: ("the curriculum never advanced", [
        "moe/experts/test_joint_training.test_the_curriculum_advances_with_the_epochs", "moe/training/test_loop.test_every_epoch_is_told_once",
        "moe/routing/test_curriculum.test_the_phase_decides_how_many_experts_an_utterance_gets"]),
    4: ("dev was trained on and then was the benchmark, splits were random by utterance", [
        "moe/corpora/test_splits.test_by_speaker_is_disjoint_whole_and_never_empty", "moe/corpora/test_splits.test_a_planted_speaker_leak_is_named_and_refused",
        "steps/test_bad_input.test_a_speaker_in_two_splits", "steps/chain/test_chain.test_counts_add_up_from_corpus_to_hypotheses"]),
    5: ("end of text was never learnt, the prompt differed between training and decoding", [
        "moe/systems/whisper/test_tokens.test_end_of_text_is_scored_although_it_is_the_padding_token_too",
        "moe/systems/whisper_moe/test_decoding.test_decoding_starts_from_the_prompt_that_training_teaches"]),
    6: ("transcripts were trained on and scored with their marks", [
        "moe/text/test_normalisers.test_sap_has_two_reference_forms_and_no_marks"]),
    7: ("most utterances were skipped because their embeddings were missing", [
        "moe/corpora/test_subsets.test_a_smaller_percentage_lies_within_a_larger", "steps/test_steps.TestParts.test_embed_lies_in_experts_lies_in_asr",
        "steps/test_steps.TestEmbeddings.test_missing_embeddings_are_computed_never_skipped",
        "steps/chain/test_chain.test_counts_add_up_from_corpus_to_hypotheses"]),
    8: ("embeddings were stored unpooled and averaged over padding", [
        "moe/systems/whisper/test_encoder.test_pooling_ignores_what_is_in_the_padding", "test_pitfalls.test_an_embedding_takes_a_vector_not_a_film_of_them"]),
    9: ("two copies of Whisper, two encoder passes, decoding ran the encoder for every token", [
        "test_pitfalls.test_there_is_one_base_model", "test_pitfalls.test_an_update_takes_one_encoder_pass",
        "test_pitfalls.test_decoding_runs_the_encoder_once_and_the_decoder_on_new_tokens_only"]),
    10: ("balance was asked of batches of two", [
        "moe/routing/test_losses.test_balance_over_the_window_leaves_specialised_micro_batches_alone"]),
    11: ("resume skipped stages that were not done and lost what was", [
        "steps/chain/test_chain.test_the_same_seed_in_another_store_gives_the_same_metrics_even_after_a_kill",
        "moe/routing/test_embeddings.test_a_killed_run_goes_on_where_it_was", "steps/chain/test_reuse.test_a_run_that_did_not_finish_is_not_taken_over",
        "moe/systems/whisper_moe/test_folder.test_a_recogniser_read_back_recognises_bit_for_bit_the_same"]),
    12: ("the best checkpoint was not the best", [
        "moe/experts/test_expert_training.test_the_best_of_each_expert_is_restored_never_the_last",
        "moe/experts/test_expert_training.test_validation_every_second_epoch_and_after_the_last",
        "moe/experts/test_joint_training.test_the_best_epoch_by_wer_is_restored_never_the_last"]),
    13: ("files were sampled in the order of the directory", [
        "moe/corpora/test_subsets.test_row_order_does_not_matter", "moe/corpora/test_splits.test_the_seed_decides_and_row_order_does_not",
        "test_pitfalls.test_a_shuffled_manifest_gives_every_stage_the_same_utterances"]),
    14: ("noise became confident targets, other targets were flat", [
        "moe/clustering/test_algorithms.test_own_expert_noise_is_a_cluster_and_its_probability_a_column",
        "moe/clustering/test_clustering.test_soft_labels_are_sharp_even_in_many_dimensions"]),
    15: ("options that were offered crashed", [
        "moe/clustering/test_options.test_the_grid_runs_or_is_refused_up_front", "moe/experts/test_joint_training.test_every_k_and_mixing_trains_and_scores",
        "steps/test_bad_input.test_more_unreadable_recordings_than_allowed"]),
    16: ("embedding one by one took half an hour, the gate re-read files every epoch", [
        "test_pitfalls.test_embedding_a_batch_is_embedding_one_by_one_in_a_few_calls",
        "moe/routing/test_gate_training.test_the_gate_learns_the_clusters"]),
}  # fmt: skip

STEER_MOE: Pitfalls = {
    1: ("rates of groups never reached the trainer", [
        "moe/systems/steer_moe/test_training.test_four_groups_train_at_four_rates_each_logged_and_only_they_are_kept_in_checkpoints"]),
    2: ("gradients were clipped after the update", [
        "moe/systems/steer_moe/test_training.test_a_gradient_of_100_reaches_the_optimizer_as_1_in_vectors_and_scales_alone"]),
    3: ("early stopping and evaluation were commented out", [
        "moe/systems/steer_moe/test_training.test_it_stops_after_the_epochs_without_improvement_and_keeps_the_start_where_all_are_worse",
        "moe/systems/steer_moe/test_training.test_without_epochs_nothing_trains_and_the_selection_is_jiwers_cer"]),
    4: ("the balance loss was never called", [
        "moe/systems/steer_moe/test_model.test_balance_is_asked_of_the_mean_use_in_the_training_loss",
        "moe/systems/steer_moe/test_steering.test_use_counts_valid_frames_alone_and_balance_is_zero_where_it_is_even"]),
    5: ("statistics of routing crashed", [
        "moe/systems/steer_moe/test_training.test_steering_is_analysed_every_few_updates_and_use_is_counted_by_hand",
        "steps/test_steer.test_what_trains_is_counted_by_group_and_steering_is_analysed_and_drawn"]),
    6: ("keys were ignored, and 1e-4 was a text", [
        "steps/options/test_steermoe_reference.test_an_unknown_key_is_an_error_and_1e_4_a_number",
        "steps/options/test_steermoe_reference.test_the_table_has_every_option_of_training"]),
    7: ("a twentieth of the test set was scored", ["steps/chain/test_chain.test_counts_add_up_from_corpus_to_hypotheses"]),
    8: ("everything was padded to 30 s and 448 tokens under a mask of ones", [
        "moe/systems/steer_moe/test_model.test_an_audio_prompt_is_as_long_as_its_audio",
        "moe/systems/steer_moe/test_sequence.test_neither_company_nor_its_padding_changes_a_loss_and_only_text_is_scored",
        "moe/systems/steer_moe/test_model.test_left_padded_together_it_writes_what_it_writes_alone"]),
    9: ("every layer computed the routers of all", ["moe/systems/steer_moe/test_steering.test_each_layer_asks_its_own_router_alone"]),
    10: ("checkpoints held what is frozen", [
        "moe/systems/steer_moe/test_training.test_four_groups_train_at_four_rates_each_logged_and_only_they_are_kept_in_checkpoints"]),
}  # fmt: skip
DOMAIN_WHISPER: Pitfalls = {
    1: ("the token was a target and no condition", [
        "moe/systems/domain_whisper/test_prompts.test_the_prompt_is_not_scored",
        "moe/systems/domain_whisper/test_prompts.test_switching_the_token_changes_the_loss_at_once",
        "moe/systems/domain_whisper/test_prompts.test_training_decoding_log_probabilities_and_serving_read_the_same_prompt",
        "moe/systems/domain_whisper/test_training.test_a_token_comes_to_decide_the_text"]),
    2: ("everybody was normal, later val_small_normal was dyslexic", [
        "moe/corpora/formats/test_domains.test_val_small_normal_is_normal",
        "moe/corpora/formats/test_domains.test_a_plain_folder_beside_a_domain_s_is_of_the_domain_that_is_said"]),
    3: ("new ids were taken for timestamps", [
        "moe/systems/domain_whisper/test_prompts.test_a_decoder_that_says_new_tokens_in_a_row_loses_nothing"]),
    4: ("dropout was set after the modules were made", [
        "moe/systems/domain_whisper/test_training.test_dropout_is_in_the_modules_that_are_made"]),
    5: ("audio was cut and its text kept", [
        "moe/systems/domain_whisper/test_prompts.test_audio_longer_than_the_window_is_left_out_by_name_and_never_cut",
        "moe/systems/domain_whisper/test_prompts.test_a_longer_reference_is_refused_by_what_the_prompt_leaves"]),
    6: ("one bad sample killed training, more workers than shards hung", [
        "moe/corpora/formats/test_domains.test_a_broken_shard_and_a_bad_sample_are_listed_and_survived",
        "moe/corpora/formats/test_domains.test_an_epoch_over_shards_gives_every_sample_once_whatever_the_workers"]),
    7: ("two rows cost a whole table and its optimizer state, and began at random", [
        "moe/systems/domain_whisper/test_training.test_the_optimizers_state_of_the_tokens_is_as_large_as_they_are",
        "moe/systems/domain_whisper/test_prompts.test_a_token_begins_near_what_is_asked_and_no_two_are_equal"]),
}  # fmt: skip
WAV2VEC2_CTC: Pitfalls = {
    1: ("layerdrop skipped the adapter's stride", [
        "moe/systems/wav2vec2_ctc/test_traps.test_layerdrop_never_skips_the_adapters_stride"]),
    2: ("an utterance that no path writes made the loss infinite", [
        "moe/systems/wav2vec2_ctc/test_traps.test_what_no_path_writes_is_named_and_everything_else_has_a_finite_loss",
        "steps/test_ctc.test_corrupt_recordings_are_listed_and_leave_the_loss_curve_as_it_is"]),
    3: ("everything trained where only adapters were to", [
        "moe/systems/wav2vec2_ctc/test_training.test_only_what_is_to_train_trains"]),
    4: ("the vocabulary was made of test texts too", ["steps/test_ctc.test_the_vocabulary_is_of_the_train_split_alone"]),
    5: ("no CER was given of a script with combining marks", [
        "steps/test_ctc.test_nepali_as_openslr_54_has_it_comes_out_in_words_of_devanagari"]),
    6: ("the split was not stated, and speakers were not heeded", [
        "moe/corpora/test_splits.test_by_speaker_is_disjoint_whole_and_never_empty"]),
}  # fmt: skip
SYSTEMS = {"whisper_moe": WHISPER_MOE, "steer_moe": STEER_MOE, "domain_whisper": DOMAIN_WHISPER, "wav2vec2_ctc": WAV2VEC2_CTC}


@functools.cache
def collected(file: str) -> set[str]:
    """Test functions and methods of a test file, as `name` and `Class.name`."""
    tree = ast.parse((HERE / f"{file}.py").read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test")]
    return names | {f"{owner.name}.{node.name}" for owner in classes for node in owner.body if isinstance(node, ast.FunctionDef)}


def test_the_tables_are_whole() -> None:
    numbers = {system: list(pitfalls) for system, pitfalls in SYSTEMS.items()}
    counts = {"whisper_moe": 16, "steer_moe": 10, "domain_whisper": 7, "wav2vec2_ctc": 6}
    assert numbers == {system: list(range(1, n + 1)) for system, n in counts.items()}


@pytest.mark.parametrize(("system", "number"), [(system, number) for system, pitfalls in SYSTEMS.items() for number in pitfalls])
def test_every_pitfall_has_tests_that_are_collected(system: str, number: int) -> None:
    title, tests = SYSTEMS[system][number]
    for test in tests:
        file, _, name = test.partition(".")
        assert name.rpartition(".")[2].startswith("test_") and name in collected(file), f"{number}, {title}: {test} is gone"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("toy")
    return dataset(write_corpus(root), root)


def test_there_is_one_base_model() -> None:
    """Pitfall 9: two full copies lay on the device. Eight experts more add their own matrices and nothing else."""
    small, large = toy_mixture(n_experts=2), toy_mixture(n_experts=10)
    for model in (small, large):
        kinds = [type(module) for module in model.modules()]
        assert kinds.count(WhisperEncoder) == kinds.count(WhisperDecoder) == 1
    experts = sum(layer.lora_A[0].numel() + layer.lora_B[0].numel() for _, layer in routed_layers(small.base))
    gate = sum(p.numel() for p in large.gate.parameters()) - sum(p.numel() for p in small.gate.parameters())
    window = large.window.recent.numel() - small.window.recent.numel()
    assert size(large) - size(small) == 8 * experts + gate + window


def size(model: WhisperMoE) -> int:
    return sum(value.numel() for value in [*model.parameters(), *model.buffers()])


class Counted:
    """Counts the calls of a model's encoder layers and notes how many tokens its decoder was given at a time."""

    def __init__(self, model: WhisperMoE, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers, self.stems, self.tokens = [0] * len(model.base.model.encoder.layers), 0, []
        counted = self.tokens
        for number, layer in enumerate(model.base.model.encoder.layers):
            layer.register_forward_pre_hook(functools.partial(self._layer, number))
        step = StepDecoder.__call__
        monkeypatch.setattr(StepDecoder, "__call__", lambda self, read: (counted.append(read.shape[1]), step(self, read))[1])
        stem = whisper_encoder.conv_stem
        monkeypatch.setattr(whisper_encoder, "conv_stem", lambda *inputs: (self._stem(), stem(*inputs))[1])

    def _layer(self, number: int, module: torch.nn.Module, inputs: object) -> None:
        self.layers[number] += 1

    def _stem(self) -> None:
        self.stems += 1


@pytest.mark.parametrize("gate_layer", ["0", "1"])
def test_an_update_takes_one_encoder_pass(data, gate_layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 9: two encoder passes a step, and experts one after another. Here all experts take part in one."""
    model = toy_mixture(routing=RoutingOptions(gate_layer=gate_layer)).train()
    counted, batch = Counted(model, monkeypatch), batch_of(data, [0, 1, 2, 3])
    model(**batch, routing_weights=None)["loss"].backward()
    assert counted.layers == [1, 1] and counted.stems == 1
    model(**batch, routing_weights=one_hot(torch.arange(4), 4).weights)["loss"].backward()
    assert counted.layers == [2, 2] and counted.stems == 2


def test_decoding_runs_the_encoder_once_and_the_decoder_on_new_tokens_only(data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 9: mixture decoding ran the encoder again for every token."""
    model = toy_mixture()
    counted = Counted(model, monkeypatch)
    context = dataclasses.replace(CONTEXT, context_bucket_s=2.0)  # one batch
    decode(
        system_of(model, context=context),
        dataset(pd.DataFrame(data.rows), data.root, context),
        DecodingOptions(decoding_batch_size=len(data)),
    )
    assert counted.layers == [1, 1] and counted.stems == 1
    assert len(counted.tokens) > 4 and set(counted.tokens[1:-1]) == {1}


def test_an_embedding_takes_a_vector_not_a_film_of_them(data) -> None:
    """Pitfall 8: 7.3 MiB an utterance were stored where 5 KiB are used."""
    encoder, batch = toy_base().model.model.encoder, batch_of(data, [0, 1])
    for pooling, n_statistics in (("mean", 1), ("mean_std", 2)):
        pooled = whisper_encoder.pooled_embedding(encoder, batch["mel"], batch["n_frames"], 0, pooling)
        assert pooled.shape == (2, n_statistics * encoder.config.d_model)


def test_a_shuffled_manifest_gives_every_stage_the_same_utterances() -> None:
    """Pitfall 13."""
    random = np.random.default_rng(0)
    ids = [f"u{number:03d}" for number in range(200)]
    manifest = pd.DataFrame(
        {"utterance_id": ids, "etiology": random.choice(["als", "stroke"], 200), "split": random.choice(["train", "dev"], 200)}
    )
    for seed in range(3):
        shuffled = manifest.sample(frac=1, random_state=seed)
        for percent in (5, 15, 60):
            assert subset(manifest, percent, 42) == subset(shuffled, percent, 42)
        assert at_most(manifest, 50, 42) == at_most(shuffled, 50, 42)


@pytest.mark.parametrize("layer", [0, 1, None])
def test_embedding_a_batch_is_embedding_one_by_one_in_a_few_calls(data, layer: int | None) -> None:
    """Pitfall 16: 35 minutes at batch 1. All in the full window, where an upper layer hears the same silence in any company."""
    encoder, full = toy_base().model.eval().model.encoder, AudioContextOptions(audio_context="full")
    everyone = list(range(len(data)))
    batch = batch_of(data, everyone, full)
    together = whisper_encoder.pooled_embedding(encoder, batch["mel"], batch["n_frames"], layer, "mean_std")
    for number in everyone:
        alone = batch_of(data, [number], full)
        single = whisper_encoder.pooled_embedding(encoder, alone["mel"], alone["n_frames"], layer, "mean_std")[0]
        torch.testing.assert_close(together[number], single, atol=1e-5, rtol=1e-4)
