"""Names that documents 002, 003 and 004 give to what is called otherwise here; a document's name is refused with ours."""

from collections.abc import Iterable

OURS: dict[str, tuple[str, ...]] = {
    "per_device_train_batch_size": ("ctc_batch_size", "domain_batch_size"),
    "learning_rate": ("ctc_learning_rate", "domain_learning_rate", "steer_learning_rate"),
    "num_train_epochs": ("ctc_epochs", "domain_epochs"),
    "grad_accum": ("gradient_accumulation_steps",),
    "eval_strategy": ("eval_every_n_epochs", "eval_every_n_updates"),
    "eval_steps": ("eval_every_n_updates",),
    "save_steps": ("save_every_n_updates",),
    "save_total_limit": ("keep_checkpoints",),
    "output_dir": ("export_dir",),
    "base_model": ("whisper_model", "ctc_model"),
    "model_name_or_path": ("whisper_model", "ctc_model"),
    "bf16": ("fp16", "no_fp16"),
    "verbose": ("log_file",),
    "subset": ("max_samples",),
    "login_wandb": ("report_to",),
    "login_hf": ("push_to_hub",),
    "early_stopping": ("domain_patience", "ctc_patience"),
    "early_stopping_patience": ("domain_patience", "ctc_patience"),
    "normal_val_holdout_shards": ("dev_share",),
    "dyslexic_oversample_factor": ("oversample",),
    "dyslexic_loss_weight": ("domain_loss_weight",),
    "use_loss_weighting": ("domain_loss_weight",),
    "num_beams": ("beam_size",),
    "label_smoothing_factor": ("label_smoothing",),
    "dropout_rate": ("dropout",),
    "batch_size": ("steer_batch_size",),
    "max_audio_length": ("max_duration_s",),
    "max_text_length": ("max_text_tokens",),
    "max_length": ("max_sequence_tokens",),
    "text_column": ("transcript_column",),
    "parquet_dirs": ("dataset_root",),
}
FOLLOWS = {  # and those of nothing that could be set
    "remove_unused_columns": "nothing is removed: it belongs to a loader that is not used here",
    "dataloader_drop_last": "nothing is dropped: the last batch of an epoch may be smaller",
    "return_attention_mask": "the mask is always that of the utterances",
    "pad_token_id": "blank is the first token of the vocabulary, which is the train split's",
    "vocab_size": "it is the size of the vocabulary, which is the train split's",
}


def document_hint(name: str, names: Iterable[str]) -> str | None:
    """What to say of a document's name: the option of `names` that it is here, or why there is none; None for any other name."""
    known = set(names)
    ours = [option for option in OURS.get(name.replace("-", "_"), ()) if option in known]
    if ours:
        return f"it is {' or '.join(ours)} here"
    return FOLLOWS.get(name.replace("-", "_"))
