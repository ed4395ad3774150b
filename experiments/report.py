"""Tables and pictures of evaluations, on the terminal and on disk."""

import csv
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def write_curves(
    path: pathlib.Path, curves: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Draws loss against step: a panel a task, a line with a band an optimizer.

    Args:
      path: PNG file.
      curves: for each task and optimizer the losses (runs, steps). Lines are means of
        the runs that stayed finite, bands their standard errors.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(curves), figsize=(4.6 * len(curves), 3.8), squeeze=False
    )
    for panel, (task, lines) in zip(panels[0], curves.items(), strict=True):
        highest = 0.0
        for colour, (name, losses) in zip(COLOURS, lines.items(), strict=False):
            finite = losses[np.isfinite(losses).all(axis=1)]
            if not len(finite):
                continue
            mean = finite.mean(axis=0)
            error = (
                finite.std(axis=0, ddof=1) / len(finite) ** 0.5
                if len(finite) > 1
                else np.zeros_like(mean)
            )
            steps = np.arange(mean.size)
            style = {"color": colour, "linewidth": 1.6}
            panel.plot(steps, mean, label=name, **style)
            panel.fill_between(
                steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0
            )
            highest = max(highest, float(mean[0]))
        panel.set_yscale("log")
        panel.set_ylim(top=2 * highest if highest else None)
        panel.set_title(task)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("minibatch loss (nats)")
    panels[0][-1].legend(fontsize="small")
    figure.tight_layout()
    write(path, lambda file: figure.savefig(file, dpi=150, format="png"))
    pyplot.close(figure)
