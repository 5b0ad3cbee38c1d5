"""Draws a reliability diagram as SVG: accuracy by score, for light and dark screens and screen readers."""

from __future__ import annotations

import html

from alignserve.evaluate.calibration import Bin, Calibration

_SIDE = 320  # of the square from score 0 to 1, in pixels
_LEFT, _TOP = 64, 56
_STRIP = 60  # height of the bars that count answers
_GAP = 28  # between square and bars
_RIGHT, _BOTTOM = 48, 44
_WIDTH = _LEFT + _SIDE + _RIGHT
_HEIGHT = _TOP + _SIDE + _GAP + _STRIP + _BOTTOM
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

_STYLE = """
svg { --text: #1a1a1a; --back: #ffffff; --line: #c4c4c4; --bar: #1f6fb2; --gap: #c2691c; }
@media (prefers-color-scheme: dark) {
  svg { --text: #e8e8e8; --back: #16181b; --line: #4a4f55; --bar: #6db3ee; --gap: #f0a25c; } }
text { fill: var(--text); font: 12px system-ui, sans-serif; }
.title { font-size: 14px; font-weight: 600; }
.back { fill: var(--back); }
.grid { stroke: var(--line); stroke-width: 1; fill: none; }
.ideal { stroke: var(--text); stroke-width: 1.5; stroke-dasharray: 5 4; }
.bar { fill: var(--bar); }
.gap { fill: var(--gap); fill-opacity: .35; stroke: var(--gap); }
"""


def plot(calibration: Calibration, title: str) -> str:
    """Returns the diagram.

    Solid bars are accuracies. A lighter bar reaches from there to the mean score of its answers, so it shows
    by how much they are too sure, or too unsure. Bars below count the answers.

    Args:
        calibration: What to draw.
        title: Of the diagram, such as the model and the set.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" aria-labelledby="title description">',
        f'<title id="title">Reliability: {html.escape(title)}</title>',
        f'<desc id="description">{html.escape(description(calibration))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="back" width="{_WIDTH}" height="{_HEIGHT}"/>',
        f'<text class="title" x="{_LEFT}" y="20">{html.escape(_shortened(title))}</text>',
        f'<text x="{_LEFT}" y="40">{html.escape(_figures(calibration))}</text>',
        *_axes(),
        *(shape for each in calibration.bins if each.count for shape in _bars(each)),
        f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>',
        *_counts(calibration),
        "</svg>\n",
    ]
    return "\n".join(parts)


def description(calibration: Calibration) -> str:
    """Returns in words what the diagram shows."""
    bins = "; ".join(
        f"scores {each.low:.2f} to {each.high:.2f}: {each.count} answers, {each.accuracy:.0%} right, mean "
        f"score {each.mean_score:.2f}"
        for each in calibration.bins
        if each.accuracy is not None
    )
    return f"Accuracy by score. {_figures(calibration)}. {bins}."


def _figures(calibration: Calibration) -> str:
    count = sum(each.count for each in calibration.bins)
    return (
        f"{count} answers, {calibration.accuracy:.1%} right, mean score {calibration.mean_score:.3f}, "
        f"ECE {calibration.expected_error:.3f}"
    )


def _axes() -> list[str]:
    shapes = []
    for tick in _TICKS:
        x, y = _x(tick), _y(tick)
        shapes += [
            f'<path class="grid" d="M{_x(0)} {y}H{_x(1)}"/>',
            f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:.1f}</text>',
            f'<text x="{x}" y="{_HEIGHT - 24}" text-anchor="middle">{tick:.1f}</text>',
        ]
    return [
        *shapes,
        f'<text x="{_x(0.5)}" y="{_HEIGHT - 6}" text-anchor="middle">score</text>',
        _upright("accuracy", _TOP + _SIDE / 2),
        _upright("answers", _TOP + _SIDE + _GAP + _STRIP / 2),
    ]


def _upright(text: str, y: float) -> str:
    return f'<text x="14" y="{y}" text-anchor="middle" transform="rotate(-90 14 {y})">{text}</text>'


def _bars(each: Bin) -> list[str]:
    assert each.accuracy is not None and each.mean_score is not None  # noqa: S101, PT018 — it has answers
    low, high = sorted((each.accuracy, each.mean_score))
    x, width = _x(each.low) + 1, (each.high - each.low) * _SIDE - 2
    return [
        _rectangle("bar", x, _y(each.accuracy), width, each.accuracy * _SIDE),
        _rectangle("gap", x, _y(high), width, (high - low) * _SIDE),
    ]


def _counts(calibration: Calibration) -> list[str]:
    most = max(each.count for each in calibration.bins)
    base = _TOP + _SIDE + _GAP + _STRIP
    shapes = [
        f'<text x="{_LEFT - 8}" y="{base - _STRIP + 10}" text-anchor="end">{most}</text>',
        f'<text x="{_LEFT - 8}" y="{base}" text-anchor="end">0</text>',
        f'<path class="grid" d="M{_x(0)} {base}H{_x(1)}"/>',
    ]
    for each in calibration.bins:
        height = each.count / most * _STRIP
        x, width = _x(each.low) + 1, (each.high - each.low) * _SIDE - 2
        shapes.append(_rectangle("bar", x, base - height, width, height))
    return shapes


def _rectangle(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _shortened(title: str) -> str:
    return title if len(title) <= 46 else f"{title[:45]}…"


def _x(share: float) -> float:
    return _LEFT + share * _SIDE


def _y(share: float) -> float:
    return _TOP + (1 - share) * _SIDE
