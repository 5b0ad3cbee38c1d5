"""The presets `laion` and `datacomp-basic` against the published rules, on both sides of each boundary.

DataComp's rules are those of `load_uids_with_basic_filter_helper` in `baselines/apply_filter.py` of
mlfoundations/datacomp at commit 4a8df19. LAION's are the list "Filtering out unsuitable image-text pairs" on
https://laion.ai/blog/laion-400-open-dataset/, and the programs of its workers: `ccpp.py` and `dbdl.py` of
rvencu/crawlingathome-gpu-hcloud at 91e230f, and `crawlingathome.py` of
christophschuhmann/crawlingathome-worker at 96f3a86.
"""

from __future__ import annotations

from typing import Any

import pytest
from alignserve.curate import language
from alignserve.curate.columns import picture_columns, text_columns, with_whitespace
from alignserve.curate.pictures import Picture
from alignserve.curate.presets import datacomp_basic, laion
from alignserve.curate.rules import DuplicateRule, Rule, RuleSet
from alignserve.datasets.row import Row

_GOOD_TEXT = "a red bicycle leaning against a wall"


def _reasons(
    preset: RuleSet,
    text: str = _GOOD_TEXT,
    *,
    width: int = 300,
    height: int = 300,
    size: int = 9000,
    **columns: Any,
) -> list[str]:
    """Returns why a pair goes, measured as in a run."""
    text = with_whitespace(text, preset.whitespace)
    picture = Picture(width, height, size, "JPEG", "0123456789abcdef", "digest")
    row = {
        **picture_columns(Row("key", b"image", text, columns), picture),
        **text_columns(text, language),
        "has_picture": True,
        "text": text,
    }
    judged = {
        rule.name: (rule.judge(row), rule.drops_unjudged) for rule in preset.rules if isinstance(rule, Rule)
    }
    return [
        name
        for name, (stays, drops_unjudged) in judged.items()
        if stays is False or (stays is None and drops_unjudged)
    ]


class TestDataComp:
    """`english_mask & caption_mask & image_mask`."""

    def test_an_ordinary_pair_stays(self) -> None:
        """And there are no other rules: bytes, duplicates and similarity do not matter."""
        assert _reasons(datacomp_basic(), size=1) == []
        assert datacomp_basic().names == (
            "NO_PICTURE",
            "TOO_SMALL",
            "ASPECT_RATIO_TOO_HIGH",
            "TEXT_TOO_SHORT",
            "TOO_FEW_WORDS",
            "OTHER_LANGUAGE",
        )

    @pytest.mark.parametrize(
        ("text", "stays"),
        [
            ("see my dog", True),
            ("my dog", False),
            ("see\tmy\ndog", True),
            ("see\u00a0my  dog", True),
            (" my  dog ", False),
        ],
    )
    def test_three_words_stay_and_two_go(self, text: str, stays: bool) -> None:
        """`caption_num_words > 2`, of `x.split()`: any white space separates words."""
        assert ("TOO_FEW_WORDS" not in _reasons(datacomp_basic(), text)) is stays

    @pytest.mark.parametrize(
        ("text", "stays"),
        [("we a do", True), ("we ado", True), ("I a d", False), ("I a d ", True), ("ü ö äß", True)],
    )
    def test_six_characters_stay_and_five_go(self, text: str, stays: bool) -> None:
        """`caption_num_chars > 5`, of `len(x)`: code points, white space at the ends included."""
        assert ("TEXT_TOO_SHORT" not in _reasons(datacomp_basic(), text)) is stays

    @pytest.mark.parametrize(
        ("text", "stays"),
        [
            (_GOOD_TEXT, True),
            ("a red bicycle\nleaning against a wall", True),
            ("ein rotes Fahrrad lehnt an der Wand", False),
            ("12 345 678", False),
        ],
    )
    def test_english_stays_and_other_languages_go(self, text: str, stays: bool) -> None:
        """`fasttext_lang_pred == "en"`: the most probable language, whatever its probability."""
        assert ("OTHER_LANGUAGE" not in _reasons(datacomp_basic(), text)) is stays

    @pytest.mark.parametrize(
        ("width", "height", "stays"), [(200, 300, True), (199, 300, False), (300, 199, False)]
    )
    def test_a_shorter_side_of_200_stays_and_199_goes(self, width: int, height: int, stays: bool) -> None:
        """`min_image_dim >= 200`, of the lesser of `original_width` and `original_height`."""
        assert (_reasons(datacomp_basic(), width=width, height=height) == []) is stays
        original: Any = {"original_width": width, "original_height": height}
        assert (_reasons(datacomp_basic(), width=64, height=64, **original) == []) is stays

    @pytest.mark.parametrize(
        ("width", "height", "stays"),
        [(600, 200, True), (601, 200, False), (200, 600, True), (200, 601, False), (999, 333, True)],
    )
    def test_an_aspect_ratio_of_3_stays_and_more_goes(self, width: int, height: int, stays: bool) -> None:
        """`aspect_ratio <= 3.0`, of the greater side by the lesser one: wide and tall alike."""
        assert (_reasons(datacomp_basic(), width=width, height=height) == []) is stays
        original: Any = {"original_width": width, "original_height": height}
        assert (_reasons(datacomp_basic(), width=64, height=64, **original) == []) is stays


class TestLaion:
    """The steps 1 to 3 of LAION-400M's list; the others are by CLIP, or about downloads."""

    def test_an_ordinary_pair_stays(self) -> None:
        """In any language, of any shape and size in pixels: the list has no rule about these."""
        assert _reasons(laion(), "ein rotes Fahrrad", width=1, height=1000) == []
        assert laion().names == ("NO_PICTURE", "TEXT_TOO_SHORT", "TOO_FEW_BYTES", "DUPLICATE")

    @pytest.mark.parametrize(
        ("text", "stays"),
        [
            ("a dog", True),
            ("dogs", False),
            ("  dogs \n", False),
            ("a\ndog", True),
            ("  a dog ", True),
            ("äöüß€", True),
        ],
    )
    def test_five_characters_stay_and_four_go(self, text: str, stays: bool) -> None:
        """Step 1, "less than five character alt text length"; `len(alt_text) < 5` in `ccpp.py`, after
        `e["alt"].replace("\\n", " ")` and `strip()`.
        """
        assert (_reasons(laion(), text) == []) is stays

    @pytest.mark.parametrize(("size", "stays"), [(5_000, True), (4_999, False)])
    def test_5000_bytes_stay_and_4999_go(self, size: int, stays: bool) -> None:
        """Step 2, "less than 5 KB image size"; `len(response.content) < 5000` in `dbdl.py` and
        `crawlingathome.py`.
        """
        assert (_reasons(laion(), size=size) == []) is stays

    def test_equal_urls_and_texts_are_duplicates(self) -> None:
        """Step 3, "concatenating the URL and the alt text"; the same picture at another URL stays."""
        assert laion().rules[-1] == DuplicateRule(("url", "text"))

    def test_texts_come_out_as_in_laions_files(self) -> None:
        """`ccpp.py` replaces newlines and trims; white space inside stays."""
        assert with_whitespace(" a\ndog  barks ", laion().whitespace) == "a dog  barks"
