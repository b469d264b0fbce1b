"""How figures are drawn: as SVG for a page, in its ink, and as PNG on white."""

import dataclasses
import io
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import matplotlib.figure
import numpy as np

# Replaced by `currentColor` in the SVG, so that a figure follows the page into dark mode.
_INK = "#010203"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "langmerge_jax",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
# Of Okabe and Ito: told apart by colour-blind readers, on light ground and on dark.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f")
# As wide as a telephone, so that the letters need not shrink there.
_WIDTH = 4.4


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure that is drawn when it is asked for.

    Attributes:
      name: of its file.
      caption: below it.
      alt: what it shows, for readers who do not see it.
      draw: draws into an empty matplotlib figure.
      height: inches; all are equally wide.
    """

    name: str
    caption: str
    alt: str
    draw: Callable[[matplotlib.figure.Figure], None]
    height: float = 2.8

    def _drawn(self) -> matplotlib.figure.Figure:
        figure = matplotlib.figure.Figure((_WIDTH, self.height), layout="constrained")
        self.draw(figure)
        return figure

    def svg(self) -> str:
        """Returns the figure as an SVG element whose ink is the text colour around it."""
        text = io.StringIO()
        with matplotlib.rc_context(_STYLE):
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self._drawn().savefig(text, format="svg", metadata=nothing)
        found = text.getvalue()
        found = found[found.index("<svg") :].replace(_INK, "currentColor")
        # Several figures stand in one page: names of groups would be there twice.
        return re.sub(r'<g id="[^"]*"', "<g", found)

    def save_png(self, path: pathlib.Path) -> None:
        """Writes the figure as PNG on white."""
        with matplotlib.rc_context(_STYLE | {"figure.facecolor": "white"}):
            self._drawn().savefig(path, format="png", dpi=150)


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float,
    high: float,
    across: str = "",
    up: str = "",
) -> Callable[[matplotlib.figure.Figure], None]:
    """Returns what draws a table of values as colours, each with its number.

    Args:
      values: [row][column]; None is left empty.
      rows, columns: their names.
      low, high: values of the two ends of the colours.
      across, up: what the axes are.
    """
    table = np.array([[np.nan if x is None else x for x in row] for row in values], float)

    def draw(figure):
        axes = figure.subplots()
        axes.pcolormesh(table, cmap="viridis", vmin=low, vmax=high, edgecolors="none")
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        for i, j in np.argwhere(np.isfinite(table)):
            bright = (table[i, j] - low) / ((high - low) or 1) > 0.6
            axes.text(
                j + 0.5,
                i + 0.5,
                f"{table[i, j]:.2f}",
                ha="center",
                va="center",
                color="#111111" if bright else "#ffffff",
            )

    return draw


def bars(
    groups: Mapping[str, Mapping[str, float]], label: str
) -> Callable[[matplotlib.figure.Figure], None]:
    """Returns what draws horizontal bars: a block for each group, a bar for each of its series."""
    series = list(dict.fromkeys(key for values in groups.values() for key in values))

    def draw(figure):
        axes = figure.subplots()
        thick = 0.8 / len(series)
        for number, key in enumerate(series):
            places = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * thick
            shown = [values.get(key, np.nan) for values in groups.values()]
            drawn = axes.barh(places, shown, thick * 0.9, color=COLOURS[number], label=key)
            axes.bar_label(drawn, fmt="{:.1f}", padding=2, color=_INK, fontsize=9)
        axes.set_yticks(range(len(groups)), list(groups))
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.16)
        axes.set_xlabel(label)
        if len(series) > 1:
            figure.legend(loc="outside upper center", ncols=len(series))

    return draw


def points(
    values: Mapping[str, tuple[float, float, float]], label: str, zone: tuple[float, float] | None
) -> Callable[[matplotlib.figure.Figure], None]:
    """Returns what draws values with their intervals, one below the other.

    Args:
      values: {name: (value, low, high)}.
      label: of the axis.
      zone: from where to where the axis is shaded.
    """

    def draw(figure):
        axes = figure.subplots()
        if zone:
            axes.axvspan(*zone, color=COLOURS[2], alpha=0.25, linewidth=0)
        for place, (value, low, high) in enumerate(values.values()):
            axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=2)
            axes.plot([value], [place], "o", color=COLOURS[0], markersize=5)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(range(len(values)), list(values))
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlabel(label)

    return draw


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    across: str,
    up: str,
    band: tuple[Sequence[float], Sequence[float], Sequence[float]] | None = None,
) -> Callable[[matplotlib.figure.Figure], None]:
    """Returns what draws lines, each (x values, y values).

    Args:
      series: {name: line}; a single one needs no legend.
      across, up: what the axes are.
      band: x values, lower and upper ends of an area to shade.
    """

    def draw(figure):
        axes = figure.subplots()
        if band:
            axes.fill_between(*band, color=COLOURS[0], alpha=0.25, linewidth=0)
        for number, (key, (x, y)) in enumerate(series.items()):
            axes.plot(x, y, color=COLOURS[number % len(COLOURS)], label=key, linewidth=1.5)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        if len(series) > 1:
            figure.legend(loc="outside upper center", ncols=min(len(series), 4))

    return draw
