"""A plot of lines as an SVG picture, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, BELOW, RIGHT, ABOVE = 720, 420, 70, 60, 150, 20
COLOURS = "#1f77b4 #d62728 #2ca02c #9467bd #ff7f0e #17becf #8c564b #e377c2 #7f7f7f".split()
TICKS = 5


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a plot.

    Attributes:
        name: In the legend.
        points: x and y of each.
    """

    name: str
    points: Sequence[tuple[float, float]]


def plot(lines: Sequence[Line], x_title: str, y_title: str) -> str:
    """Draw lines with markers, axes and a legend.

    Returns:
        The text of an SVG file.
    """
    xs = [x for line in lines for x, _ in line.points] or [0.0]
    ys = [y for line in lines for _, y in line.points] or [0.0]
    x_range, y_range = _range(xs), _range(ys)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BELOW - up * (HEIGHT - ABOVE - BELOW),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for step in range(TICKS + 1):
        x = x_range[0] + (x_range[1] - x_range[0]) * step / TICKS
        y = y_range[0] + (y_range[1] - y_range[0]) * step / TICKS
        (x_at, bottom), (left, y_at) = at(x, y_range[0]), at(x_range[0], y)
        right = WIDTH - RIGHT
        parts += [
            f'<path d="M{x_at:.1f} {bottom:.1f}V{ABOVE}" stroke="#e5e5e5"/>',
            f'<path d="M{left:.1f} {y_at:.1f}H{right}" stroke="#e5e5e5"/>',
            f'<text x="{x_at:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{x:.4g}</text>',
            f'<text x="{left - 8:.1f}" y="{y_at + 4:.1f}" text-anchor="end">{y:.4g}</text>',
        ]
    middle = (ABOVE + HEIGHT - BELOW) / 2
    parts += [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 15}" text-anchor="middle">'
        f"{escape(x_title)}</text>",
        f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_title)}</text>",
    ]
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        y_name, x_name = ABOVE + 18 * number + 12, WIDTH - RIGHT + 14
        parts += [
            f'<path d="M{x_name} {y_name - 4}h18" stroke="{colour}" stroke-width="3"/>',
            f'<text x="{x_name + 24}" y="{y_name}">{escape(line.name)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis, a little apart from the values."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room
