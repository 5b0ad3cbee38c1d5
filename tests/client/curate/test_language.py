"""Languages, nouns and words of captions."""

from __future__ import annotations

import pytest
from alignserve.curate.language import detect, has_noun, word_count

from tests.client.curate.captions import ENGLISH, OTHERS, WITH_NOUN, WITHOUT_NOUN


class TestLanguage:
    """The language of short texts."""

    def test_english_captions_are_english(self) -> None:
        """Nearly all of them, also in capitals and with names."""
        found = [detect(text)[0] for text in ENGLISH]

        assert found.count("en") >= 0.95 * len(ENGLISH)

    def test_other_captions_are_not(self) -> None:
        """A filter for English drops them, whichever language they are taken for."""
        found = [detect(text)[0] for texts in OTHERS.values() for text in texts]

        assert found.count("en") <= 0.01 * len(found)

    def test_most_other_languages_are_told_apart(self) -> None:
        """A few words can be right in two related languages."""
        right = [detect(text)[0] == language for language, texts in OTHERS.items() for text in texts]

        assert sum(right) >= 0.9 * len(right)

    @pytest.mark.parametrize("text", ["", " \n", "12345 / 678", "!!! 🚀", "\ud800", "&#27;&amp;", "\0"])
    def test_a_text_without_letters_has_no_language(self, text: str) -> None:
        """Rather than a guess."""
        assert detect(text) == (None, 0.0)

    @pytest.mark.parametrize(
        "text",
        ["A dog\nand a\u2028cat", "A dog \ud800 and a cat", "A dog\0and a cat", "a cat and a dog " * 10_000],
    )
    def test_any_text_has_a_result(self, text: str) -> None:
        """Whatever characters are in it, however long it is."""
        language, confidence = detect(text)

        assert language == "en"
        assert 0 < confidence <= 1

    def test_it_is_the_same_each_time(self) -> None:
        """No chance is involved, and no order."""
        texts = [text for texts in OTHERS.values() for text in texts]

        assert [detect(text) for text in texts] == [detect(text) for text in reversed(texts)][::-1]


class TestNouns:
    """Whether a text has a noun form."""

    @pytest.mark.parametrize("text", WITH_NOUN)
    def test_a_caption_with_a_noun_has_one(self, text: str) -> None:
        """Names and words that no lexicon has are nouns too."""
        assert has_noun(text)

    @pytest.mark.parametrize("text", ["", " ", "\ud800", "\0", *WITHOUT_NOUN])
    def test_a_text_without_nouns_has_none(self, text: str) -> None:
        """Neither numbers, punctuation nor entities are nouns."""
        assert not has_noun(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("cat", 1),
        ("A Pomsky dog sitting and smiling in field of orange flowers", 11),
        ("a,b.c-d e", 2),
        (" a  b ", 2),
        ("a\tb\nc\u00a0d", 4),
        ("The Gate by Pete2453", 4),
    ],
)
def test_words_are_separated_by_white_space(text: str, count: int) -> None:
    """As `str.split` has it in DataComp's filter; COYO-700M's rows have spaces only."""
    assert word_count(text) == count
