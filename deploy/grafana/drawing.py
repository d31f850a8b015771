"""Draws a dashboard from Prometheus' answers as a small SVG: the panels stand where Grafana shows them."""

import math
from html import escape

COLUMN, ROW, GAP = 50, 26, 8
COLOURS = ["#2f6fb5", "#d9782d", "#3c9a5f", "#b5413f", "#7d5fb2", "#8a6d4f", "#c65b9b", "#6b7280", "#a8a32b", "#2a9da8"]


def drawn(dashboard: dict, answers: dict) -> str:
    """`answers` gives for each panel's id its series, as (legend, [(time, value)])."""
    panels = dashboard["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * ROW + GAP
    shapes = "\n".join(shape for panel in panels for shape in panel_shapes(panel, answers[panel["id"]]))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * COLUMN + GAP} {height}"'
            f' font-family="sans-serif" font-size="11" fill="#24292f">\n<title>{escape(dashboard["title"])}</title>\n'
            f'<rect width="100%" height="100%" fill="#f4f5f7"/>\n{shapes}\n</svg>\n')


def panel_shapes(panel: dict, series: list):
    place = panel["gridPos"]
    x, y = place["x"] * COLUMN + GAP, place["y"] * ROW + GAP
    width, height = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
    unit = panel["fieldConfig"]["defaults"]["unit"]
    yield f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="#fff" stroke="#d8dbe0"/>'
    yield text(x + 10, y + 18, panel["title"], 'font-weight="bold"')
    if panel["type"] == "stat":
        value = ", ".join(f"{legend} {shown(points[-1][1], unit)}".strip() for legend, points in series)
        yield text(x + width / 2, y + height / 2 + 18, value, 'font-size="24" text-anchor="middle" fill="#2f6fb5"')
    else:
        yield from chart(x + 60, y + 30, width - 72, height - 68, series, unit)


def chart(x: float, y: float, width: float, height: float, series: list, unit: str):
    points = [point for _, line in series for point in line]
    first, last = min(t for t, _ in points), max(t for t, _ in points)
    top = rounded(max(v for _, v in points))
    # What stayed zero is one line at the bottom; it needs no name.
    series = [one for one in series if any(v for _, v in one[1])] or series[:1]
    for part in (0, 0.5, 1):
        level = y + height * (1 - part)
        yield f'<path d="M{x} {level:.0f}h{width}" stroke="#e5e7eb"/>'
        yield text(x - 6, level + 4, shown(top * part, unit), 'text-anchor="end" fill="#6b7280"')
    legend_x = x - 48
    for number, (legend, line) in enumerate(sorted(series, key=lambda one: -max(v for _, v in one[1]))):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x + (t - first) / ((last - first) or 1) * width:.0f},{y + height * (1 - v / top):.0f}"
                        for t, v in line)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        advance = len(legend) * 6.2 + 22
        if legend_x + advance <= x + width:
            yield f'<rect x="{legend_x}" y="{y + height + 15:.0f}" width="9" height="9" fill="{colour}"/>'
            yield text(legend_x + 13, y + height + 23, legend)
        legend_x += advance


def rounded(value: float) -> float:
    """The next number that reads well on an axis."""
    if not value:
        return 1
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if value <= step * power)


def text(x: float, y: float, content: str, style: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{escape(content)}</text>'


def shown(value: float, unit: str) -> str:
    """A value as Grafana shows it in this unit."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or not value else f"{value * 1000:.3g} ms"
    if unit == "bytes":
        return f"{value / 1024:.3g} KiB"
    return f"{value:.3g}" + {"reqps": " req/s", "ops": " op/s"}.get(unit, "")
