"""The boundaries of each rule and preset: which value stays, and which one goes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from alignserve.curate import rules
from alignserve.curate.columns import picture_columns, text_columns, with_whitespace
from alignserve.curate.duplicates import PhashSet
from alignserve.curate.pictures import Picture
from alignserve.curate.presets import PRESETS, coyo
from alignserve.curate.rules import DuplicateRule, FrequencyRule, Rule, RuleSet
from alignserve.datasets.row import Row


class Words:
    """Texts are English unless they begin with "le "; every word but "very" can be a noun."""

    def detect(self, text: str) -> tuple[str, float]:
        return ("fr" if text.startswith("le ") else "en"), 0.9

    def has_noun(self, text: str) -> bool:
        return bool(set(text.split()) - {"very"})

    def word_count(self, text: str) -> int:
        return len(text.split())


GOOD_TEXT = "a red bicycle"


def pair(
    *, text: str = GOOD_TEXT, width: int = 300, height: int = 300, size: int = 9000, **columns: Any
) -> dict[str, Any]:
    picture = Picture(width, height, size, "JPEG", "0123456789abcdef", "digest")
    found = picture_columns(Row("key", b"image", text, columns), picture)
    return {**columns, **found, "has_picture": True, "text": text, **text_columns(text, Words())}


def reasons(preset: RuleSet, row: dict[str, Any]) -> list[str]:
    return [
        rule.name
        for rule in preset.rules
        if isinstance(rule, Rule)
        and not rule.judge(row)
        and (rule.judge(row) is False or rule.drops_unjudged)
    ]


def test_an_ordinary_pair_stays_under_every_preset() -> None:
    """The pair that the other tests change is good."""
    assert [reasons(make(), pair()) for make in PRESETS.values()] == [[], [], []]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"size": 4_999}, ["TOO_FEW_BYTES"]),
        ({"size": 5_000}, []),
        ({"size": 5_119}, []),
        ({"width": 900, "height": 300}, []),
        ({"width": 901, "height": 300}, ["ASPECT_RATIO_TOO_HIGH"]),
        ({"width": 300, "height": 900}, []),
        ({"width": 300, "height": 901}, ["ASPECT_RATIO_TOO_HIGH"]),
        ({"width": 200, "height": 200}, []),
        ({"width": 199, "height": 300}, ["TOO_SMALL"]),
        ({"width": 300, "height": 199}, ["TOO_SMALL"]),
        ({"nsfw_score_opennsfw2": 0.5}, []),
        ({"nsfw_score_opennsfw2": math.nextafter(0.5, 1)}, ["NSFW_OPENNSFW2"]),
        ({"nsfw_score_opennsfw2": math.nan}, []),
        ({"nsfw_score_gantman": 0.5}, []),
        ({"nsfw_score_gantman": 0.51}, ["NSFW_GANTMAN"]),
        ({"nsfw_score_gantman": None}, []),
        ({"text": "le petit velo rouge"}, ["OTHER_LANGUAGE"]),
        ({"text": "a b c"}, ["TEXT_TOO_SHORT"]),
        ({"text": "a b cd"}, []),
        ({"text": "very very very"}, ["NO_NOUN"]),
        ({"text": "red bicycle"}, ["TOO_FEW_WORDS"]),
        ({"text": "a red bicycle"}, []),
        ({"text": " ".join(["bar"] * 250)}, []),
        ({"text": " ".join(["ab"] * 256)}, []),
        ({"text": " ".join(["ab"] * 257)}, ["TOO_MANY_WORDS"]),
        ({"text": "ab cd " + "x" * 994}, []),
        ({"text": "ab cd " + "x" * 995}, ["TEXT_TOO_LONG"]),
    ],
)
def test_coyo_boundaries(change: dict[str, Any], expected: list[str]) -> None:
    """Each boundary of COYO's README, by the value that stays and the next one that goes."""
    assert reasons(coyo(), pair(**change)) == expected


def test_presets_count_and_compare_rows_as_published() -> None:
    """COYO drops frequent texts and equal (hash, text); no preset cuts by similarity."""
    assert [rule for rule in coyo().rules if not isinstance(rule, Rule)] == [
        FrequencyRule(10),
        DuplicateRule(("image_phash", "text")),
    ]
    assert not any("similarity" in column for make in PRESETS.values() for column in make().columns())


