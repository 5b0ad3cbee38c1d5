"""What each rule needs of a pair, and which pairs it keeps.

A rule looks either at a single row or at all rows together: how often a text occurs, which rows have the
highest scores, which rows are duplicates. The reasons of a row are the names of all rules that drop it; the
first of them, in the order of the rules, is its first reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import Any

from alignserve.curate.columns import Whitespace, is_missing
from alignserve.curate.duplicates import PhashSet


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule about a single row.

    Attributes:
        name: The reason of rows that it drops, in capitals.
        needs: Columns whose values it judges.
        boundary: For people: which rows go.
        keeps: Returns whether a row with these values stays, in the order of `needs`.
        drops_unjudged: Whether a row goes if one of the values is missing or NaN; by default it stays. Such
            rows are counted.
        digest: Of the list that the rule uses, if it uses one.
        least: The lowest value that stays, of a cut that the user asks for.
        most: The highest value that stays, of such a cut.
    """

    name: str
    needs: tuple[str, ...]
    boundary: str
    keeps: Callable[..., bool]
    drops_unjudged: bool = False
    digest: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def is_cut(self) -> bool:
        """Returns whether it compares its column, which must have numbers, with a number of the user."""
        return self.least is not None or self.most is not None

    def judge(self, row: Mapping[str, Any]) -> bool | None:
        """Returns whether the row stays, or `None` if a value that the rule needs is missing or NaN."""
        values = [row.get(name) for name in self.needs]
        if any(map(is_missing, values)):
            return None
        return self.keeps(*values)


@dataclass(frozen=True, slots=True)
class FrequencyRule:
    """Drops each row whose text occurs more often than `max_count` in all rows together."""

    max_count: int
    name: str = "TEXT_TOO_FREQUENT"

    @property
    def boundary(self) -> str:
        """Returns which rows go, for people."""
        return f"texts that occur more than {self.max_count} times go, every one of them"


@dataclass(frozen=True, slots=True)
class FractionRule:
    """Keeps the rows with the highest values of a column, and drops rows without a value.

    Attributes:
        column: Of numbers.
        fraction: Of the rows that have a value, rounded down to whole rows.
    """

    column: str
    fraction: Fraction

    @property
    def name(self) -> str:
        """Returns the reason of rows that it drops."""
        return f"NOT_IN_TOP_{self.column.upper()}"

    @property
    def boundary(self) -> str:
        """Returns which rows go, for people."""
        return f"rows outside the top {float(self.fraction):g} by {self.column} go"


@dataclass(frozen=True, slots=True)
class DuplicateRule:
    """Of rows with equal values, keeps the first in the order of the source that all other rules keep."""

    columns: tuple[str, ...] = ("image_phash", "text")
    name: str = "DUPLICATE"

    @property
    def boundary(self) -> str:
        """Returns which rows go, for people."""
        return f"rows with equal ({', '.join(self.columns)}) go, except the first that all other rules keep"


@dataclass(frozen=True, slots=True)
class NearDuplicateRule:
    """Drops rows whose image resembles that of an earlier row that stays, by their embeddings.

    Attributes:
        embeddings: Output of `alignserve embed-dataset` from the same source.
        min_cosine: From which cosine similarity on two images resemble each other; above 0, at most 1.
        digest: Of the embeddings.
    """

    embeddings: Path
    min_cosine: float
    digest: str = ""
    name: str = "NEAR_DUPLICATE"

    @property
    def boundary(self) -> str:
        """Returns which rows go, for people."""
        return (
            f"rows whose image embedding has a cosine of at least {self.min_cosine:g} with that of an "
            "earlier row that stays go"
        )


