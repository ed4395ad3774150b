"""The evidence of the RNNprop paper: what each table and figure compares, and says.

Numbers are final losses, means over 100 runs. The published ones are those of tables 2
to 4; of the figures the paper prints no numbers, so `says` has its statement in words.

References:
  Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_, 2017.
"""

from collections.abc import Iterable
from typing import NamedTuple

from experiments import task_table

TRADITIONAL = {
    "adam": "Adam",
    "rmsprop": "RMSprop",
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "momentum": "Momentum",
    "sgd": "SGD",
}
LEARNED = {"rnnprop": "RNNprop", "dm": "DMoptimizer"}
# Three trainings of RNNprop have the paper's length; the one with the lowest training
# loss ships, these are the others.
OTHER_SEEDS = {
    "rnnprop_seed2": "RNNprop, meta-seed 2",
    "rnnprop_seed0": "RNNprop, meta-seed 0",
}
# As columns of tables 2 and 3, in the paper's order.
_IN_TABLES = dict(reversed(LEARNED.items())) | OTHER_SEEDS

# Of learned optimizers that do not ship: what they are, and where they lie below
# `experiments/results`, a file or a run whose selected weights are meant.
_CONTROLS = {
    **{
        f"{name}_{thousands}k": (
            f"RNNprop {text}, {thousands},000 iterations",
            f"{run}/weights/{1000 * thousands:08}.npz",
        )
        for name, text, run in (
            ("rnnprop_seed7", "of meta-seed 7", "rnnprop_seed7_mnist"),
            ("rnnprop_seed2", "of meta-seed 2", "rnnprop_seed2_mnist"),
            ("rnnprop", "of meta-seed 0", "rnnprop_mnist"),
            ("noconvex", "without the convex part", "rnnprop_noconvex_mnist"),
        )
        for thousands in (5, 10, 15)
    },
    **{
        f"rnnprop_seed{seed}": (
            f"RNNprop of meta-seed {seed}, selected by training loss",
            run,
        )
        for seed, run in ((2, "rnnprop_seed2_mnist"), (0, "rnnprop_mnist"))
    },
    "rnnprop_seed1_5k": (
        "RNNprop of meta-seed 1, 5,000 iterations",
        "rnnprop_seed1_mnist/weights/00005000.npz",
    ),
    "norandomscaling": (
        "RNNprop without Random Scaling",
        "rnnprop_norandomscaling_mnist",
    ),
    "dm_tricks": ("DMoptimizer with both tricks", "dm_tricks_mnist"),
}
# Names of learned optimizers, and what they are.
WEIGHTS = {
    "rnnprop": "RNNprop with both tricks, selected by training loss",
    "dm": "DMoptimizer, selected by the validation task",
    **{name: what for name, (what, _) in _CONTROLS.items()},
}
TRAINED = {name: path for name, (_, path) in _CONTROLS.items()}


class Cell(NamedTuple):
    """One thing to measure: an optimizer (or name of weights) on a task."""

    task: str
    steps: int
    optimizer: str


class Entry(NamedTuple):
    """Where a cell stands in a table or figure.

    Attributes:
      row: of the table; in a figure the panel, or the position on the x axis.
      column: of the table; in a figure the line.
      cell: what is measured.
      published: the paper's final loss, None if it prints none.
    """

    row: str
    column: str
    cell: Cell
    published: float | None = None


class Evidence(NamedTuple):
    """A table or a figure.

    Attributes:
      title: what it shows.
      entries: its cells, row by row.
      picture: None: a table; "curves": loss against step, a panel a row; "rates": final
        loss against learning rate; "rows": final loss against the number that is the
        row's name.
      says: the paper's statement about it.
    """

    title: str
    entries: tuple[Entry, ...]
    picture: str | None = None
    says: str = ""


def cells_of(tables: Iterable[Evidence]) -> list[Cell]:
    """What tables and figures consist of, each once."""
    return list(dict.fromkeys(e.cell for one in tables for e in one.entries))


