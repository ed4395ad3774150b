r"""A terminal's view of a training, running or finished.

    python -m experiments.watch --workdir=runs/rnnprop

Shows how far it is, its speed and the time left, the meta-loss, the norms of the
meta-gradient and of φ's updates as lines of bars, and the scores of saved weights. It
looks every two seconds until Ctrl-C; with --once, or where the output is no terminal,
once. It only reads, so any number may watch.
"""

import datetime
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import common, options
from l2l_jax import runs

FLAGS = flags.FLAGS
options.define_directory("workdir", None, "Directory of the run.", required=True)
flags.DEFINE_bool("once", False, "Look once and stop.")
options.define_float("seconds", 2.0, "Between two looks.", 0.1)

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 36  # of a line of bars; all fits a terminal of 80 columns
LATEST = 100  # iterations over which speed and losses are averaged
SCORES = 5  # of saved weights that are shown
# Column of the log: what it is, in words.
SHOWN = {
    "train_loss": "meta-loss",
    "gradient_norm": "norm of the meta-gradient",
    "update_norm": "norm of φ's update",
}


def bars(values: Sequence[float], width: int = WIDTH) -> str:
    """Values as a line of bars, each the mean of its share of them.

    Heights are by the logarithm if all are positive; a share without a finite value
    is a blank.

    Example:
      >>> bars([1.0, 2.0, 4.0, 8.0, float("nan")], 5)
      '▁▃▆█ '
    """
    array = np.asarray(values, float)
    if array.size and np.nanmin(array, initial=np.inf) > 0:
        array = np.log(array)
    shares = np.array_split(array, min(width, array.size)) if array.size else []
    means = [
        share[np.isfinite(share)].mean() if np.isfinite(share).any() else np.nan
        for share in shares
    ]
    if not np.isfinite(means).any():
        return " " * len(means)
    low, high = np.nanmin(means), np.nanmax(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        BARS[round((mean - low) * scale)] if np.isfinite(mean) else " "
        for mean in means
    )


def duration(seconds: float) -> str:
    """`1:02:03`.

    Example:
      >>> duration(3723.4)
      '1:02:03'
    """
    return str(datetime.timedelta(seconds=round(seconds)))


def summary(workdir: pathlib.Path, now: float) -> dict[str, Any]:
    """What there is to show of a run.

    Args:
      workdir: its directory.
      now: seconds since the epoch.

    Returns:
      "title", "done", "of", "state" in words, "speed" in seconds an iteration, "left"
      in seconds, "lines" (words, bars, newest mean) and "scores" (iteration, loss).

    Raises:
      FileNotFoundError: there is no run.
    """
    described = runs.read_config(workdir)
    config, most = described["config"], described["num_iterations"]
    title = ", ".join(
        str(config[key]) for key in ("optimizer", "task") if key in config
    )
    path = workdir / "log.csv"
    log = runs.read_log(workdir) if path.exists() else {}
    done = len(log.get("iteration", ()))
    speed = float(np.median(log["seconds"][-LATEST:])) if done else None
    quiet = now - path.stat().st_mtime if done else 0.0
    if done >= most:
        state = "finished"
    elif not done:
        state = "not begun: the first iteration compiles"
    elif quiet > max(60.0, 10 * speed):
        state = f"silent for {duration(quiet)}: stopped, or held up"
    else:
        state = "running"
    lines = [
        (words, bars(log[name]), float(np.mean(log[name][-LATEST:])))
        for name, words in SHOWN.items()
        if name in log and done
    ]
    scores = []
    if (workdir / "validation.csv").exists():
        table = runs.read_validation(workdir)
        names = [name for name in table if name != "iteration"]
        scores = list(zip(table["iteration"], table[names[0]], strict=True))
    return {
        "title": title or str(workdir),
        "done": done,
        "of": most,
        "state": state,
        "speed": speed,
        "left": None if speed is None else (most - done) * speed,
        "skipped": int(log["total_skipped"][-1]) if "total_skipped" in log else 0,
        "lines": lines,
        "scores": scores[-SCORES:],
    }


def view(found: dict[str, Any]) -> Any:
    """A panel of rich."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    done, of = found["done"], found["of"]
    words = f"{done:,} of {of:,} iterations, {found['state']}"
    if found["speed"] is not None:
        words += f"; {found['speed']:.3g} s each"
        if done < of:
            words += f", {duration(found['left'])} left"
    ahead = round(WIDTH * done / of)
    bar = Text("━" * ahead, style="green") + Text("─" * (WIDTH - ahead), style="dim")
    parts: list[Any] = [Text(words), bar]
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, line, newest in found["lines"]:
        table.add_row(name, line, f"{newest:.4g}")
    parts.append(table)
    if found["lines"]:
        about = f"bars: all iterations; numbers: means of the latest {LATEST}"
        parts.append(Text(about, style="dim"))
    if found["skipped"]:
        text = f"{found['skipped']} updates skipped: not finite"
        parts.append(Text(text, style="bold"))
    if found["scores"]:
        scores = Table(box=None, padding=(0, 2, 0, 0))
        scores.add_column("weights", justify="right")
        scores.add_column("validation loss", justify="right")
        for iteration, loss in found["scores"]:
            scores.add_row(f"{iteration:,}", f"{loss:.4g}")
        parts.append(scores)
    return Panel(Group(*parts), title=found["title"], expand=False)


def main(argv: list[str]) -> None:
    """Shows, again and again."""
    del argv
    from rich.console import Console
    from rich.live import Live

    workdir = pathlib.Path(FLAGS.workdir)
    console = Console(highlight=False)
    if FLAGS.once or not sys.stdout.isatty():
        console.print(view(summary(workdir, time.time())))
        return
    first = view(summary(workdir, time.time()))
    with Live(first, console=console, auto_refresh=False) as live:
        try:
            while True:
                found = summary(workdir, time.time())
                live.update(view(found), refresh=True)
                if found["state"] == "finished":
                    return
                time.sleep(FLAGS.seconds)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    common.run(main, computes=False)
