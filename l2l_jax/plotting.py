"""Pictures of optimizers: loss curves, rates, what a rule does, cost against quality.

Functions make a `Panel` or a `Map` of numbers, `draw` makes a figure of several::

    figure = draw([loss_curves({"Adam": adam.curves, "RNNprop": rnnprop.curves})])
    figure.savefig("curves.png", dpi=150)

Wants matplotlib, `pip install l2l_jax[plot]`; nothing is imported before it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from l2l_jax.baselines import Tuning
from l2l_jax.evaluate import Evaluation
from l2l_jax.probe import Response

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito: told apart by colour-blind readers, too.
COLOURS = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999999",
)
FONT_SIZE = 9.0


class Line(NamedTuple):
    """A line of a panel.

    Attributes:
      label: its name in the legend.
      x: floats (N,); what is not finite is left out.
      y: likewise.
      error: float (N,), half the height of the band around it; None: no band.
      style: of matplotlib, such as {"color": COLOURS[0]}.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None = None
    style: Mapping[str, Any] = {}


class Panel(NamedTuple):
    """One coordinate system of a picture.

    Attributes:
      title: above it.
      x_label: with the unit.
      y_label: likewise; shown where it is not that of the panel to the left.
      lines: from back to front.
      top: upper end of the y axis; None: as high as the lines.
      log: which axes are logarithmic, of "x" and "y".
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    top: float | None = None
    log: str = "y"


class Map(NamedTuple):
    """Numbers over a plane, as colours around 0.

    Attributes:
      title: above it.
      x_label: with the unit.
      y_label: likewise.
      x: float (N,), the middles of the cells, evenly spaced.
      y: float (M,), likewise.
      values: float (M, N).
      unit: beside the colours.
    """

    title: str
    x_label: str
    y_label: str
    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    unit: str


def band(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (T,) and its standard error (T,), zeros for one run, of losses (R, T)."""
    mean = losses.mean(axis=0)
    if len(losses) < 2:
        return mean, np.zeros_like(mean)
    return mean, losses.std(axis=0, ddof=1) / len(losses) ** 0.5


def loss_curves(
    curves: Mapping[str, np.ndarray], title: str = "", unit: str = "nats"
) -> Panel:
    """Loss against step: a line with a band an optimizer.

    Args:
      curves: for each name the losses (R, T) of R runs, such as `Evaluation.curves`.
        Lines are means of the runs that stayed finite, bands their standard errors; a
        name without such runs has no line.
      title: of the panel.
      unit: of the loss.

    Returns:
      The panel.

    Raises:
      ValueError: losses are not of that shape.

    Example:
      >>> import numpy as np
      >>> panel = loss_curves({"a": np.array([[4.0, 2.0], [2.0, np.inf]])})
      >>> panel.lines[0].y.tolist()
      [4.0, 2.0]
    """
    lines = []
    for i, (name, losses) in enumerate(curves.items()):
        losses = np.asarray(losses)
        if losses.ndim != 2:
            raise ValueError(
                f"curves[{name!r}] must have shape (runs, steps), got {losses.shape}"
            )
        finite = losses[np.isfinite(losses).all(axis=1)]
        if len(finite):
            style = {"color": COLOURS[i % len(COLOURS)]}
            steps = np.arange(finite.shape[1])
            lines.append(Line(name, steps, *band(finite), style))
    # One that rises far above where all began has diverged.
    top = 2 * max((float(line.y[0]) for line in lines), default=0.0) or None
    return Panel(title, "step", f"minibatch loss ({unit})", lines, top)


def rate_sensitivity(
    tunings: Sequence[Tuning],
    untuned: Mapping[str, Evaluation] | None = None,
    title: str = "",
    unit: str = "nats",
) -> Panel:
    """Final loss against learning rate, and what needs none as level lines.

    Args:
      tunings: of `l2l_jax.baselines.tune`, one an optimizer. A rate that loses a run is
        left out, because a mean of those that are left says nothing of it; the legend
        names who has no other.
      untuned: evaluations of optimizers without a rate to tune.
      title: of the panel.
      unit: of the loss.

    Returns:
      The panel, both axes logarithmic.

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, figure 3.
    """
    lines = []
    rates = [row["rate"] for tuning in tunings for row in tuning.table]
    ends = np.array([min(rates), max(rates)] if rates else [1e-3, 1.0])
    for i, (name, evaluation) in enumerate((untuned or {}).items()):
        level = evaluation.summary()["mean"]
        if level is not None:
            wide = {"color": COLOURS[i % len(COLOURS)], "linewidth": 2.0}
            lines.append(Line(name, ends, np.full(2, level), None, wide))
    for i, tuning in enumerate(tunings, len(untuned or {})):
        rows = [row for row in tuning.table if not row["not_finite"]]
        rate, mean, error = (
            np.array([row[key] or 0 for row in rows])
            for key in ("rate", "mean", "stderr")
        )
        style = {"color": COLOURS[i % len(COLOURS)], "marker": "o", "markersize": 3.0}
        style["linestyle"] = "--"
        name = tuning.name if rows else f"{tuning.name} (diverged)"
        lines.append(Line(name, rate, mean, error, style))
    return Panel(title, "learning rate", f"final loss ({unit})", lines, log="xy")


