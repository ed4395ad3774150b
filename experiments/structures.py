r"""The shipped optimizers on structures none was trained on, by step and by second.

    python -m experiments.structures --data=digits --num_runs=10

Residual, highway, recurrent, attention and normalised networks (`experiments.networks`)
are trained by each optimizer that ships and by Adam at its best rate for that very
network and number of steps. Writes structures.md (and .csv) with final losses, test
accuracies, milliseconds of a step, bytes of state, and the loss that each has reached
when tuned Adam has finished, and the curves of the longest runs by step and by second
(structures.png), of the shortest by step (short.png). Cells are stored as by
`experiments.reproduce`; steps are timed anew, in turn, one run at a time. Half an hour
on 2 cores with digits, which need no files.
"""

import functools
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import (
    cells,
    common,
    horizons,
    options,
    paper,
    report,
    task_table,
    timing,
)
from experiments.networks import STRUCTURES
from experiments.weights import SHIPPED, read_weights
from l2l_jax import plotting, start_episode, unroll
from l2l_jax.baselines import baseline

FLAGS = flags.FLAGS
flags.DEFINE_enum("data", "digits", list(task_table.PIXEL_RANGES), "Which images.")
options.define_names("structures", list(STRUCTURES), STRUCTURES, "Which networks.")
options.define_numbers(
    "num_steps", [100, 1000], "Lengths of the runs; curves: the longest."
)
flags.DEFINE_integer("num_runs", 20, "Paired runs of each.", lower_bound=2)
flags.DEFINE_integer("seed", 0, "Of all randomness.")
flags.DEFINE_bool("quick", False, "A look: hardly any runs and rates.")
options.define_outdir("runs/structures", "Directory of the results.")
options.define_directory("cells", None, "Of computed cells; default: OUTDIR/cells.")

OPTIMIZERS = {"adam": "Adam, tuned"} | horizons.OURS | paper.LEARNED
TIMED = 20  # steps in one timed call
TOP = 3.0  # of the pictures; above what they begin with


def timed(lab: cells.Laboratory, task_name: str, rate: float) -> dict[str, dict]:
    """Milliseconds of a step and bytes of state a parameter, of each optimizer."""
    task = task_table.make_task(task_name, lab.data_dir, lab.source)
    key = jax.random.key(lab.seed)

    def prepared(tx):
        @jax.jit
        def run(data, episode):
            return unroll(task._replace(data=data), tx, episode, TIMED)

        start = jax.jit(lambda key: start_episode(task, tx, key))(key)
        state = sum(x.nbytes for x in jax.tree.leaves(start.opt_state) if x.ndim)
        size = sum(x.size for x in jax.tree.leaves(start.params))
        return functools.partial(run, task.data, start), state / size, size

    made = {
        name: prepared(
            baseline(name, 0)(rate)
            if name == "adam"
            else lab.weights[name].learned.transform()
        )
        for name in OPTIMIZERS
    }
    times = timing.interleaved({name: run for name, (run, _, _) in made.items()}, 5)
    return {
        name: {
            "parameters": size,
            "ms a step": times[name]["median_s"] / TIMED * 1e3,
            "state bytes": state,
        }
        for name, (_, state, size) in made.items()
    }


def rows_of(
    lab: cells.Laboratory, structure: str, steps: list[int]
) -> tuple[list[dict[str, Any]], list[plotting.Panel], list[plotting.Panel]]:
    """The rows of a structure; a panel of short runs, two of long ones (by second)."""
    task = f"{FLAGS.data}_{structure}"
    outcomes = {
        (name, n): cells.outcome(lab, paper.Cell(task, n, name))
        for n in steps
        for name in OPTIMIZERS
    }
    most = steps[-1]
    tuned = outcomes["adam", most].tuning
    if tuned is None or tuned.best_rate is None:
        raise RuntimeError(f"no rate of Adam ends without a diverging run on {task}")
    costs = timed(lab, task, tuned.best_rate)
    deadline = most * costs["adam"]["ms a step"]
    rows, short, by_step, by_second = [], [], [], []
    for (name, words), colour in zip(
        OPTIMIZERS.items(), plotting.COLOURS, strict=False
    ):
        ended = {n: outcomes[name, n].result for n in steps}
        last, cost = ended[most], costs[name]
        curve = last.curve
        # Of the blocks of the curve the last that is done by then.
        when = (curve["step"] + 0.5) * cost["ms a step"]
        block = max(int(np.searchsorted(when, deadline, side="right")) - 1, 0)
        row = {"network": structure, "optimizer": words, **cost}
        for n, result in ended.items():
            row[f"loss, {n:,}"] = result.statistics["mean"]
            row[f"stderr, {n:,}"] = result.statistics["stderr"]
            row[f"not finite, {n:,}"] = result.statistics["not_finite"]
        row["accuracy"] = float(np.mean(last.accuracy))
        row["at Adam's end"] = float(curve["mean"][block])
        rows.append(row)
        style = {"color": colour}
        for lines, drawn, unit in (
            (short, ended[steps[0]].curve, 1.0),
            (by_step, curve, 1.0),
            (by_second, curve, cost["ms a step"] / 1e3),
        ):
            x, y, error = (drawn[key] for key in ("step", "mean", "stderr"))
            lines.append(plotting.Line(words, x * unit, y, error, style))

    def panel(x_label, lines, log="y"):
        label = "minibatch loss (nats)"
        return plotting.Panel(structure, x_label, label, lines, TOP, log)

    seconds = panel("seconds of one run", by_second, "xy")
    return rows, [panel("step", short)], [panel("step", by_step), seconds]