AnyRule = Rule | FrequencyRule | FractionRule | DuplicateRule | NearDuplicateRule


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of a run, in the order of reasons; duplicates and near-duplicates are always last.

    Attributes:
        rules: Their names differ.
        whitespace: What becomes of white space in a text before it is judged; see `with_whitespace`.

    Raises:
        ValueError: Two rules have one name, two cuts leave no row, or there are more than 60 rules.
    """

    rules: tuple[AnyRule, ...] = ()
    whitespace: Whitespace = "kept"
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        last = (DuplicateRule, NearDuplicateRule)
        ordered = sorted(self.rules, key=lambda rule: last.index(type(rule)) + 1 if type(rule) in last else 0)
        object.__setattr__(self, "rules", tuple(ordered))
        object.__setattr__(self, "names", tuple(rule.name for rule in ordered))
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"two rules have the name {', '.join(twice)}; leave one of them out")
        self._check_cuts()
        if len(ordered) > 60:
            raise ValueError(f"{len(ordered)} rules; the limit is 60")

    def _check_cuts(self) -> None:
        cuts = [rule for rule in self.rules if isinstance(rule, Rule) and rule.is_cut]
        most = {rule.needs: rule.most for rule in cuts if rule.most is not None}
        for rule in cuts:
            if rule.least is not None and rule.least > most.get(rule.needs, rule.least):
                raise ValueError(
                    f"no {rule.needs[0]} is at least {rule.least:g} and at most {most[rule.needs]:g}; "
                    "all rows would go"
                )

    def plus(self, rules: Iterable[AnyRule]) -> RuleSet:
        """Returns these rules and more."""
        return replace(self, rules=(*self.rules, *rules))

    def without(self, names: Collection[str]) -> RuleSet:
        """Returns these rules without some.

        Raises:
            ValueError: A name is not that of a rule.
        """
        if unknown := sorted(set(names) - set(self.names)):
            raise ValueError(f"no rule {', '.join(unknown)}; there are {', '.join(self.names) or 'none'}")
        return replace(self, rules=tuple(rule for rule in self.rules if rule.name not in names))

    def of(self, kind: type[Any]) -> Iterator[tuple[int, Any]]:
        """Yields the rules of one kind, each with its position, which is its bit in a row's reasons."""
        return ((bit, rule) for bit, rule in enumerate(self.rules) if isinstance(rule, kind))

    def columns(self) -> set[str]:
        """Returns the columns that the rules need."""
        found: set[str] = set()
        for rule in self.rules:
            if isinstance(rule, Rule):
                found.update(rule.needs)
            elif isinstance(rule, FractionRule):
                found.add(rule.column)
            elif isinstance(rule, DuplicateRule):
                found.update(rule.columns)
        return found

    def boundaries(self) -> dict[str, str]:
        """Returns which rows go by each rule, for people and for manifests, with the digests of lists."""
        digests = {
            rule.name: rule.digest
            for rule in self.rules
            if isinstance(rule, (Rule, NearDuplicateRule)) and rule.digest
        }
        return {
            rule.name: f"{rule.boundary} [{digests[rule.name]}]" if rule.name in digests else rule.boundary
            for rule in self.rules
        }

    def reasons(self, bits: int) -> list[str]:
        """Returns the names of the rules whose bits are set, in their order."""
        return [name for bit, name in enumerate(self.names) if bits >> bit & 1]


def has_picture() -> Rule:
    """Drops rows without a picture, unless the source has its width."""
    return Rule("NO_PICTURE", ("has_picture",), "rows without a picture go", bool)


def min_bytes(limit: int) -> Rule:
    """Drops pictures of fewer bytes; `limit` itself stays."""
    return Rule("TOO_FEW_BYTES", ("bytes",), f"files of fewer than {limit:,} bytes go", lambda n: n >= limit)


def max_aspect_ratio(limit: float) -> Rule:
    """Drops pictures whose longer side is more than `limit` times the shorter one; `limit` itself stays."""
    boundary = f"pictures whose longer side is more than {limit:g} times the shorter one go, wide or tall"
    return Rule("ASPECT_RATIO_TOO_HIGH", ("aspect_ratio",), boundary, lambda ratio: ratio <= limit)


def min_side(limit: int) -> Rule:
    """Drops pictures whose shorter side has fewer pixels; `limit` itself stays."""
    boundary = f"pictures whose shorter side is under {limit:,} pixels go"
    return Rule("TOO_SMALL", ("min_side",), boundary, lambda side: side >= limit)


def max_score(column: str, limit: float, name: str) -> Rule:
    """Drops rows whose score is above `limit`, which itself stays; rows without a score stay."""
    return Rule(
        name, (column,), f"{column} above {limit:g} goes; no score stays", lambda score: score <= limit
    )


