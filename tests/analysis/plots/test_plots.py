"""Every figure is drawn from a small table, says what it is and of how many, and leaves no global state behind."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from analysis.calibration import confusion_table, expected_calibration_error, reliability
from analysis.error_rates import count_errors, rates_by
from analysis.gate_choices import speaker_decisions
from analysis.plots import canvas, clusters, comparison, corpus, differences, errors, gate, profiles, routing, training
from analysis.plots.canvas import COLOURS, colour_of, marker_of
from analysis.profiles import expert_profiles, group_shares, standard_scores
from analysis.report import figure_png
from analysis.routing import load_by

NOTE = "synthetic speech"


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    rows = []
    for number in range(60):
        weights = generator.dirichlet(np.ones(3))
        rows.append({"utterance_id": f"u{number:02d}", "speaker": f"s{number % 6}",
                     "etiology": ["ALS", "Stroke", None][number % 3], "split": ["train", "dev", "test"][number % 3],
                     "duration_s": 1.0 + number % 5, "reference": "a b c d",
                     "hypothesis": ["a b c d", "a x", ""][number % 3], "cluster": number % 4 - 1, "expert": int(weights.argmax()),
                     **{f"weight_{i}": w for i, w in enumerate(weights)}})  # fmt: skip
    return pd.DataFrame(rows)


def history():
    return pd.DataFrame({"epoch": [1, 2, 3], "train/loss": [2.0, 1.0, 0.5], "dev/wer": [0.5, np.nan, 0.2],
                         "entropy": [1, 0.8, 0.5], "expert_0": [0.5, 0.6, 0.7], "expert_1": [0.5, 0.4, 0.3]})  # fmt: skip


def all_figures(table):
    counted = count_errors(table)
    generator = np.random.default_rng(1)
    probabilities, labels = generator.dirichlet(np.ones(3), 60), generator.integers(0, 3, 60)
    rates = rates_by(counted, "etiology")
    systems = pd.concat([rates.assign(system="base"), rates.assign(system="mixture")])
    overall = rates_by(counted).assign(system="base", n_trainable=[np.nan])
    found = expert_profiles(counted)
    yield corpus.durations_figure(table, NOTE)
    yield corpus.words_figure(table, NOTE)
    yield corpus.amounts_figure(table, NOTE)
    yield corpus.spectrograms_figure([np.random.rand(8, 20)] * 4, list("abcd"), 0.01, note=NOTE)
    yield clusters.embedding_map(generator.normal(size=(60, 2)), table["cluster"], table["etiology"], note=NOTE)
    yield clusters.cluster_heatmap(pd.crosstab(table["cluster"], table["etiology"]), note=NOTE)
    yield clusters.sweep_figure(pd.DataFrame({"n_experts": [2, 3], "silhouette": [0.1, 0.2]}), 3, note=NOTE)
    yield gate.reliability_figure(
        reliability(probabilities, labels), expected_calibration_error(probabilities, labels), note=NOTE
    )
    yield gate.reliability_figure(
        reliability(probabilities, labels), 0.1, note=NOTE, rejected=(reliability(probabilities**2, labels), 0.2)
    )
    yield gate.confusion_figure(confusion_table(labels, probabilities.argmax(1)), note=NOTE)
    people = pd.DataFrame({"speaker": [f"s{i % 50}" for i in range(60)], "etiology": "als", "cluster": labels})
    yield gate.speakers_figure(speaker_decisions(people, probabilities), note=NOTE)
    yield training.training_curves(history(), {"loss": ["train/loss"], "WER": ["dev/wer"]}, best=3, note=NOTE)
    yield training.overlaid_curves({"a": history(), "b": pd.DataFrame({"epoch": [1]})}, "dev/wer", note=NOTE)
    yield routing.load_by_epoch(history(), note=NOTE)
    yield routing.load_by_epoch(history().assign(temperature=[3.0, 2.0, 1.0], top_k=[2, 2, 1]), note=NOTE)
    yield routing.load_heatmap(load_by(table), note=NOTE)
    yield routing.routing_over_epochs({epoch: load_by(table) for epoch in range(20)}, note=NOTE)
    yield routing.ablation_figure(rates.assign(routing=["learned", "oracle", "random"]), note=NOTE)
    yield errors.forest_figure(rates, note=NOTE)
    yield errors.systems_figure(systems, note=NOTE)
    yield errors.expert_wer_heatmap(pd.DataFrame({"ALS": [0.1, np.nan], "Stroke": [0.3, 0.2]}, index=["e0", "e1"]), note=NOTE)
    yield comparison.overall_figure(overall, note=NOTE)
    yield comparison.tradeoff_figure(overall, note=NOTE)
    yield comparison.tradeoff_figure(pd.concat([overall.assign(n_trainable=n) for n in (0, 10_000)]), note=NOTE)
    yield profiles.profiles_figure(found, group_shares(counted), standard_scores(found, counted), note=NOTE)


def texts_of(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.filterwarnings("error::UserWarning")
def test_every_figure_renders_with_its_title_and_its_note(table):
    for figure in all_figures(table):
        assert isinstance(figure, Figure) and figure.get_suptitle()
        assert figure.get_supxlabel() == NOTE
        assert figure_png(figure).startswith(b"\x89PNG")


def test_figures_fit_a_browser_column(table):
    assert {figure.get_figwidth() * figure.dpi for figure in all_figures(table)} == {900.0}


def test_numbers_of_utterances_and_unknown_groups_are_said(table):
    text = texts_of(corpus.amounts_figure(table))
    assert "n = 60, 6 speakers" in text and "unknown" in text
    assert "n = 20" in texts_of(errors.forest_figure(rates_by(count_errors(table), "etiology")))


def test_a_map_shows_noise_and_counts_every_point(table):
    figure = clusters.embedding_map(np.zeros((60, 2)), table["cluster"], table["etiology"].fillna("unknown"))
    assert "noise (15)" in texts_of(figure) and "3 clusters, 15 noise" in texts_of(figure)
    drawn = [len(points.get_offsets()) for axis in figure.axes[:2] for points in axis.collections]
    assert sum(drawn) == 120


def test_a_map_says_where_noise_was_sent_and_shows_it_in_the_colour_of_that_cluster(table):
    groups, labels = table["etiology"].fillna("unknown"), table["cluster"].to_numpy()
    sent_to = np.where(labels < 0, 1, labels)
    figure = clusters.embedding_map(np.zeros((60, 2)), labels, groups, sent_to=sent_to, fate="nearest")
    noise = figure.axes[0].collections[0]
    assert "noise → nearest (15)" in texts_of(figure)
    assert {to_hex(colour).upper() for colour in noise.get_edgecolors()[:, :3]} == {colour_of(1)}


def test_long_utterances_left_out_of_the_histogram_are_counted(table):
    long = table.assign(duration_s=[1000.0, *table["duration_s"].iloc[1:]])
    shown = texts_of(corpus.durations_figure(pd.concat([table] * 8 + [long])))
    assert "1 longer than" in shown


def test_words_are_counted_in_whole_numbers(table):
    figure = corpus.words_figure(pd.concat([table, table.assign(reference="a b")]))
    figure.draw_without_rendering()
    assert all(tick == round(tick) for tick in figure.axes[0].get_xticks())


def test_a_system_of_unknown_cost_is_named_and_not_dropped_unsaid(table):
    rates = rates_by(count_errors(table)).assign(system="mystery", n_trainable=np.nan)
    assert "not known: mystery" in texts_of(comparison.tradeoff_figure(rates))
    assert "not recorded: b" in texts_of(training.overlaid_curves({"a": history(), "b": pd.DataFrame({"epoch": [1]})}, "dev/wer"))


@pytest.mark.parametrize(
    ("is_calibrated", "said"),
    [(False, "not calibrated as kept: 10.0 %, calibrated: 20.0 %"), (True, "calibrated as kept: 10.0 %, not calibrated: 20.0 %")],
)
def test_a_reliability_picture_says_which_gate_is_kept(is_calibrated: bool, said: str) -> None:
    probabilities, labels = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), np.array([0, 1, 1])
    tables = (reliability(each, labels) for each in (probabilities, np.full((3, 2), 0.5)))
    figure = gate.reliability_figure(next(tables), 0.1, rejected=(next(tables), 0.2), is_calibrated=is_calibrated)
    assert f"calibration error, {said}" in " ".join(texts_of(figure).split())
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels[:2] == [f"{'not ' * is_calibrated}calibrated, not kept", f"{'not ' * (not is_calibrated)}calibrated, kept"]


def test_a_cost_says_how_far_two_measurements_of_it_may_lie_apart(table):
    rates = pd.concat([rates_by(count_errors(table)).assign(system=str(n), real_time_factor=n) for n in (0.1, 0.2)])
    label = comparison.tradeoff_figure(rates, "real_time_factor", noise=0.25).axes[0].get_xlabel()
    assert "of one processor core, or of the accelerator; two measurements differ by up to 25%" in " ".join(label.split())


def test_a_forest_of_many_groups_shows_the_worst_and_says_so():
    rates = pd.DataFrame({"group": [f"s{i}" for i in range(90)], "wer": np.linspace(0, 1, 90), "low": np.nan, "high": np.nan,
                          "n_utterances": 5, "n_speakers": 1, "small": True})  # fmt: skip
    text = texts_of(errors.forest_figure(rates))
    assert "the 60 highest of 90" in text and "s89 " in text and "s0 " not in text


def test_lines_are_called_by_what_tells_them_apart():
    assert [training.line_name(name, ["wer", "wer/expert_0"]) for name in ("wer", "wer/expert_0")] == ["all", "expert 0"]
    assert [training.line_name(name, ["train/kl", "dev/kl"]) for name in ("train/kl", "dev/kl")] == ["train", "dev"]
    assert training.line_name("cer", ["wer", "cer"]) == "CER"
    assert training.line_name("dev/wer", ["dev/wer"]) == "dev/wer" and training.line_name("a/b", ["a/b", "c/d"]) == "a/b"


def test_a_curve_begins_with_what_is_known_of_the_start_and_a_dot_is_no_curve():
    one = training.from_start(pd.DataFrame([{"epoch": 0, "wer": 0.3, "loss": 1.0}]), {"wer": 0.5})
    assert one["epoch"].tolist() == [0, 1] and one["wer"].tolist() == [0.5, 0.3]
    assert list(training.drawable(one, {"dev WER": ["wer"], "dev loss": ["loss"]})) == ["dev WER"]
    assert training.drawable(one, {"dev rates": ["loss", "wer"]}) == {"dev rates": ["wer"]}
    assert [training.in_words(name) for name in ("dev/wer", "train/loss", "epoch")] == ["WER on dev", "loss on train", "epoch"]


def test_a_stage_is_marked_where_it_begins_and_a_system_keeps_its_colour():
    lines = pd.DataFrame({"epoch": [1, 2, 2, 3], "dev/wer": [0.4, 0.3, 0.35, 0.2], "stage": ["experts", None, "asr", None]})
    figure = training.overlaid_curves({"MoE": lines}, "dev/wer", places={"MoE": 2})
    assert "joint training begins" in texts_of(figure) and "expert training begins" not in texts_of(figure)
    assert figure.axes[0].lines[0].get_color() == canvas.colour_of(2)


@pytest.mark.parametrize("n_before", [1, 5, 9])
def test_the_name_of_a_stage_stands_within_the_picture(n_before):
    lines = pd.DataFrame({"epoch": range(1, 11), "dev/loss": 0.5, "stage": [None] * 10})
    lines.loc[[0, n_before], "stage"] = ["experts", "asr"]
    figure = training.overlaid_curves({"MoE": lines}, "dev/loss")
    figure.draw_without_rendering()
    axis = figure.axes[0]
    (name,) = (text for text in axis.texts if "joint" in text.get_text())
    assert axis.get_window_extent().x0 <= name.get_window_extent().x0
    assert name.get_window_extent().x1 <= axis.get_window_extent().x1


@pytest.mark.parametrize("column", ["dev/wer", "dev/loss"])
def test_a_stage_begins_where_the_one_before_it_ends_whether_or_not_its_start_is_known(column):
    """Each metric has rows of its own: the loss of a stage's start is not known."""
    wer = pd.DataFrame({"epoch": [0, 1, 2, 2, 3], "dev/wer": [0.5, 0.4, 0.3, 0.35, 0.2],
                        "stage": ["experts", None, None, "asr", None]})  # fmt: skip
    loss = pd.DataFrame({"epoch": [1, 2, 3], "dev/loss": [0.5, 0.4, 0.3], "stage": ["experts", None, "asr"]})
    axis = training.overlaid_curves({"MoE": pd.concat([wer, loss])}, column).axes[0]
    assert [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"] == [2]
    assert axis.get_xlabel() == ("epochs of all stages (0: the start)" if column == "dev/wer" else "epochs of all stages")


@pytest.mark.parametrize("n_words", [1, 12, 40])
def test_a_title_of_any_length_stands_within_the_picture(n_words):
    figure, _ = canvas.new_figure(" ".join(["calibration"] * n_words))
    figure.draw_without_rendering()
    box = figure.get_window_extent()
    title = figure._suptitle.get_window_extent()
    assert box.x0 <= title.x0 and title.x1 <= box.x1 and title.y1 <= box.y1


def test_a_panel_of_one_line_has_the_systems_colour_and_no_key():
    figure = training.training_curves(history(), {"dev WER": ["dev/wer"]}, place=2)
    assert figure.axes[0].lines[0].get_color() == colour_of(2) and figure.axes[0].get_legend() is None
    assert figure.axes[0].get_xlabel() == "epoch"
    started = training.from_start(history(), {"dev/wer": 0.6})
    assert training.training_curves(started, {"dev WER": ["dev/wer"]}).axes[0].get_xlabel() == "epoch (0: the start)"


def test_panels_have_one_axis_and_lines_the_colours_of_what_they_show():
    table = pd.DataFrame({"epoch": [0, 1, 2], "wer": [0.5, 0.4, 0.3], "cer": [0.3, 0.2, 0.1], "loss": [np.nan, 2.0, 1.0]})
    parts = table.assign(**{"wer/expert_0": 0.1, "wer/expert_1": 0.2})
    figure = training.training_curves(parts, {"rates": ["wer", "cer"], "by part": ["wer", "wer/expert_0", "wer/expert_1"],
                                              "loss": ["loss"]}, place=2)  # fmt: skip
    limits = {axis.get_xlim() for axis in figure.axes}
    assert len(limits) == 1 and limits.pop()[0] < 0
    colours = [[line.get_color() for line in axis.lines] for axis in figure.axes]
    black = COLOURS[-1]
    assert colours == [[COLOURS[2], black], [black, COLOURS[0], COLOURS[1]], [COLOURS[2]]]


def test_a_cost_begins_at_zero_and_a_count_has_its_unit(table):
    rates = pd.concat([rates_by(count_errors(table)).assign(system=str(n), n_total=n) for n in (1_850_000, 2_110_000)])
    axis = comparison.tradeoff_figure(rates, "n_total").axes[0]
    assert axis.get_xlim()[0] == 0 and axis.xaxis.get_major_formatter()(1_500_000) == "1.5 M"


def test_many_lines_are_named_once_beside_the_panels():
    many = history().assign(**{f"wer/expert_{e}": [0.5, 0.4, 0.1 * e] for e in range(6)}, wer=0.3)
    names = ["wer", *(f"wer/expert_{e}" for e in range(6))]
    figure = training.training_curves(many, {"dev WER": names, "again": names})
    assert [axis.get_legend() is not None for axis in figure.axes] == [False, True]


@pytest.mark.parametrize("n_epochs", [1, 2, 3])
def test_epochs_are_whole_numbers_on_the_axis_also_where_there_is_one(n_epochs):
    """One epoch, the default of joint training, had ticks at 0.015."""
    few = history().head(n_epochs)
    for figure in (training.training_curves(few, {"loss": ["train/loss"]}), routing.load_by_epoch(few)):
        low, high = figure.axes[0].get_xlim()
        ticks = [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high]
        assert ticks == list(range(1, n_epochs + 1))


def test_of_many_speakers_the_least_decided_are_shown_and_the_picture_says_so():
    people = pd.DataFrame({"speaker": [f"s{i:02}" for i in range(50)], "etiology": "als"})
    sure = np.linspace(0.5, 0.99, 50)
    text = texts_of(gate.speakers_figure(speaker_decisions(people, np.stack([sure, 1 - sure], 1))))
    assert "the 40 least decided of 50" in text and "s00" in text and "s49" not in text


def test_etiologies_that_happen_to_be_as_many_as_experts_have_no_diagonal():
    counts = pd.DataFrame([[3, 1], [0, 2]], index=pd.Index(["als", "stroke"], name="etiology"), columns=[0, 1])
    assert "diagonal" not in texts_of(gate.confusion_figure(counts))
    assert "diagonal" in texts_of(gate.confusion_figure(counts.set_axis([0, 1])))


def test_colours_and_markers_tell_sixteen_categories_apart():
    assert len({(colour_of(i), marker_of(i)) for i in range(2 * len(COLOURS))}) == 2 * len(COLOURS)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: clusters.embedding_map(np.zeros((3, 3)), np.zeros(3), np.zeros(3)), r"\(3, 3\)"),
        (lambda: training.training_curves(history(), {"loss": ["test/loss"]}), "test/loss"),
        (lambda: corpus.spectrograms_figure([], [], 0.01), "0 spectrograms"),
        (lambda: routing.routing_over_epochs({}), "at least one epoch"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_reason(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_drawing_neither_imports_pyplot_nor_chooses_a_backend():
    code = (
        "import sys; from analysis.plots import canvas, clusters, comparison, corpus, errors, gate, profiles, routing, training;"
        "from analysis.report import figure_png; figure_png(canvas.new_figure('t')[0]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_differences_stand_in_the_order_of_their_condition_with_their_intervals():
    table = pd.DataFrame(
        {"condition": ["n", "n", "s"], "value": [30, 8, 0.5], "difference": [-0.02, 0.01, 0.0],
         "low": [-0.03, 0.0, -0.01], "high": [-0.01, 0.02, 0.01]}
    )  # fmt: skip
    first, second = differences.differences_figure(table, {"n": "utterances", "s": "strength"}, "Mixture minus one LoRA").axes
    assert [text.get_text() for text in first.get_xticklabels()] == ["8", "30"]
    line = next(each for each in first.lines if len(each.get_xdata()) == 2 and each.get_marker() == "o")
    np.testing.assert_allclose(line.get_ydata(), [1, -2])
    assert second.get_xlabel() == "strength" and "points" in first.get_ylabel()
    assert first.get_ylim() == second.get_ylim() and first.get_ylim()[0] < -3 and first.get_ylim()[1] > 2


LONG = "Whisper-MoE · adapter_rank=none, asr_learning_rate=0.001, expert_learning_rate=0.001, shared_share=0.57"


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", ["base", LONG, "x" * 120])
def test_names_of_any_length_leave_the_axes_room_and_stand_within_the_picture(table, name):
    counted = count_errors(table)
    rates, names = rates_by(counted, "etiology"), [f"{name}, seed {seed}" for seed in range(6)]
    systems = pd.concat([rates.assign(system=each) for each in names])
    overall = pd.concat([rates_by(counted).assign(system=each, n_trainable=number + 1.0) for number, each in enumerate(names)])
    course = pd.DataFrame({"epoch": [0, 1, 2], "dev/wer": [0.5, 0.3, 0.2]})
    for figure in (
        comparison.overall_figure(overall),
        comparison.tradeoff_figure(overall),
        errors.systems_figure(systems),
        errors.forest_figure(rates.assign(group=names[: len(rates)])),
        corpus.amounts_figure(table.assign(etiology=table["etiology"].fillna("unknown") + f" {name}")),
        training.overlaid_curves(dict.fromkeys(names, course), "dev/wer"),
    ):
        figure_png(figure)
        axis, whole = figure.axes[0], figure.bbox
        shown = axis.get_window_extent()
        assert sum(each.get_window_extent().width for each in figure.axes) > 0.35 * whole.width
        rows = [text.get_window_extent() for text in axis.get_yticklabels() if text.get_text()]
        rows = sorted((box for box in rows if shown.y0 <= (box.y0 + box.y1) / 2 <= shown.y1), key=lambda box: box.y0)
        named = [text.get_window_extent() for text in axis.get_legend().get_texts()] if axis.get_legend() else []
        assert all(box.x0 >= 0 and box.x1 <= whole.width and box.y0 >= 0 and box.y1 <= whole.height for box in [*rows, *named])
        assert all(below.y1 <= above.y0 + 1 for below, above in zip(rows, rows[1:], strict=False)), "no row covers the next"


def test_a_name_keeps_its_own_lines():
    assert canvas.wrapped("expert 0\n12 utterances, 3 speakers") == "expert 0\n12 utterances, 3 speakers"
    assert max(map(len, canvas.wrapped(f"expert 0\n{LONG}").split("\n"))) <= canvas.NAME_WIDTH
