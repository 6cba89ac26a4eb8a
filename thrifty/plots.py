"""Draw a plot as inline SVG that takes its font and its colours from the page around it."""

import io
import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

Number = float | int

# Colours are drawn as stand-ins, then renamed to CSS variables: the page decides what they are, in light and in dark.
_INK, _SOFT, _GRID, _PAPER = "#010101", "#020202", "#030303", "#040404"
_SERIES = ["#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006"]
_CSS = {_INK: "currentColor", _SOFT: "var(--soft)", _GRID: "var(--line)", _PAPER: "var(--paper)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES, start=1)
}
_MARKERS = "os^DvP"  # a second sign beside the colour, for eyes and printers that see none
_SIDES = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]  # where a label may stand, best first
_INCHES = (4.35, 3.0)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 8.2,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _SOFT,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Series:
    """Points that belong together; `labels`, where given, is the text beside each; None is a value not measured."""

    name: str
    x: Sequence[Number | None]
    y: Sequence[Number | None]
    labels: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plot:
    """One picture of a report; the labels of its axes name their units."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    kind: Literal["line", "scatter"] = "line"
    log_x: bool = False
    log_y: bool = False
    caption: str = ""


@dataclass(frozen=True)
class _Points:
    """What of a series can be drawn on the plot's axes."""

    name: str
    color: str
    marker: str
    points: list[tuple[Number, Number, str]]


def draw(plot: Plot, names: Sequence[str] | None = None) -> str:
    """Return `plot` as an `<svg>` element for an HTML page.

    Text inherits the page's font; ink is `currentColor`; the rest uses the CSS variables `--soft`, `--line`, `--paper`
    and `--series-1` to `--series-6`, in the order of `names`: give the names of all plots of a page, and each looks
    the same in all of them. Points that are not finite, or not positive on a log axis, are left out.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": plot.title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page's own font draws it
        figure = Figure(figsize=_INCHES, dpi=72, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if not names or len(names) > len(_SERIES):  # then no colour would stand for one name only
            names = [series.name for series in plot.series]
        _draw_series(axes, plot, [_drawable(plot, series, names.index(series.name)) for series in plot.series])
        _draw_frame(axes, plot)
        _place_labels(figure, axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(text.getvalue(), plot.title)


def _drawable(plot: Plot, series: Series, number: int) -> _Points:
    labels = [*series.labels, *[""] * len(series.x)]
    if plot.kind == "scatter" and len(series.x) == 1 and not series.labels:
        labels[0] = series.name
    points = [
        (x, y, label)
        for x, y, label in zip(series.x, series.y, labels, strict=False)
        if _fits(x, plot.log_x) and _fits(y, plot.log_y)
    ]
    look = number % len(_SERIES)
    return _Points(series.name, _SERIES[look], _MARKERS[(look + number // len(_SERIES)) % len(_MARKERS)], points)


def _fits(value: Number | None, log: bool) -> TypeGuard[Number]:
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def _draw_series(axes: "Axes", plot: Plot, series: list[_Points]) -> None:
    for one in series:
        if not one.points:
            continue
        x, y, labels = zip(*one.points, strict=True)
        axes.plot(
            x,
            y,
            color=one.color,
            label=one.name,
            linestyle="-" if plot.kind == "line" else "none",
            linewidth=1.5,
            marker=one.marker,
            markersize=4.5 if plot.kind == "line" else 6.5,
            markeredgecolor=_PAPER,
            markeredgewidth=0.8,
            clip_on=False,
            zorder=3,
        )
        for place, label in enumerate(labels):
            if label:
                _label(axes, label, x[place], y[place], "point")
        if plot.kind == "line" and len(series) > 1:
            _label(axes, one.name, x[-1], y[-1], "end", one.color)
    crowded = any(len(one.points) > 1 for one in series)
    if plot.kind == "scatter" and len(series) > 1 and crowded:
        where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.13), "borderaxespad": 0}
        axes.legend(**where, ncols=min(3, len(series)), frameon=False, handletextpad=0, columnspacing=1.2)
    if not any(one.points for one in series):
        axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", va="center")


def _label(axes: "Axes", text: str, x: Number, y: Number, role: str, color: str = _INK) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(8, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        color=color,
        gid=role,
        in_layout=role == "end",  # the name of a line stands beside the axes, the name of a point within
        zorder=4,
        arrowprops={"arrowstyle": "-", "color": _GRID, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 4},
    )


def _draw_frame(axes: "Axes", plot: Plot) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.margins(x=0.05 if plot.kind == "line" else 0.14, y=0.1 if plot.kind == "line" else 0.16)
    axes.grid(axis="y" if plot.kind == "line" else "both")
    axes.set_axisbelow(True)
    axes.set_xlabel(textwrap.fill(plot.x_label, 60), loc="left", labelpad=5)
    axes.set_title(
        textwrap.fill(plot.y_label, 60), loc="left", fontsize=8.2, pad=8, color=_SOFT
    )  # upright, easier to read
    _scale(axes, axes.xaxis, plot.log_x, sorted({x for one in plot.series for x in one.x if _fits(x, plot.log_x)}))
    _scale(axes, axes.yaxis, plot.log_y, [])


def _scale(axes: "Axes", axis: "Axis", log: bool, values: Sequence[Number]) -> None:
    """Set the scale and its ticks: at the `values` themselves where a log axis has few of them."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    vertical = axis is axes.yaxis
    if log:
        (axes.set_yscale if vertical else axes.set_xscale)("log")
    low, high = sorted(axes.get_ylim() if vertical else axes.get_xlim())
    ticks = [float(tick) for tick in MaxNLocator(5 if vertical else 6).tick_values(low, high)]
    if log:
        ladder = [digit * 10.0**power for power in range(-12, 16) for digit in (1, 2, 5)]
        ladder = [tick for tick in ladder if low <= tick <= high]
        while len(ladder) > 7:
            ladder = ladder[::3] if len(ladder) > 12 else ladder[::2]
        ticks = values if 2 <= len(values) <= 7 and _apart(values) else ladder if len(ladder) >= 2 else ticks
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_ticklabels(tick_labels(ticks, log))


