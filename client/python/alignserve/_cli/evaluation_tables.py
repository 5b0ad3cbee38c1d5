"""Lays out what `evaluate` measured, for people."""

from __future__ import annotations

from collections.abc import Sequence

from alignserve._cli.render import table
from alignserve.evaluate.calibration import SURE, Calibration
from alignserve.evaluate.results import Answered, Classification, Group, Result, Retrieval
from alignserve.evaluate.retrieval import Recall
from alignserve.search.visible import visible

_MAX_CLASSES = 20
_WIDEST = 40  # maximum length of a name, in characters


def tables(result: Result) -> list[str]:
    """Returns the tables of a result."""
    if isinstance(result, Classification):
        return [_classification(result), _calibration(result.calibration), *_classes(result)]
    if isinstance(result, Retrieval):
        return [_retrieval(result)]
    return [_questions(result), _calibration(result.calibration)]


def _classification(result: Classification) -> str:
    rows = [("zero-shot top-1", _percent(result.top_1))]
    if result.top_5 is not None:
        rows.append(("zero-shot top-5", _percent(result.top_5)))
    rows.append(("mean per class", _percent(result.mean_per_class)))
    if result.neighbours is not None:
        rows += [(f"kNN recall@{k}", _percent(share)) for k, share in result.neighbours.at.items()]
    return table((f"{result.classes} classes", "%"), rows, right=(1,))


def _retrieval(result: Retrieval) -> str:
    sides = (("image → text", result.image_to_text), ("text → image", result.text_to_image))
    rows = [(name, str(one.queries), str(one.candidates), *_shares(one)) for name, one in sides]
    header = ("retrieval", "queries", "candidates", *(f"recall@{k}, %" for k in result.image_to_text.at))
    return table(header, rows, right=range(1, len(header)))


def _questions(result: Answered) -> str:
    count = sum(each.count for each in result.calibration.bins)
    right = count - result.calibration.wrong
    all_of_them = Group("all", count, right, result.calibration.mean_score)
    rows = [_row(group) for group in sorted(result.groups, key=lambda group: group.accuracy)]
    all_row = [*_row(all_of_them)[:-2], str(result.calibration.sure_and_wrong), ""]
    header = ("kind", "right", "of", "%", "mean score", f"wrong > {SURE:g}", "mistaken for")
    return table(header, [*rows, all_row], right=range(1, 6))


def _classes(result: Classification) -> list[str]:
    """Returns the table of the classes that are recognized worst."""
    if len(result.groups) == 1:
        return []
    worst = sorted(result.groups, key=lambda group: group.accuracy)[:_MAX_CLASSES]
    title = "class" if len(worst) == len(result.groups) else f"worst {_MAX_CLASSES} of {len(result.groups)}"
    header = (title, "right", "of", "%", "mean score", f"wrong > {SURE:g}", "mistaken for")
    return [table(header, [_row(group) for group in worst], right=range(1, 6))]


def _row(group: Group) -> list[str]:
    return [
        _short(group.name),
        str(group.right),
        str(group.count),
        _percent(group.accuracy),
        f"{group.mean_score:.2f}",
        str(group.sure_and_wrong),
        _short(group.mistaken_for),
    ]


def _calibration(one: Calibration) -> str:
    of_wrong = f" ({_percent(one.sure_and_wrong / one.wrong)} %)" if one.wrong else ""
    rows = [
        ("answers", str(sum(each.count for each in one.bins))),
        ("expected calibration error", f"{one.expected_error:.4f}"),
        ("the same, if perfectly calibrated", f"{one.error_if_calibrated:.4f}"),
        ("mean score", f"{one.mean_score:.4f}"),
        ("share right", f"{one.accuracy:.4f}"),
        ("Brier score", f"{one.brier:.4f}"),
        ("negative log-likelihood", f"{one.negative_log_likelihood:.4f}"),
        (f"answers with a score above {SURE:g}", str(one.sure)),
        ("wrong answers", str(one.wrong)),
        (f"wrong answers above {SURE:g}", f"{one.sure_and_wrong}{of_wrong}"),
    ]
    return table(("calibration", ""), rows, right=())


def _shares(one: Recall) -> Sequence[str]:
    return [_percent(share) for share in one.at.values()]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _short(name: str) -> str:
    text = visible(" ".join(name.split()))
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