PUBLISHED = {
    Cell(task, 100, optimizer): loss
    for task, losses in {
        "mnist_mlp": {"adam": 0.31, "dm": 0.24, "rnnprop": 0.29}
        | {"rnnprop_5k": 0.33, "rnnprop_10k": 0.31, "rnnprop_15k": 0.30}
        | {"noconvex_5k": 0.33, "noconvex_10k": 0.32, "noconvex_15k": 0.33},
        "mnist_mlp_relu": {"adam": 0.28, "dm": 1.05, "rnnprop": 0.27}
        | {"rnnprop_5k": 0.30, "rnnprop_10k": 0.29, "rnnprop_15k": 0.27}
        | {"noconvex_5k": 0.31, "noconvex_10k": 0.31, "noconvex_15k": 0.32},
        "mnist_mlp_elu": {"adam": 0.26, "dm": 13.51, "rnnprop": 0.24},
        "mnist_mlp_tanh": {"adam": 0.31, "dm": 0.50, "rnnprop": 0.28},
        "sine_lstm": {"adam": 0.62, "adagrad": 0.54, "dm": 26.43, "rnnprop": 0.55},
        "sine_lstm_2layers": {"adam": 0.44, "adagrad": 0.65}
        | {"dm": 5.06, "rnnprop": 0.28},
        "sine_lstm_small_noise": {"adam": 0.39, "adagrad": 0.50}
        | {"dm": 22.04, "rnnprop": 0.36},
    }.items()
    for optimizer, loss in losses.items()
}
# It prints one training; of ours there are more.
_PUBLISHED_ALSO_FOR = {"rnnprop": tuple(OTHER_SEEDS)} | {
    f"rnnprop_{k}": (f"rnnprop_seed7_{k}", f"rnnprop_seed2_{k}")
    for k in ("5k", "10k", "15k")
}
PUBLISHED |= {
    cell._replace(optimizer=other): loss
    for cell, loss in PUBLISHED.items()
    for other in _PUBLISHED_ALSO_FOR.get(cell.optimizer, ())
}

# The best traditional optimizer of each test of the authors' program, as they found it,
# and its rate; on their grid 2^(-k/2), neighbours are a factor 1.41 apart.
AUTHORS_RATES = {
    **{
        Cell("mnist_mlp", steps, "adam"): rate
        for steps, rate in ((100, 0.03125), (2_000, 0.015625), (10_000, 0.0078125))
    },
    **{
        Cell(task, 100, "adam"): rate
        for task, rate in {
            "mnist_mlp_relu": 0.0220971,
            "mnist_mlp_elu": 0.0220971,
            "mnist_mlp_tanh": 0.0110485,
            "mnist_mlp_depth2": 0.03125,
            "mnist_mlp_depth3": 0.03125,
            "mnist_mlp_depth4": 0.015625,
            "mnist_mlp_depth5": 0.015625,
            "mnist_mlp_depth6": 0.015625,
            "mnist_mlp_depth7": 0.0110485,
            "mnist_mlp_depth8": 0.0004883,
            "mnist_mlp_depth9": 0.0006905,
            "mnist_mlp_depth10": 0.0006905,
            "mnist_cnn_ccpf": 0.015625,
            "cifar10_cnn_ccpf": 0.0078125,
            "mnist_cnn_ccpccpff": 0.0055243,
            "cifar10_cnn_ccpccpff": 0.0039062,
            "sine_lstm_2layers": 0.0220971,
            "sine_lstm_small_noise": 0.03125,
        }.items()
    },
    Cell("sine_lstm", 100, "adagrad"): 0.5,
}


def _entries(
    rows: Iterable[tuple[str, str, int]], columns: dict[str, str]
) -> tuple[Entry, ...]:
    """All columns (optimizer -> name) of rows (name, task, steps)."""
    return tuple(
        Entry(row, column, cell, PUBLISHED.get(cell))
        for row, task, steps in rows
        for optimizer, column in columns.items()
        for cell in [Cell(task, steps, optimizer)]
    )


def _curves(
    title: str, rows: Iterable[tuple[str, str, int]], says: str, columns=None
) -> Evidence:
    columns = columns or LEARNED | TRADITIONAL
    return Evidence(title, _entries(rows, columns), "curves", says)


def _table_4() -> tuple[Entry, ...]:
    rows = (("Base MLP", "mnist_mlp"), ("ReLU", "mnist_mlp_relu"))
    return tuple(
        Entry(f"{name}, {k}", column, cell, PUBLISHED[cell])
        for name, task in rows
        for k in ("5k", "10k", "15k")
        for column, optimizer in (
            ("Adam", "adam"),
            ("RNNprop, meta-seed 7", f"rnnprop_seed7_{k}"),
            ("RNNprop, meta-seed 2", f"rnnprop_seed2_{k}"),
            ("RNNprop, meta-seed 0", f"rnnprop_{k}"),
            ("No CC, meta-seed 0", f"noconvex_{k}"),
        )
        for cell in [Cell(task, 100, optimizer)]
    )


def _depth(n: int) -> str:
    return "mnist_mlp" if n == 1 else f"mnist_mlp_depth{n}"


ACTIVATIONS = (
    ("sigmoid", "mnist_mlp", 100),
    ("ReLU", "mnist_mlp_relu", 100),
    ("ELU", "mnist_mlp_elu", 100),
    ("tanh", "mnist_mlp_tanh", 100),
)
SINE = (
    ("Default", "sine_lstm", 100),
    ("2 Layers", "sine_lstm_2layers", 100),
    ("Small Noise", "sine_lstm_small_noise", 100),
)