def languages(codes: Sequence[str]) -> Rule:
    """Drops texts in other languages, and texts without a language."""
    wanted = frozenset(codes)
    boundary = f"texts whose language is not {' or '.join(codes)} go"
    return Rule("OTHER_LANGUAGE", ("language",), boundary, lambda code: code in wanted, drops_unjudged=True)


def min_text_length(limit: int) -> Rule:
    """Drops texts of fewer characters (code points); `limit` itself stays."""
    boundary = f"texts of fewer than {limit:,} characters go"
    return Rule("TEXT_TOO_SHORT", ("text_length",), boundary, lambda n: n >= limit)


def max_text_length(limit: int) -> Rule:
    """Drops texts of more characters (code points); `limit` itself stays."""
    boundary = f"texts of more than {limit:,} characters go"
    return Rule("TEXT_TOO_LONG", ("text_length",), boundary, lambda n: n <= limit)


def min_words(limit: int) -> Rule:
    """Drops texts of fewer words; `limit` itself stays."""
    boundary = f"texts of fewer than {limit:,} words go"
    return Rule("TOO_FEW_WORDS", ("word_count",), boundary, lambda n: n >= limit)


def max_words(limit: int) -> Rule:
    """Drops texts of more words; `limit` itself stays."""
    boundary = f"texts of more than {limit:,} words go"
    return Rule("TOO_MANY_WORDS", ("word_count",), boundary, lambda n: n <= limit)


def has_noun() -> Rule:
    """Drops texts without a noun form."""
    return Rule("NO_NOUN", ("has_noun",), "texts without a noun form go", bool)


def blocked_words(lines: Iterable[str]) -> Rule:
    """Drops texts that contain a word or phrase of a list; case does not matter, and only whole words match.

    Words are separated by white space; punctuation around a word does not count, unless the list has it too.
    """
    phrases = {tuple(line.casefold().split()) for line in lines} - {()}
    lengths = sorted({len(phrase) for phrase in phrases})

    def keeps(text: str) -> bool:
        words = text.casefold().split()
        return not any(
            tuple(spelling[start : start + length]) in phrases
            for spelling in (words, [_bare(word) for word in words])
            for length in lengths
            for start in range(len(words) - length + 1)
        )

    boundary = f"texts with one of {len(phrases):,} words or phrases go"
    return Rule("BLOCKED_WORD", ("text",), boundary, keeps, digest=_digest(sorted(map(" ".join, phrases))))


def excluded_phashes(phashes: PhashSet) -> Rule:
    """Drops pictures whose perceptual hash is in a list."""
    boundary = f"pictures with one of {len(phashes):,} perceptual hashes go"
    return Rule(
        "EXCLUDED_PICTURE",
        ("image_phash",),
        boundary,
        lambda phash: phash not in phashes,
        digest=_digest(phashes),
    )


def min_cut(column: str, limit: float) -> Rule:
    """Drops rows whose value is below `limit`, which itself stays, and rows without a value."""
    boundary = f"{column} below {limit:g} goes, and rows without a value"
    return Rule(
        f"MIN_{column.upper()}",
        (column,),
        boundary,
        lambda x: x >= limit,
        drops_unjudged=True,
        least=limit,
    )


def max_cut(column: str, limit: float) -> Rule:
    """Drops rows whose value is above `limit`, which itself stays, and rows without a value."""
    boundary = f"{column} above {limit:g} goes, and rows without a value"
    return Rule(
        f"MAX_{column.upper()}",
        (column,),
        boundary,
        lambda x: x <= limit,
        drops_unjudged=True,
        most=limit,
    )


def _digest(values: Iterable[str]) -> str:
    """Returns the digest of a list; values come in an order that is the same each time."""
    found = blake2b(digest_size=8)
    for value in values:
        found.update(f"{value}\n".encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def _bare(word: str) -> str:
    """Returns a word without punctuation at its ends; punctuation by itself stays."""
    start, end = 0, len(word)
    while start < end and not word[start].isalnum():
        start += 1
    while end > start and not word[end - 1].isalnum():
        end -= 1
    return word[start:end] or word