def test_white_space_collapses_and_entities_stay() -> None:
    """The example of COYO's README."""
    text = "\n       \n          Load image into Gallery viewer, valentine&amp;#39;s day roses\n      \n"

    found = with_whitespace(text, coyo().whitespace)

    assert found == "Load image into Gallery viewer, valentine&amp;#39;s day roses"
    assert with_whitespace("a\u00a0b\u3000\tc", "collapsed") == "a b c"


def test_a_pair_without_a_picture_goes() -> None:
    """Neither an image nor its width."""
    row = {
        **pair(),
        "has_picture": False,
        "width": None,
        "min_side": None,
        "aspect_ratio": None,
        "bytes": None,
    }

    assert [reasons(make(), row) for make in PRESETS.values()] == [["NO_PICTURE"]] * 3


def test_a_pair_without_a_text_goes() -> None:
    """No text counts as an empty one."""
    row = {**pair(), "text": None, **text_columns(None, Words())}

    assert reasons(coyo(), row) == ["TEXT_TOO_SHORT", "TOO_FEW_WORDS", "OTHER_LANGUAGE", "NO_NOUN"]


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("a damned good picture", True),
        ("Damn, a picture", False),
        ("a picture (DAMN)", False),
        ("what the hell is it", False),
        ("what the, hell! is it", False),
        ("hell the what is it", True),
        ("grade a$$ beef", False),
        ("a$$et", True),
        ("", True),
    ],
)
def test_blocked_words_match_whole_words_and_phrases(text: str, stays: bool) -> None:
    """Case and punctuation around a word do not matter."""
    rule = rules.blocked_words(["damn\n", "The Hell\n", "a$$", "", "   "])

    assert rule.judge({"text": text}) is stays


def test_excluded_pictures_go() -> None:
    """Those whose hash is in the list; a picture without a hash is not."""
    rule = rules.excluded_phashes(PhashSet(np.array([0x0123456789ABCDEF], np.uint64)))

    assert [
        rule.judge({"image_phash": phash}) for phash in ("0123456789abcdef", "0123456789abcdee", None)
    ] == [
        False,
        True,
        None,
    ]


def test_cuts_keep_their_limit_and_drop_missing_values() -> None:
    """A cut that the user asks for keeps only rows that reach it."""
    low, high = rules.min_cut("similarity", 0.2), rules.max_cut("punsafe", 0.5)

    assert [low.judge({"similarity": x}) for x in (0.2, 0.19999, math.nan)] == [True, False, None]
    assert [high.judge({"punsafe": x}) for x in (0.5, 0.50001, None)] == [True, False, None]
    assert low.drops_unjudged
    assert high.drops_unjudged


def test_duplicates_are_last_and_rules_can_be_left_out() -> None:
    """More rules come before the rule about duplicates; an unknown name is refused."""
    changed = coyo().plus([rules.min_cut("bytes", 10)]).without(["NO_NOUN"])

    assert changed.names[-2:] == ("MIN_BYTES", "DUPLICATE")
    assert "NO_NOUN" not in changed.names
    with pytest.raises(ValueError, match="no rule NO_NOUNS; there are NO_PICTURE"):
        coyo().without(["NO_NOUNS"])
    with pytest.raises(ValueError, match="two rules have the name TOO_SMALL"):
        coyo().plus([rules.min_side(100)])


def test_lists_are_part_of_a_rules_identity() -> None:
    """A resumed run with another list of the same length is not the same run."""
    first, second = RuleSet((rules.blocked_words(["a"]),)), RuleSet((rules.blocked_words(["b"]),))

    assert first.boundaries() != second.boundaries()


def test_cuts_that_leave_no_row_are_refused() -> None:
    """One value can be asked for; of other columns any."""
    low, high = rules.min_cut("width", 200), rules.max_cut("width", 200)

    assert RuleSet((low, high, rules.max_cut("height", 100))).names
    with pytest.raises(ValueError, match="no width is at least 201 and at most 200; all rows would go"):
        RuleSet((rules.min_cut("width", 201), high))
