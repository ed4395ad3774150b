"""Tables and pictures of evaluations, on the terminal and on disk."""

import csv
import importlib.util
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from l2l_jax.plotting import COLOURS, Line, Panel, draw, loss_curves

_KNOWN = ("adam", "longrun", "rnnprop", "dm", "rmsprop", "adadelta", "adagrad")
_COLOUR_OF = dict(zip(_KNOWN, COLOURS, strict=False))
COLUMNS = ("task", "optimizer", "rate", "mean", "stderr", "median", "runs", "diverged")
MEANING = (
    "mean, stderr: of runs with a finite final loss; diverged: those that ended above"
    " their start, or not finite"
)


def new_directory(path: str | pathlib.Path) -> pathlib.Path:
    """Makes the directory of the results, and says where it is.

    Raises:
      FileExistsError: it is there and not empty; nothing is ever overwritten.
      ModuleNotFoundError: what the results or bars are drawn with is missing.
    """
    for module in ("matplotlib", "tqdm"):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}")
    directory = pathlib.Path(path)
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(
            f"{directory} is not empty, and results are never overwritten; name another"
            " directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    print(f"writing to {directory}", flush=True)
    return directory


def write(path: pathlib.Path, writer: Callable[[pathlib.Path], Any]) -> None:
    """Calls `writer` with a temporary name in the same directory, then renames."""
    # Others may write a file of that name at the same time; the suffix says the format.
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
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


def compare(ours: np.ndarray, other: np.ndarray) -> tuple[float, float, str]:
    """Ratio of the means, 2 standard errors of it, and "below", "level" or "above".

    Args:
      ours: float (R,), final losses of runs.
      other: float (R,), of runs paired with them: same initial parameters, same
        minibatches.

    Example:
      >>> ratio, error, word = compare(np.array([1.0, 2.1]), np.array([2.0, 4.0]))
      >>> round(ratio, 3), round(error, 3), word
      (0.517, 0.022, 'below')
    """
    finite = np.isfinite(ours), np.isfinite(other)
    if not np.all(finite):
        lost, theirs = (np.sum(~runs) for runs in finite)
        return math.nan, math.nan, "below" if lost < theirs else "above"
    ratio = float(ours.mean() / other.mean())
    difference = ours - ratio * other
    error = 2 * float(difference.std(ddof=1) / len(ours) ** 0.5 / other.mean())
    if abs(ratio - 1) <= error:
        return ratio, error, "level"
    return ratio, error, "below" if ratio < 1 else "above"


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each optimizer, that of a known one the same in all pictures.

    Example:
      >>> colours(["mine", "adam"]) == {"adam": COLOURS[0], "mine": COLOURS[1]}
      True
    """
    names = list(names)
    found = {name: colour for name, colour in _COLOUR_OF.items() if name in names}
    spare = [colour for colour in COLOURS if colour not in found.values()]
    others = [name for name in names if name not in found]
    return found | dict(zip(others, itertools.cycle(spare or COLOURS), strict=False))


def panels_of(
    rows: Sequence[Mapping[str, Any]],
    columns: tuple[str, str, str],
    labels: tuple[str, str],
    **options: Any,
) -> list[Panel]:
    """A panel for each "test" of the rows, a line an "optimizer", a point a row.

    Args:
      rows: of a table.
      columns: those of x, y and the standard error of y.
      labels: of both axes.
      **options: of `Panel`.
    """

    def line(test: str, name: str, colour: str) -> Line:
        chosen = [r for r in rows if (r["test"], r["optimizer"]) == (test, name)]
        points = (np.array([r[column] for r in chosen]) for column in columns)
        return Line(name, *points, {"color": colour, "marker": "o"})

    of = colours(dict.fromkeys(row["optimizer"] for row in rows))
    return [
        Panel(test, *labels, [line(test, *one) for one in of.items()], **options)
        for test in dict.fromkeys(row["test"] for row in rows)
    ]


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

    with matplotlib.rc_context({"svg.hashsalt": "l2l_jax"}):
        figure = draw(panels, columns)
        for path in paths:
            kind = path.suffix[1:]
            # No date, or the bytes would change from day to day.
            metadata = {"Date": None} if kind == "svg" else {}
            options = {"dpi": 150, "format": kind, "metadata": metadata}
            write(path, lambda file, options=options: figure.savefig(file, **options))


def write_result(
    base: pathlib.Path, rows: Sequence[Mapping[str, Any]], panels: Sequence[Panel]
) -> None:
    """Prints a table and writes it, and its picture: base.csv, base.png, base.svg."""
    print(table(rows, list(rows[0])))
    write_csv(base.with_suffix(".csv"), rows)
    write_panels([base.with_suffix(suffix) for suffix in (".png", ".svg")], panels)


def write_curves(
    path: pathlib.Path, curves: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Draws loss against step: a panel a task, a line with a band an optimizer.

    Args:
      path: PNG file.
      curves: for each task and optimizer the losses (runs, steps). Lines are means of
        the runs that stayed finite, bands their standard errors.
    """
    names = dict.fromkeys(name for of_task in curves.values() for name in of_task)
    colour = colours(names)

    def panel(task: str) -> Panel:
        plain = loss_curves(curves[task], task)
        lines = [
            line._replace(style={"color": colour[line.label]}) for line in plain.lines
        ]
        return plain._replace(lines=lines)

    write_panels([path], [panel(task) for task in curves])
