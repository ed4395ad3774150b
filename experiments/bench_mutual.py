r"""Who trains an optimizer best: Adam, a learned optimizer, or its equal, in turns?

    python -m experiments.bench_mutual --outdir=runs/mutual

Eight minutes on one core with other jobs beside; expect Adam (.6) and two after Adam
ahead, what ships behind them (.63, .8) by less than its errors, two fresh ones at .8.

A fresh RNNprop learns on a small task, and the outer optimizer is Adam at the papers'
rate, Adam, the RNNprop or the Longrun that ships, or another RNNprop that learns
likewise and has the first one for its outer optimizer: from fresh weights, or after
both learned from Adam for a quarter of the iterations. All but the first have the best
of three rates, by one meta-training with a seed of its own. Of a pair the mean of both
is taken. Held-out: other instances and initial parameters, of test images if there are
any. Writes a table and the meta-loss and the held-out loss as curves.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import common, options, report
from l2l_jax import (
    MetaTrainer,
    evaluator,
    learned_optimizer,
    load_pretrained,
    longrun_transform,
    meta_trainer,
    plotting,
    rnnprop_transform,
    weights_in_state,
)

FLAGS = flags.FLAGS
common.define_task("quadratic", "What is optimized.")
flags.DEFINE_integer("num_iterations", 80, "Episodes of 100 steps.", lower_bound=4)
flags.DEFINE_integer("num_seeds", 3, "Meta-trainings of each.", lower_bound=2)
flags.DEFINE_integer("num_runs", 50, "Held-out runs of each.", lower_bound=2)
options.define_numbers(
    "rates", [0.01, 0.03, 0.1], "Of which the best is taken.", float, 0
)
options.define_outdir(required=True)

STEPS, SEGMENT = 100, 20
POINTS = 16  # of a curve of meta-training
PAPERS = 1e-4
TUNING = 1000  # a seed that the comparison does not have
# Nor this one: the streams of equal seeds begin alike, and the test's runs would be
# those of the training.
HELD_OUT = 2000

# By outer weights: what decides the outer optimizer is an argument of the program.
OUTER = {
    "adam": lambda w: optax.adam(w["rate"]),
    "rnnprop": lambda w: rnnprop_transform(w["phi"], step_size=w["rate"]),
    "longrun": lambda w: longrun_transform(w["phi"], step_size=w["rate"]),
}


class Way(NamedTuple):
    """A way of meta-training.

    Attributes:
      outer: a key of `OUTER`.
      teacher: its weights; None: those of the other one of two.
      warm: whether Adam comes first.
      rates: of which the best is taken.
    """

    outer: str
    teacher: Any
    warm: bool
    rates: list[float]


def train(
    trainer: MetaTrainer, states: list, teacher: Any, rate: float, keys: jax.Array
) -> list[float]:
    """Trains the states, one or two, in place; their mean loss of each iteration."""
    losses = []
    for key in keys:
        new = []
        for i, state in enumerate(states):
            phi = states[i - 1].phi if teacher is None else teacher
            weights = {"phi": phi, "rate": jnp.float32(rate)}
            outer_state = state.outer_state._replace(phi=weights)
            states[i], metrics = trainer.iterate(
                state._replace(outer_state=outer_state), key, STEPS // SEGMENT
            )
            new.append(float(metrics["train_loss"]))
        losses.append(float(np.mean(new)))
    return losses


def main(argv: list[str]) -> None:
    """Measures, prints and writes."""
    del argv
    task, held_out = map(common.task, ("train", "test"))
    directory = report.new_directory(FLAGS.outdir)
    optimizer = learned_optimizer("rnnprop")
    evaluate = evaluator(held_out, optimizer.transform).evaluate
    shipped = {name: load_pretrained(name).params for name in ("rnnprop", "longrun")}
    shipped["adam"] = ()
    trainers = {}
    for name, phi in shipped.items():
        weights = {"phi": phi, "rate": jnp.float32(0)}
        outer = weights_in_state(OUTER[name], weights)
        trainers[name] = meta_trainer(task, optimizer, outer, segment_length=SEGMENT)
    rates = FLAGS.rates
    ways = {
        "Adam, the papers' rate": Way("adam", (), False, [PAPERS]),
        "Adam": Way("adam", (), False, rates),
        "RNNprop that ships": Way("rnnprop", shipped["rnnprop"], False, rates),
        "Longrun that ships": Way("longrun", shipped["longrun"], False, rates),
        "each other": Way("rnnprop", None, False, rates),
        "Adam first, then each other": Way("rnnprop", None, True, rates),
    }
    adam_rate = PAPERS

    def learn(way: Way, rate: float, seed: int) -> tuple[list[float], list]:
        """Losses of the iterations, and one φ or two."""
        start_key, episode_key = jax.random.split(jax.random.key(seed))
        trainer, number = trainers[way.outer], 2 if way.teacher is None else 1
        starts = jax.random.split(start_key, 2)[:number]
        states = [trainer.init(key) for key in starts]
        keys = jax.random.split(episode_key, FLAGS.num_iterations)
        losses: list[float] = []
        if way.warm:
            quarter = len(keys) // 4
            first = [trainers["adam"].init(key) for key in starts]
            losses += train(trainers["adam"], first, (), adam_rate, keys[:quarter])
            pairs = zip(states, first, strict=True)
            states = [state._replace(phi=old.phi) for state, old in pairs]
            keys = keys[quarter:]
        losses += train(trainer, states, way.teacher, rate, keys)
        return losses, [state.phi for state in states]

    def test(phis: list, key: jax.Array) -> tuple[float, np.ndarray]:
        """Mean final loss and curve (steps,) of all runs of all φ."""
        runs = [evaluate(phi, key, STEPS, FLAGS.num_runs) for phi in phis]
        final = float(np.mean([run.final for run in runs]))
        return final, np.mean([run.curves.mean(axis=0) for run in runs], axis=0)

    tuning_key, key = common.keys(HELD_OUT)
    rows, panels = [], ([], [])
    for (name, way), colour in zip(
        common.progress(ways.items(), lambda item: item[0]),
        plotting.COLOURS,
        strict=False,
    ):
        tried = {}
        for rate in way.rates if len(way.rates) > 1 else ():
            tried[rate] = test(learn(way, rate, TUNING)[1], tuning_key)[0]
        rate = min(
            tried or way.rates, key=lambda r: np.nan_to_num(tried.get(r, 0), nan=np.inf)
        )
        if name == "Adam":
            adam_rate = rate
        results = [learn(way, rate, seed) for seed in range(FLAGS.num_seeds)]
        training = np.array([losses for losses, _ in results])
        finals, curves = zip(*(test(phis, key) for _, phis in results), strict=True)
        mean, error = plotting.band(np.array(finals)[:, None])
        rows.append(
            {
                "trained by": name,
                "rate": rate,
                "held-out loss": float(mean[0]),
                "stderr": float(error[0]),
                "training loss": float(training[:, -5:].mean()),
                "tried": ", ".join(f"{r:g}: {x:.3f}" for r, x in tried.items()),
            }
        )
        print(report.table(rows[-1:], list(rows[-1])), flush=True)
        # Episodes differ much: a point of the curve is the mean of several.
        block = max(1, FLAGS.num_iterations // POINTS)
        whole = training[:, : training.shape[1] // block * block]
        blocks = whole.reshape(len(training), -1, block).mean(axis=2)
        values = blocks, np.array(curves)
        for lines, losses, width in zip(panels, values, (block, 1), strict=True):
            x = np.arange(losses.shape[1]) * width
            style = {"color": colour}
            lines.append(plotting.Line(name, x, *plotting.band(losses), style))
    titles = (f"{FLAGS.task}, meta-training", "held out")
    labels = ("iteration", "step")
    report.write_result(
        directory / "mutual",
        rows,
        [
            plotting.Panel(title, label, "loss", lines)
            for title, label, lines in zip(titles, labels, panels, strict=True)
        ],
    )


if __name__ == "__main__":
    common.run(
        main,
        quick={"num_iterations": 4, "num_seeds": 2, "num_runs": 2, "rates": [0.01]},
    )
