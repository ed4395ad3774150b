"""Tables and pictures of evaluations, on the terminal and on disk."""

import csv
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

COLUMNS = ("task", "optimizer", "rate", "mean", "stderr", "median", "runs", "diverged")

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


def new_directory(path: str) -> pathlib.Path:
    """Makes the directory of the results.

    Raises:
      FileExistsError: it is there and not empty; nothing is ever overwritten.
    """
    directory = pathlib.Path(path)
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(
            f"{directory} is not empty, and results are never overwritten; name another"
            " directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def write(path: pathlib.Path, writer: Callable[[pathlib.Path], Any]) -> None:
    """Calls `writer` with a temporary name in the same directory, then renames."""
    temporary = path.with_name(f".tmp-{path.name}")
    writer(temporary)
    os.replace(temporary, path)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes JSON, numbers that are not finite as null."""

    def plain(value):
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple, np.ndarray)):
            return [plain(item) for item in value]
        if isinstance(value, (float, np.floating)):
            return float(value) if np.isfinite(value) else None
        return value

    text = json.dumps(plain(content), indent=1, allow_nan=False) + "\n"
    write(path, lambda file: file.write_text(text))


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV, all keys of the first as columns."""

    def writer(file: pathlib.Path) -> None:
        with file.open("w", newline="") as stream:
            table = csv.DictWriter(stream, list(rows[0]), extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)

    write(path, writer)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Rows as aligned text, which is Markdown too."""

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    columns = [name for name in columns if any(name in row for row in rows)]
    lines = [columns, *([cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    return "\n".join(text)


class Line(NamedTuple):
    """A line of a panel.

    Attributes:
      label: its name in the legend.
      x, y: floats (N,); what is not finite is left out.
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
      x_label, y_label: with units.
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


def band(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (T,) and its standard error (T,), zeros for one run, of losses (R, T)."""
    mean = losses.mean(axis=0)
    if len(losses) < 2:
        return mean, np.zeros_like(mean)
    return mean, losses.std(axis=0, ddof=1) / len(losses) ** 0.5


def write_panels(
    paths: Sequence[pathlib.Path],
    panels: Sequence[Panel],
    columns: int | None = None,
) -> None:
    """Draws panels side by side, one legend below; equal input gives equal bytes.

    Args:
      paths: files; the suffix says the format, ".png" or ".svg".
      panels: row by row; lines of equal label share an entry of the legend.
      columns: panels in a row; None: all.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # At 830 pixels, the width of a README, ten inches make nine points ten pixels.
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    width = max(5.6, min(4.6 * columns, 10))
    height = 4.2 if rows == 1 else 2.6 * rows
    with pyplot.rc_context({"svg.hashsalt": "l2l_jax", "font.size": 9}):
        figure, axes = pyplot.subplots(
            rows,
            columns,
            figsize=(width, height),
            squeeze=False,
            layout="constrained",
        )
        handles = {}
        for axis, panel in zip(axes.flat, panels, strict=True):
            for line in panel.lines:
                style = {"linewidth": 1.6, **line.style}
                (drawn,) = axis.plot(line.x, line.y, label=line.label, **style)
                handles.setdefault(line.label, drawn)
                if line.error is not None:
                    low, high = line.y - line.error, line.y + line.error
                    axis.fill_between(
                        line.x,
                        low,
                        high,
                        color=drawn.get_color(),
                        alpha=0.2,
                        linewidth=0,
                    )
            if "x" in panel.log:
                axis.set_xscale("log")
            if "y" in panel.log:
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=0)
            axis.set_ylim(top=panel.top)
            axis.set_title(panel.title, fontsize="medium")
            axis.set_xlabel(panel.x_label)
            axis.grid(alpha=0.3, which="both")
        for row in range(rows):
            axes[row][0].set_ylabel(panels[row * columns].y_label)
        beside = max(1, min(len(handles), int(width // 2.4)))
        if handles:
            figure.legend(
                handles.values(), handles, loc="outside lower center", ncols=beside
            )
        for path in paths:
            kind = path.suffix[1:]
            # No date, or the bytes would change from day to day.
            metadata = {"Date": None} if kind == "svg" else {}
            options = {"dpi": 150, "format": kind, "metadata": metadata}
            write(path, lambda file, options=options: figure.savefig(file, **options))
        pyplot.close(figure)


def write_curves(
    path: pathlib.Path, curves: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Draws loss against step: a panel a task, a line with a band an optimizer.

    Args:
      path: PNG file.
      curves: for each task and optimizer the losses (runs, steps). Lines are means of
        the runs that stayed finite, bands their standard errors.
    """
    panels = []
    for task, of_task in curves.items():
        lines = []
        for colour, (name, losses) in zip(COLOURS, of_task.items(), strict=False):
            finite = losses[np.isfinite(losses).all(axis=1)]
            if len(finite):
                steps = np.arange(finite.shape[1])
                lines.append(Line(name, steps, *band(finite), {"color": colour}))
        top = 2 * max((float(line.y[0]) for line in lines), default=0.0) or None
        panels.append(Panel(task, "step", "minibatch loss (nats)", lines, top))
    write_panels([path], panels)
