"""Tables as Markdown and HTML, and pages that stand alone."""

import numpy as np
import pandas as pd
import pytest

from analysis.plots.canvas import new_figure
from analysis.report import cell, html_page, html_table, markdown_table, percent, percent_interval


def test_a_markdown_table_by_hand():
    table = pd.DataFrame({"system": ["a|b", "c\nd"], "wer": [0.12345, np.nan], "n": [12345, 2]})
    assert markdown_table(table) == (
        "| system | wer | n |\n| --- | ---: | ---: |\n| a\\|b | 0.123 | 12\u202f345 |\n| c d | – | 2 |\n"
    ).replace("\u202f", cell(12345)[2])


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (np.nan, "–"), (True, "yes"), (np.bool_(False), "no"), (7, "7"), (0.5, "0.5"), ("x", "x")]
)
def test_cells_read_as_people_write(value, text):
    assert cell(value) == text


def test_rates_are_written_in_percent_with_their_interval():
    assert percent(0.1234) == "12.3 %" and percent(float("nan")) == "–"
    assert percent_interval(0.12, 0.1, 0.15) == "12.0 % (10.0–15.0)"
    assert percent_interval(0.12, float("nan"), float("nan")) == "12.0 %"


def test_html_holds_no_markup_from_the_data():
    assert "<b>" not in html_table(pd.DataFrame({"<b>x": ["<b>y</b>"]}))
    assert "<b>" not in html_page("<b>t", {"<b>h": "<b>p"}, note="<b>n")


def test_a_page_carries_its_figures_and_needs_nothing_else():
    figure, axes = new_figure("title")
    axes[0, 0].plot([0, 1])
    page = html_page("Report", {"Words": "one\ntwo", "Table": pd.DataFrame({"a": [1]}), "Figures": [figure, figure]})
    assert page.count("data:image/png;base64,") == 2 and page.count("<p>one</p><p>two</p>") == 1 and "http" not in page
