"""Document 001's table "Parameter Reference", walked: each parameter is on its step and on `main`, and each changes something."""

import ast
import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from moe.clustering.clusters import UtteranceClusters
from moe.clustering.density import density_partition
from moe.clustering.options import ClusteringOptions
from moe.clustering.reduction import fitted_points
from moe.options import from_text, is_required
from moe.systems.whisper.base_source import resolve
from moe.training.checkpoints import CheckpointOptions
from moe.training.plan import training_arguments
from moe.training.precision import precision
from steps import asr, cluster, ctc, domain, embed, experts, main, prepare, pretrain
from steps.chain.stages import NAMES as STEP_NAMES
from steps.inputs.training import plan_of
from steps.options.command_line import file_values, unknown
from steps.options.document_names import OURS
from steps.options.project_files import ENTRY_POINTS
from steps.tracking.fingerprint import fingerprint
from steps.tracking.store import project_root
from tests.toys.chain import pending_options

TABLE = """
--mode | str | full
--seed | int | 42
--resume | flag | false
--no-plot | flag | false
--skip-pretraining | flag | false
--data-percent | float | None
--dataset-root | path | Data/extracted_data
--whisper-model | str | v2
--num-experts | int | 8
--gating-batch-size | int | None
--expert-batch-size | int | None
--asr-batch-size | int | None
--num-workers | int | None
--gradient-accumulation-steps | int | 1
--fp16 | flag | auto
--no-fp16 | flag | false
--eval-every-n-epochs | int | 1
--save-every-n-epochs | int | 5
--clustering-algorithm | str | hdbscan
--min-cluster-size | int | 5
--min-clusters | int | 8
--min-samples | int | None
--metric | str | euclidean
--allow-single-cluster | flag | false
--hdbscan-algorithm | str | best
--no-reduce-experts | flag | false
--min-experts | int | 2
--max-retries | int | 5
--reduce | str | pca
--reduce-dim | int | 50
--pooling | str | mean
--plot-method | str | umap
--log-file | path | None
"""
ROWS = [tuple(part.strip() for part in line.split("|")) for line in TABLE.strip().splitlines()]
NAMES = [flag.removeprefix("--").replace("-", "_") for flag, _, _ in ROWS]
EVERYWHERE = {"seed", "resume", "log_file"}
STEPS = {
    "no_plot": "synthesize prepare pretrain cluster gate experts asr baseline evaluate compare", "mode": "main", "skip_pretraining": "asr",
    "data_percent": "embed cluster experts asr baseline", "dataset_root": "prepare", "whisper_model": "pretrain", "num_experts": "cluster asr",
    "gating_batch_size": "gate", "expert_batch_size": "experts", "asr_batch_size": "asr baseline", "pooling": "embed experts asr baseline",
    **dict.fromkeys(("num_workers", "gradient_accumulation_steps", "fp16", "no_fp16", "eval_every_n_epochs"), "pretrain experts asr baseline"),
    "save_every_n_epochs": "pretrain gate experts asr baseline", "plot_method": "cluster",
    **dict.fromkeys(NAMES[NAMES.index("clustering_algorithm") : NAMES.index("pooling")], "cluster"),
}  # fmt: skip
OTHER_DEFAULTS = {
    "resume": "true: an interrupted run goes on with the same bits, and no two things can be confused, so there is nothing to ask",
    "data_percent": "100, which is what none meant",
    "dataset_root": "none: the corpus of the demo is made by `synthesize`",
    "whisper_model": "the shipped base, so that nothing is fetched that nobody named",
    "num_experts": "none on main: one per style of the demo, else 8",
    "gating_batch_size": "a number, where the document looked it up in another file",
    "expert_batch_size": "a number, where the document looked it up in another file",
    "asr_batch_size": "a number, where the document looked it up in another file",
    "num_workers": "0, which is what none meant",
    "fp16": "none, which is auto",
    "clustering_algorithm": "balanced: on the demo the mixture is as good on it as by etiology, and it gives the number of experts asked for, none of them starved",
    "pooling": "mean_std: the spread of a low layer tells styles apart that its mean does not",
    "plot_method": "pca: umap compiles for seconds before it draws",
}


def step_module(name: str) -> ModuleType:
    return importlib.import_module(f"steps.{name}")


def fields(name: str) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(step_module(name).StepOptions)}


