"""Results as a picture: one panel of bars a scenario, in SVG."""

from collections.abc import Iterable
from html import escape

from benchmarks.results import Case, Result

WIDTH, LABEL, VALUE = 860, 250, 110
LINE, TITLE, GAP = 22, 44, 18
_OURS, _FLOOR, _OTHERS = "#0b7a75", "#9aa0a6", "#c7922b"
_STYLE = "text{font:13px system-ui,sans-serif;fill:#333}.t{font-weight:600}.s{font-size:11px;fill:#777}"


def render(results: Iterable[Result]) -> str:
    """Return the SVG; longer bars are more of what the panel's title names."""
    panels, top = [], GAP
    for result in results:
        panels.append(f'<g transform="translate(0 {top})">{_panel(result)}</g>')
        top += TITLE + LINE * len(result.cases) + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(panels)}</svg>\n'
    )


def _panel(result: Result) -> str:
    figure = result.scenario.figures[0]
    spreads = [case.spread(figure.key) for case in result.cases]
    most = max((spread.most for spread in spreads if spread is not None), default=0.0) or 1.0
    bars = [_bar(result, case, row, most) for row, case in enumerate(result.cases)]
    title = f"{result.scenario.name}: {figure.heading}"
    about = f'<text class="s" x="16" y="34">{escape(result.scenario.about)}</text>'
    return f'<text class="t" x="16" y="16">{escape(title)}</text>{about}{"".join(bars)}'


def _bar(result: Result, case: Case, row: int, most: float) -> str:
    figure = result.scenario.figures[0]
    spread, y = case.spread(figure.key), TITLE + row * LINE
    label = f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(case.label)}</text>'
    if spread is None:
        return f'{label}<text class="s" x="{LABEL}" y="{y + 14}">void</text>'
    scale = (WIDTH - LABEL - VALUE) / most
    width, least, longest = (scale * value for value in spread)
    value = f"{spread.median:,.{figure.digits}f}"
    return (
        f'{label}<rect x="{LABEL}" y="{y + 2}" width="{width:.1f}" height="{LINE - 6}" rx="2" '
        f'fill="{_colour(case)}"/>'
        f'<path d="M{LABEL + least:.1f} {y + 10}H{LABEL + longest:.1f}" stroke="#333" stroke-width="1.5"/>'
        f'<text x="{LABEL + longest + 6:.1f}" y="{y + 14}">{value}</text>'
    )


def _colour(case: Case) -> str:
    if case.rival.name.startswith("asgi_ws"):
        return _OURS
    return _FLOOR if case.rival.name == "raw" else _OTHERS
