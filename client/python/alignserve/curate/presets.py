"""Published filters for pairs, by the words of those who published them.

Sources: the README of kakaobrain/coyo-dataset (section Data Filtering); `baselines/apply_filter.py` of
mlfoundations/datacomp (`load_uids_with_basic_filter_helper`); LAION's pages on LAION-400M and LAION-5B. Where
they leave a choice, client/docs/curate.md says which one is made here.
"""

from __future__ import annotations

from collections.abc import Callable

from alignserve.curate import rules
from alignserve.curate.rules import DuplicateRule, FrequencyRule, RuleSet

FIVE_KB = 5_000
"""Bytes. Neither COYO nor LAION defines a KB; LAION's crawler compares with 5,000."""


def coyo() -> RuleSet:
    """Returns the filters of COYO-700M; word lists and hashes of other datasets are the user's to give.

    Lengths come before language and nouns, which mean little for very short texts.
    """
    return RuleSet(
        (
            rules.has_picture(),
            rules.min_bytes(FIVE_KB),
            rules.max_aspect_ratio(3.0),
            rules.min_side(200),
            rules.max_score("nsfw_score_opennsfw2", 0.5, "NSFW_OPENNSFW2"),
            rules.max_score("nsfw_score_gantman", 0.5, "NSFW_GANTMAN"),
            rules.min_text_length(6),
            rules.max_text_length(1000),
            rules.min_words(3),
            rules.max_words(256),
            rules.languages(["en"]),
            rules.has_noun(),
            FrequencyRule(10),
            DuplicateRule(("image_phash", "text")),
        ),
        whitespace="collapsed",
    )


def datacomp_basic() -> RuleSet:
    """Returns the basic filter of DataComp."""
    return RuleSet(
        (
            rules.has_picture(),
            rules.min_side(200),
            rules.max_aspect_ratio(3.0),
            rules.min_text_length(6),
            rules.min_words(3),
            rules.languages(["en"]),
        )
    )


def laion() -> RuleSet:
    """Returns the filters of LAION-400M without those by CLIP, whose thresholds are on CLIP's scale."""
    return RuleSet(
        (
            rules.has_picture(),
            rules.min_text_length(5),
            rules.min_bytes(FIVE_KB),
            DuplicateRule(("url", "text")),
        ),
        whitespace="trimmed",
    )


PRESETS: dict[str, Callable[[], RuleSet]] = {
    "coyo": coyo,
    "datacomp-basic": datacomp_basic,
    "laion": laion,
}