@pytest.mark.parametrize("name", NAMES)
def test_each_parameter_is_on_main_and_on_its_steps_under_its_own_name(name: str) -> None:
    assert name in fields("main")
    if name == "seed":
        wanted = set(ENTRY_POINTS) - {"register"} if "seed" not in fields("register") else set(ENTRY_POINTS)
        wanted = {step for step in wanted if step in STEP_NAMES}
    else:
        wanted = set(STEP_NAMES) if name in EVERYWHERE else set(STEPS[name].split())
    missing = {step for step in wanted if name not in fields(step)}
    assert not missing


def test_the_table_is_walked_to_its_end() -> None:
    assert len(ROWS) == 33 and set(NAMES) == set(STEPS) | EVERYWHERE


@pytest.mark.parametrize(("flag", "kind", "default"), ROWS, ids=NAMES)
def test_kind_and_default_are_the_documents_or_the_reason_is_stated(flag: str, kind: str, default: str) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    field = fields("main")[name]
    example = {"str": "mean", "path": "x/y", "int": "3", "float": "2.5", "flag": "true"}[kind]
    value = from_text(example, field.type)
    assert type(value) is {"str": str, "path": str, "int": int, "float": float, "flag": bool}[kind]
    same = field.default == (None if default in ("None", "auto") else from_text(default, field.type))
    assert same == (name not in OTHER_DEFAULTS) or name == "fp16", f"{name}: {field.default}, in the document {default}"


# ---- each changes something

CHANGED: dict[str, Any] = {
    "mode": "quick", "seed": 7, "data_percent": 10.0, "whisper_model": "v3", "num_experts": 3, "gating_batch_size": 64,
    "expert_batch_size": 4, "asr_batch_size": 2, "gradient_accumulation_steps": 8, "fp16": True, "no_fp16": True, "eval_every_n_epochs": 2,
    "clustering_algorithm": "spectral", "metric": "cosine", "no_reduce_experts": True, "min_experts": 3, "reduce": "none", "reduce_dim": 20,
    "pooling": "mean", "plot_method": "umap", "skip_pretraining": True, "dataset_root": "tests",
    "min_cluster_size": 9, "min_clusters": 4, "min_samples": 3, "allow_single_cluster": True, "hdbscan_algorithm": "generic", "max_retries": 1,
}  # fmt: skip
NO_RESULT = {"resume", "no_plot", "num_workers", "log_file", "save_every_n_epochs"}  # how a run goes, not what it finds
NEEDS: dict[str, dict[str, Any]] = {
    "dataset_root": {"corpus": "folder"}, "skip_pretraining": {"num_experts": 3},
    **dict.fromkeys(("min_cluster_size", "min_clusters", "min_samples", "allow_single_cluster", "hdbscan_algorithm", "max_retries"),
                    {"clustering_algorithm": "hdbscan"}),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NO_RESULT | {"mode"}])
def test_a_change_on_main_reaches_the_step_and_is_another_result(name: str) -> None:
    """The chain with the parameter changed is started with other options at that step, so that no old run is taken for it."""
    needed = NEEDS.get(name, {})
    before = needed | {"dataset_root": "steps"} if name == "dataset_root" else needed
    before = {} if name == "skip_pretraining" else before
    plain, changed = main.StepOptions(**before), main.StepOptions(**needed | {name: CHANGED[name]})
    main.check_stages(changed)
    steps = ["synthesize"] if name == "seed" else STEPS[name].split()
    step = step_module(
        next(each for each in steps if each != "pretrain" or name == "whisper_model")
    )  # the base is taken, not trained
    options = [pending_options(step, each) for each in (plain, changed)]
    assert getattr(options[1], name) == CHANGED[name] != getattr(options[0], name)
    digests = [fingerprint(step.__name__.rpartition(".")[2], each).digest for each in options if step is not prepare]
    assert len(set(digests)) == len(digests)


def test_quick_is_smaller_in_every_number_and_keeps_what_was_set() -> None:
    quick = main.StepOptions.asked(mode="quick", asr_epochs=7)
    assert quick.max_samples == main.SMALL["max_samples"] and quick.asr_epochs == 7


