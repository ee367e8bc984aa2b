"""What `main` refuses of base, experts and corpus together before anything has run: all of it in one message, with every option to change."""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import WhisperTokenizer

from moe.corpora.locations import address_fault, is_address
from moe.corpora.outline import Outline, outline
from moe.corpora.preparation import PreparationOptions
from moe.corpora.presence import unsharded_fault
from moe.files import read_json
from moe.systems.whisper.base_source import ENGLISH, SCRATCH, SmallShape, base_window_s, small_files
from moe.systems.whisper.checkpoint_weights import CONFIG, weight_files
from moe.systems.whisper.tokens import CHARACTERS, CHECKPOINT, label_ids, train_tokenizer
from steps.pretrain import SHIPPED

BY_TABLE = (
    "folder",
    "kaldi",
    "lhotse",
    "openslr",
)  # formats that a few small files list: they are read before anything runs wherever they lie
COPIES = 6  # of the base that a chain leaves: pretrain, three systems, and the registered model with its download


def outline_of(options: PreparationOptions) -> Outline | None:
    """The corpus in outline; None where that shows in preparing.

    Of a corpus elsewhere its tables say it, and some headers; shards elsewhere and a hub's data set are first brought here by preparing.
    """
    root = str(options.dataset_root)
    if not Path(root).exists() and not (is_address(root) and options.corpus in BY_TABLE and address_fault(root) is None):
        return None
    try:
        return outline(options)
    except ValueError:
        return None  # preparing says it, and logs what is wrong


def corpus_faults(
    options: PreparationOptions,
    found: Outline,
    base: str,
    n_experts: int | None,
    tokenizer: str = CHECKPOINT,
    trains: bool = True,
    shards_together: int | None = None,
) -> list[str]:
    """What cannot work between a corpus, a base and a number of experts.

    Args:
        options: of preparing. found: the corpus in outline. base: the base's folder or name. n_experts: to cluster speakers for; None where that is not known or not done.
        tokenizer: whose it is, one of `TOKENIZERS`.
        trains: whether a system is trained; what only decodes cuts long recordings at quiet places.
        shards_together: shards whose utterances come together in batches.
    """
    learnt = window_faults(options, base, found) + decoder_faults(base, found, tokenizer) if trains else []
    unsharded = unsharded_fault(found.is_sharded, shards_together)
    return learnt + speaker_faults(n_experts, found) + ([unsharded] if unsharded else [])


def window_faults(options: PreparationOptions, base: str, found: Outline) -> list[str]:
    """Recordings that are longer than the base's window, which no training takes."""
    window = base_window_s(base)
    share = 0.0 if window is None else found.share_beyond(window, options.max_duration_s)
    if not share:
        return []
    changes = [f"max_duration_s={window:g}"]
    if share > options.max_quarantined:
        changes.append(f"max_quarantined={math.ceil(100 * share + 1) / 100:g}")
    demo = "; it is for the demo, name one with a longer window (whisper_model=v2)" if base == SHIPPED else ""
    longest = found.durations_s.max()
    return [
        f"the base {base} takes {window:g} s at once and {100 * share:.0f} % of the recordings are longer, up to {longest:.1f} s{demo}, "
        f"or leave them out with {' and '.join(changes)}"
    ]


def decoder_faults(base: str, found: Outline, tokenizer: str = CHECKPOINT) -> list[str]:
    """References with more tokens than the base's decoder can say; how many a byte-level BPE makes of them shows when it is learnt."""
    folder = None if base == SCRATCH else small_files(base)
    if not found.long_references or tokenizer not in (CHECKPOINT, CHARACTERS) or (folder is None and base != SCRATCH):
        return []
    limit = (
        SmallShape().max_target_positions if folder is None else read_json(folder / CONFIG).get("max_target_positions", math.inf)
    )
    n_tokens = _most_tokens(found.long_references, folder, tokenizer)
    if n_tokens <= limit:
        return []
    demo = ", it is for the demo" if base == SHIPPED else ""
    return [
        f"the decoder of {base} takes {limit} tokens and the longest reference has {n_tokens}{demo}: name a base that takes more (whisper_model=v2)"
    ]


def _most_tokens(references: Sequence[str], folder: Path | None, tokenizer: str) -> float:
    """Tokens of the longest label; 0 where the base has no tokenizer to ask."""
    try:
        if tokenizer == CHARACTERS or folder is None:
            own = train_tokenizer(references, CHARACTERS, 0, ENGLISH)
        else:
            own = WhisperTokenizer.from_pretrained(folder)
        return max(len(label_ids(own, reference)) for reference in references)
    except (OSError, ValueError, TypeError):
        return 0


def speaker_faults(n_experts: int | None, found: Outline) -> list[str]:
    """More experts than there are training speakers to cluster."""
    n_speakers = len(found.train_speakers)
    if n_experts is None or n_experts <= n_speakers:
        return []
    return [
        f"num_experts={n_experts}: the train split has {n_speakers} speakers to cluster; at most that, or cluster_unit=utterance"
    ]


def disk_faults(base: str, artifacts: Path | None) -> list[str]:
    """Less space than the copies of the base take that a chain leaves.

    Args:
        artifacts: the folder that the chain's artifacts will lie in; None where they do not lie on this machine.
    """
    if artifacts is None or not Path(base).is_dir():
        return []
    n_bytes = COPIES * sum(file.stat().st_size for file in weight_files(Path(base)))
    there = next(folder for folder in (artifacts, *artifacts.parents) if os.path.isdir(folder))
    free = shutil.disk_usage(there).free
    if n_bytes <= free:
        return []
    return [
        f"{artifacts} has {free / 1e9:.1f} GB free and the chain writes about {n_bytes / 1e9:.1f} GB ({COPIES} copies of the base): "
        "make room, or name a store elsewhere (MLFLOW_TRACKING_URI)"
    ]