def _apart(values: Sequence[Number]) -> bool:
    span = math.log(values[-1] / values[0])
    return all(math.log(right / left) > span / 10 for left, right in itertools.pairwise(values))


def tick_labels(ticks: Sequence[Number], log: bool = False) -> list[str]:
    """Return short labels: 512, 2k, 8k where there are thousands, equally many decimals where there are none."""
    if log or max(map(abs, ticks), default=0) >= 10_000:
        return [_short(tick) for tick in ticks]
    decimals = next((d for d in range(8) if all(math.isclose(round(t, d), t, abs_tol=1e-9) for t in ticks)), 8)
    return [f"{tick + 0.0:,.{decimals}f}" for tick in ticks]


def _short(value: Number) -> str:
    thousand = 1000 if value % 1000 == 0 or value % 1024 else 1024  # 2048 tokens are 2k to everyone who counts tokens
    for power, suffix in ((3, "G"), (2, "M"), (1, "k")):
        if abs(value) >= thousand**power:
            return f"{value / thousand**power:.3g}{suffix}"
    return f"{value:.3g}"


def _place_labels(figure: "Figure", axes: "Axes") -> None:
    """Move the labels apart: names of lines up and down, names of points around their points."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    annotations: list[Any] = [text for text in axes.texts if text.get_gid()]
    _spread(axes, [text for text in annotations if text.get_gid() == "end"])
    _surround(axes, [text for text in annotations if text.get_gid() == "point"])


def _spread(axes: "Axes", names: list[Any]) -> None:
    """Shift the names of lines so that each keeps a line of text to itself, near where its line ends."""
    height = 11.0
    heights = [(float(name.axes.transData.transform(name.xy)[1]), name) for name in names]
    heights.sort(key=lambda pair: pair[0])
    groups: list[list[float]] = []  # [centre, count]: names that touch move as one, around their common centre
    for y, _ in heights:
        groups.append([y, 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < height * (groups[-1][1] + groups[-2][1]) / 2:
            (upper, above), (lower, below) = groups.pop(), groups.pop()
            groups.append([(upper * above + lower * below) / (above + below), above + below])
    edge = axes.get_window_extent()
    for group in groups:  # a tall stack stays beside the axes, if it can
        reach = height * group[1] / 2
        group[0] = max(min(group[0], edge.y1 - reach), edge.y0 + reach)
    targets = [centre + height * (place - (count - 1) / 2) for centre, count in groups for place in range(int(count))]
    for target, (y, name) in zip(targets, heights, strict=True):
        name.set_position((8, target - y))
        if name.arrow_patch:
            name.arrow_patch.set_visible(abs(target - y) > height / 2)


def _surround(axes: "Axes", labels: list[Any]) -> None:
    """Put each label on the side of its point where it covers the least; three rounds, each label in turn."""
    import numpy as np
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    points = [axes.transData.transform(xy) for line in axes.lines for xy in np.asarray(line.get_xydata())]
    obstacles = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in points]
    edge = axes.get_window_extent()
    inside = Bbox.from_extents(edge.x0 - 4, edge.y0 + 2, _INCHES[0] * 72 - 2, edge.y1 + 4)
    sizes = [Text.get_window_extent(label) for label in labels]  # of an annotation it would count the arrow
    boxes: dict[int, Bbox] = {}
    for number in [*range(len(labels))] * 3:
        label, size = labels[number], sizes[number]
        x, y = axes.transData.transform(label.xy)
        others = [*obstacles, *(box for key, box in boxes.items() if key != number)]
        spots = [(_beside(x, y, size, dx, dy, gap), dx, gap) for gap in (6.0, 16.0, 28.0) for dx, dy in _SIDES]
        costs = [
            sum(_shared(box, other) for other in others) + 4 * (size.width * size.height - _shared(box, inside)) + gap
            for box, _, gap in spots
        ]
        box, dx, gap = spots[costs.index(min(costs))]
        boxes[number] = box
        label.set(ha=("right", "center", "left")[dx + 1], va="bottom")  # the page's font may be wider or narrower
        label.set_position(((box.x1, (box.x0 + box.x1) / 2, box.x0)[dx + 1] - x, box.y0 - y))
        label.arrow_patch.set_visible(gap > 6)  # a label that had to go far is tied to its point


def _beside(x: float, y: float, size: "Bbox", dx: int, dy: int, gap: float) -> "Bbox":
    """Return a box of `size` beside a point, to the side (`dx`, `dy`), `gap` away."""
    from matplotlib.transforms import Bbox

    gap = 0.7 * gap if dx and dy else gap
    left, bottom = x + dx * gap + (dx - 1) * size.width / 2, y + dy * gap + (dy - 1) * size.height / 2
    return Bbox.from_bounds(left, bottom, size.width, size.height)


def _shared(one: "Bbox", other: "Bbox") -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)


def _for_page(svg: str, title: str) -> str:
    """Turn matplotlib's file into an element of a page: no ids that clash, no addresses, the page's looks."""
    from xml.sax.saxutils import quoteattr

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', svg)
    label = quoteattr(title)
    head = f'<svg role="img" aria-label={label} viewBox="{box.group(1) if box else ""}">'
    svg = head + svg[svg.index(">") + 1 :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("xlink:href", "href")
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", svg)
    svg = re.sub(r"(?<=[:;\s])#0[0-9a-f]{5}\b", lambda match: _CSS.get(match.group(), match.group()), svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