def costs(rows: list[dict[str, Any]], steps: int) -> list[plotting.Panel]:
    """For each structure, what a step costs and the loss that so many reach."""
    found = []
    for structure in dict.fromkeys(row["network"] for row in rows):
        keys = ("ms a step", f"loss, {steps:,}", f"stderr, {steps:,}")
        points = {
            row["optimizer"]: tuple(
                np.nan if row[key] is None else row[key] for key in keys
            )
            for row in rows
            if row["network"] == structure
        }
        panel = plotting.cost_quality(points, title=structure)
        found.append(panel._replace(top=TOP))  # beyond it, a run was lost
    return found


def page(rows: list[dict[str, Any]], steps: list[int], runs: int) -> str:
    """The table and what it means, as Markdown."""
    shown = [
        {key: value for key, value in row.items() if "not finite" not in key}
        for row in rows
    ]
    device = timing.machine()["device"]
    return f"""# Structures that no optimizer was trained on ({FLAGS.data})

![Loss by step and by second](structures.png)

Final loss after {" and ".join(f"{n:,}" for n in steps)} steps (mean of {runs} paired
runs), test accuracy after the last, milliseconds of a step of one run on this machine
({device}, gradient included), bytes of state a parameter, and the minibatch loss that
was reached when Adam had ended its {steps[-1]:,} steps. Adam has its best rate of the
grid 2^(-k/2) for each row; the others have what they ship with.

{report.table(shown, list(shown[0]))}

![Final loss against time of a step](cost.png)

After {steps[-1]:,} steps; who is not there has diverged.
"""


def main(argv: list[str]) -> None:
    """Measures, writes and prints."""
    del argv
    steps = sorted(set(FLAGS.num_steps))
    names = [f"{FLAGS.data}_{structure}" for structure in FLAGS.structures]
    task_table.check_data(names, FLAGS.data_dir, FLAGS.data_source)
    directory = pathlib.Path(FLAGS.outdir) / ("quick" if FLAGS.quick else "")
    weights = read_weights([], SHIPPED, horizons.WEIGHTS)
    lab = cells.Laboratory(
        pathlib.Path(FLAGS.cells) if FLAGS.cells else directory / "cells",
        weights,
        FLAGS.data_dir,
        FLAGS.data_source,
        seed=FLAGS.seed,
        num_runs=2 if FLAGS.quick else FLAGS.num_runs,
        quick=FLAGS.quick,
    )
    print(f"writing to {directory}", flush=True)
    rows, short, long = [], [], []
    for structure in common.progress(FLAGS.structures, str):
        of_structure, *drawn = rows_of(lab, structure, steps)
        print(report.table(of_structure, list(of_structure[0])), flush=True)
        rows += of_structure
        short += drawn[0]
        long += drawn[1]
    directory.mkdir(parents=True, exist_ok=True)
    report.write_csv(directory / "structures.csv", rows)
    text = page(rows, steps, lab.num_runs)
    report.write(directory / "structures.md", lambda file: file.write_text(text))
    cost = costs(rows, steps[-1])
    drawings = {"structures": (long, 2), "short": (short, 3), "cost": (cost, 3)}
    for name, (panels, columns) in drawings.items():
        pictures = [directory / f"{name}.{kind}" for kind in ("png", "svg")]
        report.write_panels(pictures, panels, columns)


if __name__ == "__main__":
    common.run(main, stopped=cells.STOPPED)
