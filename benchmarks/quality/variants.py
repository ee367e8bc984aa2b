"""Which rows a quality table has: the default, the baselines, and one option changed at a time."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe.clustering.options import ALGORITHMS
from moe.experts.rank_split import split_ranks
from moe.experts.routed_lora import ALL_LINEARS, AdapterOptions
from moe.files import read_json
from moe.options import NONE, listed, option, to_text
from moe.synthesis.styles import STYLES
from moe.training.averaging import EMA, LAST
from steps import main
from steps.chain.branches import total_rank
from steps.chain.options import BASE, LORA, MIXTURE
from steps.chain.stages import n_experts
from steps.options.step_options import SYNTHETIC

CHANGES: dict[str, tuple[Any, ...]] = {
    "averaging": (NONE, EMA, LAST),
    "trainings": (1, 2),
    "rank_and_epochs": (1, 2),  # the fair control of so many trainings: one of so many times the rank and the updates
    "shared_share": (1 / 7, 2 / 7, 4 / 7, 6 / 7),
    "adapter_rank": (28, 56, 112),
    "num_experts": (6, 12, 24),
    "lora_targets": ("q_proj,v_proj", ALL_LINEARS),
    "lora_part": ("both", "encoder", "decoder"),
    "rank_stabilised": (False, True),
    "expert_learning_rate": (3e-4, 1e-3, 3e-3),
    "lora_dropout": (0.0, 0.1),
    "expert_rate_share": (1.0, 0.3),
    "drop_experts": (False, True),
    "asr_epochs": (0, 1, 3),
    "clustering_algorithm": ALGORITHMS,
    "shared_expert": (True, False),
    "experts_init": ("zero", "shared"),
    "skip_pretraining": (False, True),
    "top_k": (1, 2, 4, None),  # None: all experts
    "mixing": ("delta", "loss"),
    "expert_dropout": (0.0, 0.25, 0.5),
    "backoff": (0.0, 0.95, 1.0),
    "balance_coefficient": (0.01, 0.0),
    "gate_layer": ("0", "1", "2", "3", "last"),
    "audio_context": ("bucketed", "full"),
    "left_out": tuple(style for style in STYLES if style != "typical"),  # trained without an etiology, scored on its speakers
}
WITH_LORA = (
    "averaging",
    "trainings",
    "rank_and_epochs",
    "adapter_rank",
    "lora_targets",
    "lora_part",
    "rank_stabilised",
    "expert_learning_rate",
    "lora_dropout",
    "left_out",
)  # changes that one LoRA gets too: its fair control
DEFAULT, BASE_MODEL, ONE_LORA = "as given", "base model", "one LoRA, same size"
EACH = "each"  # of the etiologies, every speaker scored by the row that was trained without their own
Job = tuple[str, int, "QualityOptions"]  # row, seed, options of the chain


@dataclasses.dataclass(frozen=True)
class QualityOptions(main.StepOptions):
    """Compare variants of the mixture; every option of `main` is common to all. The test set is larger than the demo's.

    With 162 speakers and three seeds a difference of about 0.9 points shows in four of five tries; the demo's 30 show 2 (docs/results.md).
    """

    n_test_speakers: int = option(27, "test speakers of each style", low=0)
    own_ways: bool = option(True, "a second cohort of test speakers, whose way of speaking nobody in training has")
    n_own_ways_speakers: int = option(2, "such speakers of each pair of styles", low=1)
    ablations: bool = option(False, "score other routings of each mixture too")
    seeds: str = option("0,1,2", "seeds of each variant, comma list; the corpus keeps one seed")
    only: str = option(
        "all",
        f"options whose values are compared, comma list out of {', '.join(CHANGES)}; or none: the default and the baselines",
    )
    rows: str | None = option(
        None, "evaluate these rows alone and write no table, semicolon list: several processes share the work (none: all)"
    )
    gather: bool = option(False, "run nothing: make the table of what earlier calls have evaluated")

    def faults(self) -> list[str]:
        """Also: seeds are whole numbers, changes and rows are known, the base is one base for all."""
        seeds = listed(self.seeds)
        found = [] if seeds and all(map(str.isdigit, seeds)) else [f"seeds={self.seeds}: must be whole numbers, comma list"]
        unknown = [name for name in self.changed if name not in CHANGES]
        found += [f"only={self.only}: must be all, none or out of {', '.join(CHANGES)}"] if unknown else []
        if self.corpus != SYNTHETIC and "left_out" in listed(self.only):
            found.append(
                f"only=left_out: the etiologies of the synthetic corpus; of corpus={self.corpus} give exclude_etiology=NAME to a call of its own"
            )
        if self.init_from is not None:
            found.append(
                f"init_from={self.init_from}: make it once, by main --until pretrain --export_dir BASE, and name it as whisper_model"
            )
        if self.rows is not None and self.gather:
            found.append("rows and gather=true contradict each other: one evaluates, the other does not")
        return found

    @property
    def changed(self) -> list[str]:
        """Names of the options whose values are compared."""
        return list(CHANGES) if self.only == "all" else [] if self.only == NONE else listed(self.only)

    @property
    def corpus_name(self) -> str:
        """What the table calls the corpus."""
        return Path(self.dataset_root).name if self.dataset_root else self.corpus


def variants(options: QualityOptions) -> dict[str, QualityOptions]:
    """Each variant's options by name: those given, then one option changed at a time."""
    found = {DEFAULT: options}
    for name in options.changed:
        for value in CHANGES[name]:
            shown, value = ("all", n_experts(options)) if value is None else (value, value)
            variant = _changed(options, name, value) if _can_have(options, name, value) else options
            if variant not in found.values():
                found[f"{name}={_shown(shown)}"] = variant
    return found