def test_what_says_how_a_run_goes_does_not_say_what_it_finds() -> None:
    """Another number of workers, a log file, no plots: the finished run of the same chain is taken over."""
    changed = {"resume": False, "no_plot": True, "num_workers": 3, "log_file": "x.log", "save_every_n_epochs": 1}
    given = {"prepare_run_id": "p", "pretrain_run_id": "b", "cluster_run_id": "c"}
    assert set(changed) == NO_RESULT
    assert (
        fingerprint("experts", experts.StepOptions(**given)).digest
        == fingerprint("experts", experts.StepOptions(**given, **changed)).digest
    )


def asr_options(**changes: Any) -> asr.StepOptions:
    return asr.StepOptions(prepare_run_id="p", pretrain_run_id="b", skip_pretraining=True, num_experts=3, **changes)


def test_sizes_and_steps_reach_the_trainer(tmp_path: Path) -> None:
    options = asr_options(asr_batch_size=2, gradient_accumulation_steps=8, num_workers=4, seed=9)
    arguments = training_arguments(plan_of(options, 1, options.asr_batch_size, 1e-3), 64, str(tmp_path))
    held = (
        arguments.per_device_train_batch_size,
        arguments.gradient_accumulation_steps,
        arguments.dataloader_num_workers,
        arguments.seed,
    )
    assert held == (2, 8, 4, 9)


@pytest.mark.parametrize(
    ("changes", "cpu"), [({}, "fp32"), ({"fp16": True}, "bf16"), ({"fp16": False}, "fp32"), ({"no_fp16": True}, "fp32")]
)
def test_half_precision_is_by_wish_or_by_machine(monkeypatch: pytest.MonkeyPatch, changes: dict, cpu: str) -> None:
    options = asr_options(**changes)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert precision(options) == cpu
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    assert precision(options) == ("fp32" if changes in ({"fp16": False}, {"no_fp16": True}) else "bf16")


def test_half_precision_wanted_and_forbidden_is_refused() -> None:
    with pytest.raises(ValueError, match="fp16=true and no_fp16=true"):
        asr_options(fp16=True, no_fp16=True)


def test_checkpoints_are_options_of_every_stage_that_trains() -> None:
    assert all(issubclass(step_module(step).StepOptions, CheckpointOptions) for step in STEPS["save_every_n_epochs"].split())


@pytest.mark.parametrize(
    ("name", "meant"), [("v2", "openai/whisper-large-v2"), ("v3", "openai/whisper-large-v3"), ("a/b", "a/b")]
)
def test_a_whisper_model_is_a_version_a_hub_name_or_a_folder(name: str, meant: str) -> None:
    assert resolve(name) == meant and pretrain.StepOptions(prepare_run_id="p", whisper_model=name).source == name