def cost_quality(
    points: Mapping[str, tuple[float, float, float]],
    cost: str = "milliseconds of a step",
    title: str = "",
    unit: str = "nats",
) -> Panel:
    """Final loss against cost, a point an optimizer.

    Args:
      points: for each name its cost, its loss and the standard error of that.
      cost: what the cost is, with its unit.
      title: of the panel.
      unit: of the loss.

    Returns:
      The panel, both axes logarithmic.
    """
    lines = [
        Line(
            name,
            np.array([x]),
            np.array([y]),
            np.array([error]),
            {"color": COLOURS[i % len(COLOURS)], "marker": "o", "linestyle": "none"},
        )
        for i, (name, (x, y, error)) in enumerate(points.items())
    ]
    return Panel(title, cost, f"final loss ({unit})", lines, log="xy")


def step_map(response: Response, title: str = "") -> Map:
    """What `l2l_jax.probe.step_response` found: the step as colours.

    Args:
      response: of a transformation at one age.
      title: of the map.

    Returns:
      The map.
    """
    return Map(
        title,
        "mean gradient before (RMS 1)",
        "gradient now (RMS 1)",
        response.mean,
        response.now,
        response.step,
        "step",
    )


def draw(panels: Sequence[Panel | Map], columns: int | None = None) -> Figure:
    """Draws panels side by side, one legend below all.

    Args:
      panels: row by row; lines of equal label share an entry of the legend.
      columns: panels in a row; None: all.

    Returns:
      A figure of at most 10 inches' width, which at the 830 pixels of a README has
      letters of ten pixels.

    Raises:
      TypeError: `panels` is a single one.
      ValueError: there are no panels, or `columns` is not positive.

    Example:
      >>> import numpy as np
      >>> figure = draw([loss_curves({"a": np.ones((3, 10))}, "flat")])
      >>> figure.axes[0].get_title()
      'flat'
    """
    if isinstance(panels, Panel | Map):
        one = type(panels).__name__
        raise TypeError(f"panels must be a sequence such as [panel], got one {one}")
    if not panels or (columns is not None and columns < 1):
        raise ValueError(
            "panels must be at least one and columns at least 1, got"
            f" {len(panels)} and {columns}"
        )
    import matplotlib
    from matplotlib.figure import Figure

    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    width = max(5.6, min(4.6 * columns, 10))
    height = 4.2 if rows == 1 else 2.6 * rows
    with matplotlib.rc_context({"font.size": FONT_SIZE}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        handles: dict[str, Any] = {}
        for place, (axis, panel) in enumerate(zip(axes.flat, panels, strict=False)):
            axis.set_title(panel.title, fontsize="medium")
            axis.set_xlabel(panel.x_label)
            axis.tick_params(labelsize=FONT_SIZE, which="both")
            same = place % columns and panel.y_label == panels[place - 1].y_label
            if not same:
                axis.set_ylabel(panel.y_label)
            if isinstance(panel, Map):
                _draw_map(axis, panel)
            else:
                handles = _draw_lines(axis, panel) | handles
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        if handles:
            # Eleven letters are an inch, the line before them half of one.
            entry = 0.6 + max(map(len, handles)) / 11
            beside = max(1, min(len(handles), int(width / max(entry, 1.2))))
            figure.legend(
                list(handles.values()),
                list(handles),
                loc="outside lower center",
                ncols=beside,
            )
    return figure


def _draw_lines(axis: Axes, panel: Panel) -> dict[str, Any]:
    """The handles of the legend."""
    handles = {}
    for line in panel.lines:
        style = {"linewidth": 1.6, **line.style}
        (drawn,) = axis.plot(line.x, line.y, label=line.label, **style)
        handles[line.label] = drawn
        if line.error is None:
            continue
        colour = drawn.get_color()
        if len(line.x) == 1:
            axis.errorbar(line.x, line.y, line.error, color=colour, capsize=3)
        else:
            low, high = line.y - line.error, line.y + line.error
            axis.fill_between(line.x, low, high, color=colour, alpha=0.2, linewidth=0)
    # A logarithmic axis without a positive number cannot be drawn.
    positive = {
        "x": any(np.any(np.asarray(line.x) > 0) for line in panel.lines),
        "y": any(np.any(np.asarray(line.y) > 0) for line in panel.lines),
    }
    if "x" in panel.log and positive["x"]:
        axis.set_xscale("log")
        _plain_ticks(axis.xaxis)
    elif all(np.all(np.mod(line.x, 1) == 0) for line in panel.lines):
        _whole_ticks(axis.xaxis)
    if "y" in panel.log and positive["y"]:
        axis.set_yscale("log")
        _plain_ticks(axis.yaxis)
    else:
        axis.set_ylim(bottom=0)
    axis.set_ylim(top=panel.top)
    axis.grid(alpha=0.3, which="both")
    return handles


def _plain_ticks(axis: Axis) -> None:
    """`0.2` rather than 2 times ten to the -1; of a short axis also between powers."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x, pos=None):
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(minor_thresholds=(1.2, 0.4)))


def _whole_ticks(axis: Axis) -> None:
    """No step 2.5."""
    from matplotlib.ticker import MaxNLocator

    steps = [1, 2, 2.5, 5, 10]  # as by default
    axis.set_major_locator(MaxNLocator("auto", steps=steps, integer=True))


def _draw_map(axis: Axes, panel: Map) -> None:
    most = float(np.max(np.abs(panel.values))) or 1.0
    # Orange against purple around white: for colour-blind readers, too.
    colours: dict[str, Any] = {"cmap": "PuOr", "vmin": -most, "vmax": most}
    mesh = axis.pcolormesh(panel.x, panel.y, panel.values, shading="nearest", **colours)
    axis.figure.colorbar(mesh, ax=axis, label=panel.unit)
