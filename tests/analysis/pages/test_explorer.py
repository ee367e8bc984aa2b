"""The error explorer: what its data say, that nothing escapes into markup, and that it works in a real browser."""

import html
import json
import re
import shutil
import subprocess

import jiwer
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.error_rates import count_errors
from analysis.pages.clips import clip_uri, picture_uri
from analysis.pages.explorer import alignment_letters, explorer_html

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def utterances(n=120, n_experts=2):
    """Odd utterances lose a word; every tenth repeats itself; ALS and typical take turns."""
    rows = []
    for number in range(n):
        hypothesis = "go home " * 6 if number % 10 == 0 else "the cat" if number % 2 else "the cat sat"
        weights = {f"weight_{i}": w for i, w in enumerate([0.75, 0.25] if number % 4 < 2 else [0.4, 0.6])} if n_experts else {}
        rows.append({"utterance_id": f"u{number:05d}", "speaker": f"s{number % 6}", "etiology": ["ALS", "typical"][number % 2],
                     "duration_s": 1.0 + number % 7, "reference": "the cat sat", "hypothesis": hypothesis.strip(),
                     **weights})  # fmt: skip
    return count_errors(pd.DataFrame(rows))


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))


def opened(page, folder, view=""):
    """The page as chromium leaves it, with `view` behind the # of its address."""
    path = folder / "explorer.html"
    path.write_text(page, encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{path}#{view}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout


def ids_in(dom):
    return re.findall(r'<article data-id="([^"]+)"', dom)


def summary_of(dom):
    return html.unescape(re.search(r'id="summary"[^>]*>([^<]*)<', dom).group(1))


@pytest.mark.parametrize(
    ("reference", "hypothesis", "letters"),
    [
        ("a b c", "a b c", "==="),
        ("a b c", "a x c", "=S="),
        ("a b c", "a c", "=D="),
        ("a b", "a b c d", "==II"),
        ("", "", ""),
        ("a", "", "D"),
    ],
)
def test_alignments_are_spelt_in_letters(reference, hypothesis, letters):
    assert alignment_letters([reference], [hypothesis]) == [letters]


@settings(max_examples=50)
@given(st.text("abc ", max_size=20), st.text("abc ", max_size=20))
def test_letters_use_up_both_sides_and_count_the_errors(reference, hypothesis):
    letters = alignment_letters([reference], [hypothesis])[0]
    assert len(letters) - letters.count("I") == len(reference.split())
    assert len(letters) - letters.count("D") == len(hypothesis.split())
    output = jiwer.process_words([reference], [hypothesis])
    assert len(letters) - letters.count("=") == output.substitutions + output.deletions + output.insertions


def test_every_utterance_is_in_the_page_once_and_in_order():
    data = data_of(explorer_html(utterances(30).sample(frac=1, random_state=1)))
    assert data["utterance_id"] == [f"u{i:05d}" for i in range(30)]
    assert data["weights"][2] == [0.4, 0.6] and data["expert"][2] == 1
    assert "loop" in data["flags"][0] and data["flags"][1] == []
    assert data["groups"]["etiology"][:2] == ["ALS", "typical"] and data["categories"]["etiology"] == ["ALS", "typical"]


def test_the_page_loads_nothing_from_elsewhere():
    page = explorer_html(utterances(5))
    assert not re.search(
        r"(src|href)\s*=|@import|fetch\(|https?://", page.replace("player.src =", "").replace("picture.src =", "")
    )


def test_text_cannot_become_markup():
    table = utterances(2)
    table.loc[0, ["reference", "hypothesis"]] = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>"]
    page = explorer_html(count_errors(table), title="<b>t</b>", note="<i>n</i>")
    assert page.count("<script") == 2 and "<img" not in page and "<b>t" not in page and "<i>n" not in page
    assert data_of(page)["reference"][0] == "</script><script>alert(1)</script>"


def test_missing_columns_leave_their_parts_out():
    table = utterances(4, n_experts=0).drop(columns=["duration_s", "etiology"])
    data = data_of(explorer_html(table))
    assert data["weights"] == [] and list(data["groups"]) == ["speaker"]


def test_links_of_other_kinds_and_of_strangers_are_refused():
    with pytest.raises(ValueError, match="javascript:alert"):
        explorer_html(utterances(2), audio={"u00000": "javascript:alert(1)"})
    with pytest.raises(ValueError, match="'nobody'"):
        explorer_html(utterances(2), audio={"nobody": "a.wav"})
    assert data_of(explorer_html(utterances(2), audio={"u00001": "clips/u1.wav"}))["audio"] == ["", "clips/u1.wav"]


@in_browser
def test_the_browser_shows_the_worst_first_with_the_right_totals(tmp_path):
    table = utterances(120)
    dom = opened(explorer_html(table, note="synthetic speech"), tmp_path)
    wer = 100 * table["word_errors"].sum() / table["n_words"].sum()
    assert summary_of(dom).startswith(f"120 of 120 utterances · WER {wer:.1f} %") and "synthetic speech" in dom
    assert ids_in(dom)[:12] == [f"u{i:05d}" for i in range(0, 120, 10)]
    assert 50 <= len(ids_in(dom)) <= 100  # only what is near the window is built


@in_browser
def test_the_browser_filters_by_group_error_and_expert_and_sorts(tmp_path):
    table = utterances(120)
    dom = opened(explorer_html(table), tmp_path, "group=etiology&value=typical&error=D&expert=1&sort=id")
    wanted = table[(table["etiology"] == "typical") & (table["word_deletions"] > 0) & (table["weight_1"] > 0.5)]
    assert ids_in(dom) == wanted["utterance_id"].tolist() and len(wanted) > 5
    assert summary_of(dom).startswith(f"{len(wanted)} of 120 utterances · WER 33.3 %")


@in_browser
def test_the_browser_finds_words_flags_and_says_when_nothing_matches(tmp_path):
    page = explorer_html(utterances(40))
    assert len(ids_in(opened(page, tmp_path, "flag=loop"))) == 4
    assert ids_in(opened(page, tmp_path, "find=u00007")) == ["u00007"]
    assert "nothing matches" in opened(page, tmp_path, "find=zebra")


@in_browser
def test_the_browser_draws_alignment_weights_and_player(tmp_path):
    page = explorer_html(
        utterances(2), audio={"u00001": clip_uri(np.zeros(160))}, pictures={"u00001": picture_uri(np.zeros(160))}
    )
    dom = opened(page, tmp_path, "find=u00001")
    assert '<span class="w D"><span>sat</span><span></span><i>D</i></span>' in dom
    assert dom.count('title="expert') == 2 and 'title="expert 0: 75 %"' in dom and dom.count("<audio") == dom.count("<img") == 1
    assert re.search('<span class="clip"><audio[^>]*></audio><img[^>]*></span>', dom)