EVIDENCE = {
    "table 2": Evidence(
        "Base MLP with other activations, 100 steps",
        _entries(ACTIVATIONS, {"adam": "Adam"} | _IN_TABLES),
    ),
    "table 3": Evidence(
        "LSTM on sine waves, 100 steps",
        _entries(SINE, {"adam": "Adam", "adagrad": "Adagrad"} | _IN_TABLES),
    ),
    "table 4": Evidence(
        "RNNprop with and without convex functions (CC), by meta-training's iterations",
        _table_4(),
    ),
    "table tests": Evidence(
        "The 22 tests of the authors' program",
        _entries(
            (
                (f"{task}, {steps:,}", task, steps)
                for task, steps in task_table.PAPER_TESTS
            ),
            LEARNED | OTHER_SEEDS | TRADITIONAL,
        ),
    ),
    "table transfer": Evidence(
        "Where the 2016 paper says that DMoptimizer transfers",
        _entries(
            (
                ("40 hidden units", "mnist_mlp_width40", 100),
                ("2 hidden layers", "mnist_mlp_depth2", 100),
                ("200 steps", "mnist_mlp", 200),
            ),
            {"dm": "DMoptimizer", "rnnprop": "RNNprop", "adam": "Adam"},
        ),
        says="DMoptimizer is better than tuned traditional optimizers, or level.",
    ),
    "table seeds": Evidence(
        "RNNprop from four meta-seeds, 5,000 iterations",
        _entries(
            ACTIVATIONS,
            {
                "rnnprop_5k": "meta-seed 0",
                "rnnprop_seed1_5k": "meta-seed 1",
                "rnnprop_seed2_5k": "meta-seed 2",
                "rnnprop_seed7_5k": "meta-seed 7",
            },
        ),
    ),
    "figure 2": _curves(
        "Base MLP for more steps",
        (
            ("base MLP, 2,000 steps", "mnist_mlp", 2_000),
            ("base MLP, 10,000 steps", "mnist_mlp", 10_000),
        ),
        "RNNprop is comparable with traditional optimizers for 2,000 steps and keeps"
        " falling for 10,000, where some overtake it; DMoptimizer's loss rises after"
        " about 400 steps.",
    ),
    "figure 3": Evidence(
        "Final loss on the base MLP after 10,000 steps against the learning rate",
        _entries(
            (("base MLP, 10,000 steps", "mnist_mlp", 10_000),),
            {"rnnprop": "RNNprop"} | TRADITIONAL,
        ),
        "rates",
        "Adam is better than RNNprop only with a rate between .004 and .01.",
    ),
    "figure 4": _curves(
        "Base MLP with ReLU",
        (("ReLU, 100 steps", "mnist_mlp_relu", 100),),
        "RNNprop is slightly better than traditional optimizers; DMoptimizer fails.",
    ),
    "figure 5": _curves(
        "Base MLP with 5 hidden layers",
        (("5 hidden layers, 100 steps", "mnist_mlp_depth5", 100),),
        "RNNprop is much better than traditional optimizers.",
    ),
    "figure 6": Evidence(
        "Final loss against the number of hidden layers, 100 steps",
        _entries(
            ((str(n), _depth(n), 100) for n in range(1, 11)),
            LEARNED | {"adam": "Adam"},
        ),
        "rows",
        "RNNprop is better than Adam until no optimizer lowers the loss any more.",
    ),
    "figure 7": _curves(
        "Convolutional networks",
        (
            ("c-c-p-f, MNIST", "mnist_cnn_ccpf", 100),
            ("c-c-p-c-c-p-f-f, MNIST", "mnist_cnn_ccpccpff", 100),
            ("c-c-p-f, CIFAR-10", "cifar10_cnn_ccpf", 100),
        ),
        "RNNprop is best on the first; on the others only the best traditional one is"
        " better. DMoptimizer trains none of them.",
    ),
    "figure 8": _curves(
        "LSTM on sine waves",
        (("LSTM on sine waves, 100 steps", "sine_lstm", 100),),
        "RNNprop is level with the best traditional optimizer.",
    ),
    "figure 9": _curves(
        "Control experiment: base MLP with ReLU for 1,000 steps",
        (("ReLU, 1,000 steps", "mnist_mlp_relu", 1_000),),
        "Random Scaling is the most effective trick.",
        {
            "rnnprop": "RNNprop",
            "rnnprop_5k": "RNNprop, meta-seed 0, 5,000 iterations",
            "norandomscaling": "the same without Random Scaling",
            "dm": "DMoptimizer",
            "dm_tricks": "DMoptimizer with both tricks",
        },
    ),
}


def shortened(evidence: Evidence, most: int) -> Evidence:
    """The same with at most `most` steps; published losses of longer runs go."""

    def short(entry: Entry) -> Entry:
        if entry.cell.steps <= most:
            return entry
        return entry._replace(cell=entry.cell._replace(steps=most), published=None)

    return evidence._replace(entries=tuple(map(short, evidence.entries)))
