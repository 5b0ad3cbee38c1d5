"""The tables of the embedded checkpoint's card, from what `measure` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from deploy.docs.markdown import table

MEASURED = Path(__file__).parent / "measured.json"
PLOT = Path(__file__).parent / "reliability.svg"

_Figures: TypeAlias = Mapping[str, Any]  # as JSON has them
_Row: TypeAlias = tuple[str, Callable[[_Figures], str]]


def read() -> dict[str, Any]:
    """Returns what was measured."""
    measured: dict[str, Any] = json.loads(MEASURED.read_text("utf-8"))
    return measured


def with_first_answer(page: str, answer: str) -> str:
    """Returns a page with the block of text that shows the first answer replaced by this one."""
    start = page.index("\n", page.index(f"```text\n{answer.partition(':')[0]}:")) + 1
    return page[:start] + answer + page[page.index("```", start) :]


def _columns(measured: _Figures) -> dict[str, _Figures]:
    """The figures of this checkpoint, and those of an earlier one, if there are any."""
    found = {"now": measured["figures"], "before": measured["former"]}
    return {name: figures for name, figures in found.items() if figures is not None}


def _size(measured: _Figures) -> str:
    load = f"load average before the run {measured['load']:.1f}"
    where = f"Measured on {measured['machine']}, {load}, {measured['date']}."
    return f"{_facts(_SIZE, measured)}\n{where}\n"


def _questions(measured: _Figures) -> str:
    columns = _columns(measured)
    answers = [figures["questions"] for figures in columns.values()]
    kinds = [
        (kind, str(asked["count"]), *(str(each[kind]["right"]) for each in answers))
        for kind, asked in answers[0].items()
    ]
    header = ("kind", "questions", *(f"right {name}" for name in columns))
    return table(header, [*kinds, _total(answers)], has_figures=True)


def _total(answers: Sequence[_Figures]) -> tuple[str, ...]:
    return ("**all**", f"**{_count(answers[0])}**", *(f"**{_right(each)}**" for each in answers))


def _sources(measured: _Figures) -> str:
    columns = _columns(measured)
    rows = [
        (
            name,
            str(_count(measured["figures"]["sources"][key]["questions"])),
            *(_right(figures["sources"][key]["questions"]) for figures in columns.values()),
            *(f"{figures['sources'][key]['calibration']['error']:.3f}" for figures in columns.values()),
            *(_sure_and_wrong(figures["sources"][key]) for figures in columns.values()),
        )
        for name, key in _SOURCES.items()
    ]
    facts = ("right", "calibration error", "wrong above 0.9")
    header = ("sources", "questions", *(f"{fact} {name}" for fact in facts for name in columns))
    return table(header, rows, has_figures=True)


def _count(questions: _Figures) -> int:
    return sum(kind["count"] for kind in questions.values())


def _right(questions: _Figures) -> str:
    right = sum(kind["right"] for kind in questions.values())
    return f"{right} ({right / _count(questions):.1%})"


def _facts(rows: Sequence[_Row], measured: _Figures) -> str:
    columns = _columns(measured)
    lines = [(name, *map(value, columns.values())) for name, value in rows]
    return table(("", *columns), lines, has_figures=True)


def _in_megabytes(name: str) -> Callable[[_Figures], str]:
    return lambda figures: f"{figures[name] / 1e6:.1f} MB"


def _in_milliseconds(name: str) -> Callable[[_Figures], str]:
    return lambda figures: f"{figures['milliseconds'][name]:.1f} ms"


def _sure_and_wrong(figures: _Figures) -> str:
    calibration = figures["calibration"]
    return f"{calibration['sure_and_wrong']} of {calibration['sure']}"


def _of_imagenet(name: str) -> Callable[[_Figures], str]:
    return lambda figures: "" if figures["imagenet"] is None else f"{figures['imagenet'][name]:.1%}"


_SIZE: tuple[_Row, ...] = (
    ("weights, in float16", _in_megabytes("weight_bytes")),
    ("parameters", lambda figures: f"{figures['parameters'] / 1e6:.1f} million"),
    ("temperature", lambda figures: f"{figures['temperature']:.4f}"),
    ("one image in the model", _in_milliseconds("image")),
    ("one text in the model", _in_milliseconds("text")),
)
_SCORES: tuple[_Row, ...] = (
    ("mean score", lambda figures: f"{figures['calibration']['mean_score']:.3f}"),
    ("expected calibration error", lambda figures: f"{figures['calibration']['error']:.3f}"),
    ("the same, if perfectly calibrated", lambda figures: f"{figures['calibration']['if_calibrated']:.3f}"),
    ("wrong answers among those above 0.9", _sure_and_wrong),
)
_IMAGENET: tuple[_Row, ...] = (("top-1", _of_imagenet("top_1")), ("top-5", _of_imagenet("top_5")))
_SOURCES = {
    "other photographs of the source train": "seen",
    "no photograph of the source trains": "unseen",
}

TABLES: dict[str, Callable[[_Figures], str]] = {
    "mini-size": _size,
    "mini-questions": _questions,
    "mini-sources": _sources,
    "mini-scores": partial(_facts, _SCORES),
    "mini-imagenet": partial(_facts, _IMAGENET),
}
"""By name: what a page puts between markers, in Markdown."""