def test_a_model_is_taken_or_made_and_not_both(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whisper_model=v2 and init_from=scratch"):
        pretrain.StepOptions(whisper_model="v2", init_from="scratch", tokenizer="bpe")
    with pytest.raises(ValueError, match="whisper_model=.*no model there"):
        pretrain.StepOptions(whisper_model=str(tmp_path))


def test_the_root_of_the_corpus_is_the_synthetic_corpus_or_a_folder() -> None:
    with pytest.raises(ValueError, match="dataset_root=x: corpus=synthetic"):
        prepare.StepOptions(corpus="synthetic", synthesize_run_id="s", dataset_root="x")


@pytest.mark.parametrize("options_type", [embed.StepOptions, experts.StepOptions, asr.StepOptions])
def test_pooling_none_is_refused_with_its_reason(options_type: type) -> None:
    given = {"skip_pretraining": True, "num_experts": 3} if options_type is asr.StepOptions else {}
    given |= {field.name: "x" for field in dataclasses.fields(options_type) if is_required(field)}
    with pytest.raises(ValueError, match="pooling=none: leaves a vector for each frame"):
        options_type(pooling="none", **given)


# ---- clustering, each option by what it does

RNG = np.random.default_rng(0)
BLOBS = np.repeat(RNG.normal(size=(5, 8)) * 6, 24, axis=0) + RNG.normal(size=(120, 8))
BLOBS[::17] += RNG.normal(size=BLOBS[::17].shape) * 15
IDS = [f"u{i:03d}" for i in range(120)]
DENSE = {"clustering_algorithm": "hdbscan", "cluster_unit": "utterance", "num_experts": 5, "min_clusters": 4, "reduce_dim": 6}


def clustered(**options: Any) -> UtteranceClusters:
    return UtteranceClusters(ClusteringOptions(**DENSE | options)).fit(BLOBS, IDS)


def n_attempts(**options: Any) -> int:
    return len(density_partition(BLOBS, "euclidean", ClusteringOptions(**DENSE | options)).attempts)


def test_options_of_the_retries_do_what_they_say() -> None:
    assert clustered(min_cluster_size=9).attempts_[0]["min_cluster_size"] == 9
    assert clustered(min_samples=2).attempts_[0]["min_samples"] == 2
    assert n_attempts(min_clusters=2) == 1 < n_attempts(min_clusters=60, max_retries=3) == 4
    assert n_attempts(min_clusters=60, max_retries=0) == 1


def test_each_hdbscan_option_reaches_hdbscan(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    real = density_partition.__globals__["hdbscan"].HDBSCAN
    monkeypatch.setattr("moe.clustering.density.hdbscan.HDBSCAN", lambda **given: seen.append(given) or real(**given))
    clustered(hdbscan_algorithm="prims_kdtree", allow_single_cluster=True, metric="manhattan", min_samples=3, min_cluster_size=7)
    wanted = {
        "algorithm": "prims_kdtree",
        "allow_single_cluster": True,
        "metric": "manhattan",
        "min_samples": 3,
        "min_cluster_size": 7,
    }
    assert {name: seen[0][name] for name in wanted} == wanted


def test_fewer_clusters_than_wanted_are_refused_merged_or_found_otherwise() -> None:
    few = {"min_cluster_size": 40, "max_retries": 0, "min_samples": 30}
    with pytest.raises(ValueError, match="no_reduce_experts=true"):
        clustered(no_reduce_experts=True, num_experts=7, **few)
    assert clustered(min_experts=5, **few).algorithm_ == "spectral" and clustered(num_experts=2).n_clusters_ == 2


def test_reduction_and_metric_change_the_space() -> None:
    sizes = [fitted_points(BLOBS, ClusteringOptions(**each))[1].shape[1] for each in ({"reduce": "none"}, {"reduce_dim": 3})]
    assert sizes == [8, 3]
    unit = fitted_points(BLOBS, ClusteringOptions(metric="cosine"))[1]
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0)


# ---- presets

DOCUMENTS = {
    "a100-40gb": "--resume --fp16 --gating-batch-size 512 --expert-batch-size 4 --asr-batch-size 2 --gradient-accumulation-steps 8 "
    "--num-workers 4 --eval-every-n-epochs 2 --save-every-n-epochs 5",
    "a100-80gb": "--resume --fp16 --gating-batch-size 1024 --expert-batch-size 8 --asr-batch-size 4 --gradient-accumulation-steps 8 "
    "--num-workers 4 --eval-every-n-epochs 2 --save-every-n-epochs 5",
    "h100-80gb": "--resume --fp16 --gating-batch-size 2048 --expert-batch-size 12 --asr-batch-size 8 --gradient-accumulation-steps 4 "
    "--num-workers 8 --eval-every-n-epochs 2 --save-every-n-epochs 5",
    "production": "--resume --no-plot --fp16 --gating-batch-size 512 --expert-batch-size 4 --asr-batch-size 2 "
    "--gradient-accumulation-steps 8 --num-workers 4 --eval-every-n-epochs 5 --save-every-n-epochs 10",
}  # as in the document's "Recommended Settings by GPU", each with `--mode full` and the log file


def preset(name: str) -> dict[str, Any]:
    return file_values(main.StepOptions, str(project_root() / "presets" / f"{name}.yaml"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_preset_holds_exactly_what_the_document_recommends(name: str) -> None:
    wanted: dict[str, Any] = {"mode": "full", "log_file": "Runs/full/training.log"}
    for part in DOCUMENTS[name].split("--")[1:]:
        flag, _, value = part.strip().partition(" ")
        wanted[flag.replace("-", "_")] = int(value) if value else True
    assert preset(name) == wanted
    main.check_stages(main.StepOptions(corpus="sap", dataset_root="x", **preset(name) | {"whisper_model": "v2"}))


def test_the_preset_of_two_cores_is_the_default_written_out() -> None:
    assert preset("two-cores") == {name: getattr(main.StepOptions(), name) for name in preset("two-cores")}
    assert set(preset("two-cores")) == set(preset("a100-40gb"))


def test_the_preset_of_document_004_is_taken_by_the_chain_and_changes_what_it_names() -> None:
    values = preset("document-004")
    options = main.StepOptions(corpus="openslr", dataset_root="x", **values)
    main.check_stages(options)
    step = pending_options(ctc, options)
    assert all(getattr(step, name) == value for name, value in values.items() if hasattr(step, name))
    assert step.is_changed("ctc_learning_rate") and step.augmentation is not None and step.add_adapter


def test_the_preset_of_document_003_is_taken_by_the_chain_and_changes_what_it_names() -> None:
    values = preset("document-003")
    options = main.StepOptions(dataset_root="x", plain_domain="dyslexic", **values)
    main.check_stages(options)
    step = pending_options(domain, options)
    assert all(getattr(step, name) == value for name, value in values.items() if hasattr(step, name))
    assert step.is_changed("domain_learning_rate") and step.warmup_steps == 2000 and step.lr_scheduler_type == "cosine"


def test_the_words_of_the_documents_are_answered_with_ours() -> None:
    known = fields("main")
    for name, ours in OURS.items():
        assert name not in known and set(ours) <= set(known), name
        assert all(word in unknown(name.replace("_", "-"), known) for word in ours)
    assert "domain_learning_rate" in unknown("learning_rate", fields("domain"))
    assert "ctc_learning_rate" not in unknown("learning_rate", fields("domain"))


def test_every_preset_is_tested() -> None:
    assert {path.stem for path in (project_root() / "presets").iterdir()} == set(DOCUMENTS) | {
        "two-cores",
        "document-003",
        "document-004",
        "steermoe",
        "nepali",
        "sweep",
    }


def test_a_cluster_step_without_plots_has_no_projection() -> None:
    with pytest.raises(ValueError, match="plot_method=umap: no_plot=true"):
        cluster.StepOptions(prepare_run_id="p", embed_run_id="e", plot_method="umap", no_plot=True)


# ---- no_plot: no step draws when told not to

DRAWING = [name for name in sorted(path.stem for path in (project_root() / "steps").glob("*.py"))]


def unguarded(source: str) -> list[str]:
    """Calls of functions from `analysis.plots` that lie neither in an `if` about plots nor in a function that is only called in one."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("analysis.plots")
    ]
    drawers = {alias.asname or alias.name for node in imports for alias in node.names} - {"colour_of", "marker_of"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]

    def returns_before(function: ast.FunctionDef, line: int) -> bool:
        early = [
            each
            for each in function.body
            if isinstance(each, ast.If) and isinstance(each.body[-1], ast.Return) and each.lineno < line
        ]
        return any("plot" in ast.unparse(each.test) for each in early)

    def is_guarded(node: ast.AST, seen: frozenset[str] = frozenset()) -> bool:
        line = node.lineno
        while node in parents:
            node = parents[node]
            if isinstance(node, ast.If) and "plot" in ast.unparse(node.test):
                return True
            if isinstance(node, ast.FunctionDef) and returns_before(node, line):
                return True
            if isinstance(node, ast.FunctionDef):
                callers = [call for call in calls if call.func.id == node.name]
                return node.name not in seen and bool(callers) and all(is_guarded(call, seen | {node.name}) for call in callers)
        return False

    return [f"{call.func.id}, line {call.lineno}" for call in calls if call.func.id in drawers and not is_guarded(call)]


@pytest.mark.parametrize("name", DRAWING)
def test_no_plot_spares_every_plot_of_a_step(name: str) -> None:
    assert unguarded((project_root() / "steps" / f"{name}.py").read_text(encoding="utf-8")) == []


def test_a_forgotten_plot_is_found() -> None:
    head = "from analysis.plots.x import draw\n"
    assert unguarded(head + "def a(o):\n    draw()\n    if not o.no_plot:\n        draw()\n") == ["draw, line 3"]
    assert unguarded(head + "def a(o):\n    draw()\n    if o.no_plot:\n        return\n    draw()\n") == ["draw, line 3"]
    assert unguarded(head + "def a(o):\n    if not o.no_plot:\n        b()\ndef b():\n    draw()\n") == []


def test_a_step_that_draws_can_be_told_not_to() -> None:
    for name in ENTRY_POINTS:
        source = (project_root() / "steps" / f"{name}.py").read_text(encoding="utf-8")
        assert "analysis.plots" not in source or "no_plot" in fields(name), name
