"""Titles in any script are drawn without a box and without a warning."""

import io
import warnings

import pytest

from analysis.plots.canvas import new_figure
from analysis.plots.fonts import LEFT_OUT, drawable


@pytest.mark.parametrize("text", ["plain, “quoted” − 3 %", "금요일에 돈을", "मेरो नाम", "\U000e0041 private"])
def test_a_title_has_no_letter_that_cannot_be_drawn(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new_figure(f"SYNTHETIC {text} in each style")[0].savefig(io.BytesIO())


def test_what_can_be_drawn_stays_and_the_rest_is_an_ellipsis() -> None:
    assert drawable("mel 40 ms") == ("mel 40 ms", ["DejaVu Sans"])
    text, families = drawable("say \U000e0041\U000e0042 \U000e0043 now")
    assert text == f"say {LEFT_OUT} now" and families == ["DejaVu Sans"]