def rows_of(options: QualityOptions) -> dict[str, QualityOptions]:
    """Options of every row by its name: the variants, the baselines, and one LoRA for each variant that concerns it too."""
    found = variants(options)
    loras = {lora_of(name): variant for name, variant in found.items() if lora_of(name) != ONE_LORA}
    rows = {DEFAULT: options, BASE_MODEL: options, ONE_LORA: options, **found, **loras}
    wanted = None if options.rows is None else listed(options.rows, ";")
    unknown = [name for name in wanted or () if name not in rows]
    if unknown:
        raise ValueError(f"rows={';'.join(unknown)}: there are {'; '.join(rows)}")
    return {name: row for name, row in rows.items() if wanted is None or name in wanted}


def lora_of(name: str) -> str:
    """The row of the one LoRA that a variant is measured against."""
    return f"{ONE_LORA}, {name}" if name.partition("=")[0] in WITH_LORA else ONE_LORA


def left_out_of(name: str) -> list[str]:
    """The etiologies that a row was trained without, on whose speakers alone it is scored; none for most rows."""
    _, _, etiology = name.partition("left_out=")
    return list(CHANGES["left_out"]) if etiology == EACH else [etiology] if etiology else []


def system_of(name: str) -> str:
    """The system of a row."""
    return BASE if name == BASE_MODEL else LORA if name.startswith(ONE_LORA) else MIXTURE


def jobs(options: QualityOptions) -> list[Job]:
    """Every row under the first seed, then under the next: what there is of a table can be read early. The base has no seed."""
    corpus_seed = options.seed if options.corpus_seed is None else options.corpus_seed
    first, rows = int(listed(options.seeds)[0]), rows_of(options)
    return [
        (name, seed, dataclasses.replace(row, seed=seed, corpus_seed=corpus_seed, rows=None))
        for seed in map(int, listed(options.seeds))
        for name, row in rows.items()
        if name != BASE_MODEL or seed == first
    ]


def _changed(options: QualityOptions, name: str, value: Any) -> QualityOptions:
    """One option changed, and what it cannot be without or must not change along."""
    along: dict[str, Callable[[], dict[str, Any]]] = {
        "skip_pretraining": lambda: {
            "num_experts": n_experts(options), "asr_epochs": options.expert_epochs + options.asr_epochs
        } if value else {},
        "experts_init": lambda: {
            **_alike(options),
            "shared_epochs": options.shared_epochs or max(1, options.expert_epochs // 3),
        } if value == "shared" else {},
        "left_out": lambda: {"exclude_etiology": value},
        "shared_share": lambda: _divided(options, _total_rank(options), value, n_experts(options)),
        "adapter_rank": lambda: _divided(options, value, _share(options), n_experts(options)),
        "num_experts": lambda: _divided(options, _total_rank(options), _share(options), value),
        "rank_and_epochs": lambda: {
            **_divided(options, value * _total_rank(options), _share(options), n_experts(options)),
            "expert_epochs": value * options.expert_epochs, "asr_epochs": value * options.asr_epochs,
        },
    }  # fmt: skip
    return dataclasses.replace(options, **({name: value} if name not in SAID_BY_OTHERS else {}), **along.get(name, dict)())


SAID_BY_OTHERS = ("shared_share", "adapter_rank", "num_experts", "rank_and_epochs", "left_out")  # by the ranks, at the same scale


def _divided(options: QualityOptions, total: int, share: float, n: int | str) -> dict[str, Any]:
    """A total rank divided among so many experts, as ranks; the scale alpha/r stays."""
    if isinstance(n, str):
        raise ValueError(f"num_experts={n}: the ranks of a comparison need a number")
    found = split_ranks(AdapterOptions(adapter_rank=total, shared_share=share), n)
    scale = options.lora_alpha / options.lora_r
    shared_r = None if options.shared_r is None and found.shared_r == found.lora_r else found.shared_r
    ranks = {"lora_r": found.lora_r, "shared_r": shared_r, "lora_alpha": scale * found.lora_r, "adapter_rank": None}
    return {**ranks, "num_experts": n} if n != n_experts(options) else ranks


def _alike(options: QualityOptions) -> dict[str, Any]:
    """The total rank divided into a shared adapter and experts of one rank, which copies need."""
    n = n_experts(options)
    return _divided(options, _total_rank(options), 0.5 if isinstance(n, str) else 1 / (1 + n), n)


def _total_rank(options: QualityOptions) -> int:
    n = n_experts(options)
    return total_rank(options.part(AdapterOptions), n if isinstance(n, int) else 0)


def _share(options: QualityOptions) -> float:
    ranks = options.part(AdapterOptions)
    return ranks.shared_share if ranks.adapter_rank else ranks.shared_rank / _total_rank(options)


def _can_have(options: QualityOptions, name: str, value: Any) -> bool:
    """A shared start leaves an epoch to the experts; of a base in a folder it is known whether it has the layer below its last.

    Etiologies to leave out are known of the synthetic corpus alone.
    """
    if name == "left_out" and (options.corpus != SYNTHETIC or value not in listed(options.styles)):
        return False
    config = Path(options.whisper_model) / "config.json"
    if name == "gate_layer" and value != "last" and config.exists():
        return int(value) < read_json(config)["encoder_layers"]
    return options.expert_epochs > 1 or (name, value) != ("experts_init", "shared")


def _shown(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else to_text(value)
