"""Nepali numbers in words, against a table written by hand, not with the library that the normaliser reads them from."""

import unicodedata

import pytest

from moe.text.normalisers import normalise, own_normaliser

# 0 to 99 as they are taught; a slash divides spellings that are both in use
TAUGHT = """
शून्य एक दुई तीन चार पाँच छ सात आठ नौ
दश एघार बाह्र तेह्र चौध पन्ध्र सोह्र सत्र अठार उन्नाइस
बीस एक्काइस बाइस तेइस चौबीस पच्चीस छब्बीस सत्ताइस अट्ठाइस उनन्तीस
तीस एकतीस बत्तीस तेत्तीस चौँतीस पैँतीस छत्तीस सैँतीस अठतीस उनन्चालीस
चालीस एकचालीस बयालीस त्रिचालीस चवालीस पैँतालीस छयालीस सतचालीस/सच्चालीस अठचालीस उनन्चास
पचास एकाउन्न बाउन्न त्रिपन्न चउन्न/चौवन्न पचपन्न/पच्पन्न छपन्न सन्ताउन्न अन्ठाउन्न उनन्साठी
साठी एकसट्ठी बयसट्ठी त्रिसट्ठी चौँसट्ठी पैँसट्ठी छयसट्ठी सतसट्ठी अठसट्ठी उनन्सत्तरी
सत्तरी एकहत्तर बहत्तर त्रिहत्तर चौहत्तर पचहत्तर छयहत्तर सतहत्तर अठहत्तर उनासी
असी एकासी बयासी त्रियासी चौरासी पचासी छयासी सतासी अठासी उनान्नब्बे
नब्बे एकान्नब्बे बयान्नब्बे त्रियान्नब्बे चौरान्नब्बे पन्चान्नब्बे छयान्नब्बे सन्तान्नब्बे अन्ठान्नब्बे उनान्सय
"""
LARGE = [
    ("100", "एक सय"), ("105", "एक सय पाँच"), ("999", "नौ सय उनान्सय"), ("1000", "एक हजार"), ("2005", "दुई हजार पाँच"),
    ("100000", "एक लाख"), ("250000", "दुई लाख पचास हजार"), ("10000000", "एक करोड"), ("30000003", "तीन करोड तीन"),
]  # fmt: skip
TEXTS = [
    ("मसँग २५ रुपैयाँ छ।", "मसँग पच्चिस रुपैयाँ छ"),
    ("मसँग 25 रुपैयाँ छ", "मसँग पच्चिस रुपैयाँ छ"),
    ("१,२५,००० जना", "एक लाख पच्चिस हजार जना"),
    ("3.14", "तीन दशमलव एक चार"),
    ("५०%", "पचास प्रतिशत"),
    ("007", "शून्य शून्य सात"),
    ("9841234567", "नौ आठ चार एक दुई तीन चार पाँच छ सात"),
    ("२०८१/१/५", "दुई हजार एकासी एक पाँच"),
]


def folded(word: str) -> str:
    """Without what spellings of one word differ in: short and long vowels, the doubled ठ."""
    for one, other in (("ी", "ि"), ("ई", "इ"), ("ट्ठ", "ठ"), ("ठ्ठ", "ठ"), ("\u200d", "")):
        word = word.replace(one, other)
    return unicodedata.normalize("NFC", word)


def test_numbers_to_99_are_as_they_are_taught() -> None:
    taught = TAUGHT.split()
    assert len(taught) == 100
    for number, spellings in enumerate(taught):
        assert folded(normalise("nepali", str(number))) in {folded(one) for one in spellings.split("/")}, number


@pytest.mark.parametrize(("digits", "words"), LARGE)
def test_hundreds_thousands_lakhs_and_crores(digits: str, words: str) -> None:
    assert normalise("nepali", digits) == words


@pytest.mark.parametrize(("text", "words"), TEXTS)
def test_numbers_within_a_text_are_read_out(text: str, words: str) -> None:
    assert normalise("nepali", text) == words == normalise("nepali", words)


def test_auto_is_the_languages_own() -> None:
    own = {language: own_normaliser("auto", language) for language in ("en", "ko", "ne", "hi", "fr")}
    assert own == {"en": "basic", "ko": "korean", "ne": "nepali", "hi": "devanagari", "fr": "basic"}
    assert own_normaliser("sap", "ne") == "sap"
