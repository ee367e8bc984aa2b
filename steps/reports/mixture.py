"""What `asr` says about a mixture: its training, its routing epoch by epoch, what each expert is for, and utterances to listen to.

All of it is measured on the dev split; the test split is read by `evaluate` alone.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch

from analysis.groups import several
from analysis.pages.clips import clip_of
from analysis.pages.exemplars_page import exemplars_html
from analysis.plots.profiles import profiles_figure
from analysis.plots.routing import load_by_epoch, load_heatmap, routing_over_epochs
from analysis.profiles import exemplars, expert_profiles, group_shares, standard_scores
from analysis.routing import load_by
from moe.audio.sampling import SAMPLE_RATE
from moe.corpora.locations import Root
from moe.corpora.manifest import read_utterance
from moe.corpora.summaries import loudness_of
from moe.experts.joint_training import TrainedMixture
from moe.routing.gate import Gate, probabilities
from moe.routing.weights import top_k_weights
from moe.system import System
from steps.inputs.corpus import Prepared
from steps.reports.training import log_curves
from steps.tracking.names import file_name
from steps.tracking.step_run import StepRun

N_EXEMPLARS, LONGEST_CLIP_S = 4, 15.0
FACTS = ("utterance_id", "speaker", "etiology", "severity", "duration_s", "reference")


def log_training(step: StepRun, trained: TrainedMixture, system: System, note: str) -> None:
    """Metrics by epoch as a table and as pictures: curves, load with entropy and temperature, routing."""
    history = pd.DataFrame(trained.history)
    if not len(history):
        return
    step.log_table(history, "tables/history.json")
    if not step.plots:
        return
    panels = {"dev WER": ["wer"], "dev loss": ["loss"], "gate's entropy (1: undecided)": ["routing_entropy"]}
    log_curves(step, "wer", trained, panels, system, note)
    log_routing_by_epoch(step, history, note)


def log_routing_by_epoch(step: StepRun, history: pd.DataFrame, note: str) -> None:
    """Expert load and entropy on dev after every epoch, counted from 1, as pictures; one epoch is no course."""
    if len(history) < 2:
        return
    history = history.assign(epoch=history["epoch"] + 1)
    names = {name: name.removeprefix("load/") for name in history.columns if name.startswith("load/") and name.count("/") == 1}
    by_epoch = history.rename(columns=names | {"routing_entropy": "entropy"})
    step.log_figure(load_by_epoch(by_epoch, "Expert load on dev by epoch", note), "plots/load_by_epoch.png")
    by_etiology = loads_by_epoch(history)
    if len(by_etiology[int(history["epoch"].iloc[0])]) > 1:
        title = "Routing of dev over the epochs (rows sum to 1; darker: more)"
        step.log_figure(routing_over_epochs(by_etiology, title, note), "plots/routing_over_epochs.png")


def loads_by_epoch(history: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Expert load by etiology for each epoch: rows etiologies, columns `expert_0` … in the order of the experts."""
    names = [name.removeprefix("load/").rpartition("/") for name in history.columns if name.startswith("load/")]
    groups = sorted({group for group, slash, _ in names if slash})  # the name of an etiology may hold slashes itself
    experts = sorted({expert for _, slash, expert in names if slash}, key=lambda name: int(name.rpartition("_")[2]))
    return {
        int(row["epoch"]): pd.DataFrame(
            [[row[f"load/{group}/{expert}"] for expert in experts] for group in groups], groups, experts
        )
        for row in history.to_dict("records")
    }


def log_experts(step: StepRun, routed: pd.DataFrame, prepared: Prepared, share_audio: bool) -> None:
    """What each expert of the kept mixture is for, as tables and pictures, and the utterances its gate is surest of, to listen to.

    Args:
        routed: of `routed_rows`.
        share_audio: whether recordings may be put into the store.
    """
    profiles, chosen = expert_profiles(routed), exemplars(routed, N_EXEMPLARS)
    step.log_table(profiles.astype(str), "tables/expert_profiles.json")
    if step.plots:
        scores = standard_scores(profiles, routed)
        figure = profiles_figure(profiles, group_shares(routed), scores, "What each expert is for (dev)", prepared.note)
        step.log_figure(figure, "plots/expert_profiles.png")
    if step.plots and several(routed):
        step.log_figure(
            load_heatmap(load_by(routed), "Expert load by etiology (dev)", prepared.note), "plots/load_by_etiology.png"
        )
    step.log_table(chosen[["expert", "weight", *FACTS]].astype(str), "tables/exemplars.json")
    waveforms = {row["utterance_id"]: _clip(prepared, row) for row in chosen.to_dict("records")} if share_audio else {}
    clips = {name: clip_of(waveform) for name, waveform in waveforms.items()} if share_audio else None
    note = " · ".join(filter(None, ["dev speakers, none of whom was trained on", prepared.note]))
    step.log_text(exemplars_html(chosen, profiles, clips, note=note), "exemplars.html")
    if not share_audio:
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name, row in zip(clip_names(chosen), chosen.to_dict("records"), strict=True):
            path = Path(temporary) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, waveforms[row["utterance_id"]], SAMPLE_RATE, subtype="PCM_16")
        step.log_folder(Path(temporary), "exemplars")


def routed_rows(gate: Gate, dev: pd.DataFrame, vectors: np.ndarray, top_k: int, root: Root) -> pd.DataFrame:
    """The utterances as the gate decides on their vectors (N, D): its probabilities, the weights of the top k, the first expert, words and loudness."""
    gated = probabilities(gate, vectors)  # (N, E)
    weights = top_k_weights(torch.from_numpy(gated).log(), min(top_k, gated.shape[1]))[0].weights.numpy()
    table = dev[[name for name in FACTS if name in dev]].reset_index(drop=True)
    table = table.assign(
        n_words=table["reference"].str.split().str.len(), loudness_db=loudness_of(dev, root), expert=gated.argmax(1)
    )
    for name, values in (("weight", weights), ("probability", gated)):
        table = table.join(pd.DataFrame(values, columns=[f"{name}_{expert}" for expert in range(values.shape[1])]))
    return table


def clip_names(chosen: pd.DataFrame) -> list[str]:
    """A file for each exemplar: a folder by expert, numbered by rank, with the utterance's id."""
    ranks = chosen.groupby("expert").cumcount() + 1
    ids = [file_name(str(name)) for name in chosen["utterance_id"]]
    return [f"expert_{expert}/{rank}_{name}.wav" for expert, rank, name in zip(chosen["expert"], ranks, ids, strict=True)]


def _clip(prepared: Prepared, row: dict) -> np.ndarray:
    known = prepared.manifest.set_index("utterance_id").loc[row["utterance_id"]].to_dict()
    return read_utterance(prepared.root, known)[: round(LONGEST_CLIP_S * SAMPLE_RATE)]
