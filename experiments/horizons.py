"""Longrun and its opponents: on which tasks and horizons they are compared.

Opponents are the traditional optimizers at the best constant rate for the very task and
horizon, those that know the horizon at their best peak rates, and the optimizers of the
papers. No published number stands beside these cells.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import l2l_jax
from experiments import task_table
from experiments.paper import LEARNED, TRADITIONAL, Cell, Entry, Evidence
from experiments.weights import Weights

OURS = {"longrun": "Longrun"}
NOMINAL = {"longrun_nominal": "nominal rule"}
SCHEDULED = {"adam_cosine": "Adam, cosine", "adamw_cosine": "AdamW, cosine"}
_NAMES = {
    "longrun_seed0": "meta-seed 0",
    "longrun_seed1": "meta-seed 1",
    "longrun_seed2": "meta-seed 2",
    "longrun_signals2": "without the slow moment",
}
WEIGHTS = {
    "longrun": "Longrun",
    "rnnprop": "RNNprop with both tricks, selected by training loss",
    "dm": "DMoptimizer, selected by the validation task",
    **_NAMES,
}
# Where those that do not ship lie below `experiments/results`.
TRAINED = {name: f"longrun/{name}.npz" for name in _NAMES}
# Other hyper-parameters for the weights of Longrun: values, or factors of the rate.
_NOMINAL = {"learned_scale": 0.0}
_NO_GROWTH = {**_NOMINAL, "averaging_growth": 0.0}
_NO_DOUBT = {**_NO_GROWTH, "doubt": None}
_NO_EXCESS = {**_NO_DOUBT, "excess": None}
_NO_AVERAGING_PACE = {**_NO_EXCESS, "averaging_pace": 0.0}
_NO_PACE = {**_NO_AVERAGING_PACE, "pace": 0.0, "first_length": 1.0}
_NO_WARMUP = {**_NO_PACE, "warmup_steps": 0.0, "largest": None}
_NO_DECAY = {**_NO_WARMUP, "decay_power": 0.0}
CONFIGS = {
    "longrun_nominal": _NOMINAL,
    "longrun_no_growth": _NO_GROWTH,
    "longrun_no_doubt": _NO_DOUBT,
    "longrun_no_excess": _NO_EXCESS,
    "longrun_no_averaging_pace": _NO_AVERAGING_PACE,
    "longrun_no_pace": _NO_PACE,
    "longrun_no_warmup": _NO_WARMUP,
    "longrun_no_decay": _NO_DECAY,
    "longrun_rmsprop": {**_NO_DECAY, "averaging": 0.0},
}
# They differ from what ships in what is learned alone.
_SHARES = ("longrun_nominal", "longrun_signals2")
FACTORS = {"longrun_quarter": 0.25, "longrun_fourfold": 4.0}
RATES = {name: f"rate x {factor:g}" for name, factor in FACTORS.items()}

FEWER = 101  # steps from which there are fewer runs
SHORT = tuple(test for test in task_table.PAPER_TESTS if test[1] == 100)
LONG = (
    ("mnist_mlp", 2_000),
    ("mnist_mlp", 10_000),
    ("mnist_mlp_relu", 2_000),
    ("mnist_mlp_relu", 10_000),
    ("mnist_cnn_ccpf", 2_000),
    ("mnist_cnn_ccpccpff", 2_000),
    ("cifar10_cnn_ccpf", 2_000),
    ("mnist_mlp_depth5", 2_000),
    ("mnist_mlp_depth8", 2_000),
    ("sine_lstm_2layers", 2_000),
)
# None of them is a test of the paper.
VALIDATION = (
    ("digits_mlp", 100),
    ("digits_mlp", 1_000),
    ("digits_mlp_elu", 100),
    ("digits_mlp_elu", 1_000),
    ("digits_cnn_small", 100),
    ("mnist_mlp_width40", 100),
    ("mnist_mlp_width40", 1_000),
    ("cifar10_mlp", 100),
    ("cifar10_mlp_relu", 100),
    ("cifar16_cnn_ccpf", 100),
    ("mnist14_cnn_ccpccpff", 100),
    ("mnist14_mlp_depth6", 1_000),
)
# Initialized and as wide as is usual today, where a step must be shorter.
WIDE = (
    ("mnist14_wide_mlp", 300),
    ("mnist14_wide_residual", 300),
    ("digits_wide_attention", 300),
)
STRESS = (("mnist_mlp", 100_000), ("mnist_mlp_relu", 100_000))


def cell(task: str, steps: int, optimizer: str) -> Cell:
    """Where an optimizer is measured: in one cell of all that are the same there."""
    # On convolutional networks Longrun uses nothing that was learned.
    if optimizer in _SHARES and task_table.is_convolutional(task):
        optimizer = "longrun"
    return Cell(task, steps, optimizer)


def _entries(
    tests: Iterable[tuple[str, int]], columns: dict[str, str]
) -> tuple[Entry, ...]:
    return tuple(
        Entry(f"{task}, {steps:,}", column, cell(task, steps, optimizer))
        for task, steps in tests
        for optimizer, column in columns.items()
    )


EVIDENCE = {
    "table unknown": Evidence(
        "The horizon unknown to all, but for the choice of a constant rate",
        _entries((*SHORT, *LONG), OURS | NOMINAL | TRADITIONAL | LEARNED),
    ),
    "table given": Evidence(
        "The horizon given to those that can use it",
        _entries((*SHORT, *LONG), OURS | NOMINAL | SCHEDULED),
    ),
    "table validation": Evidence(
        "Longrun and its nominal rule on the validation tasks",
        _entries(VALIDATION, OURS | NOMINAL),
    ),
    "table ablation": Evidence(
        "One lever after the other, on the validation tasks",
        _entries(
            VALIDATION,
            {
                "longrun_rmsprop": "RMSprop at the same rate",
                "longrun_no_decay": "and averaged",
                "longrun_no_warmup": "and annealed",
                "longrun_no_pace": "and with warm-up and cut",
                "longrun_no_averaging_pace": "and a length in common",
                "longrun_no_excess": "and an average by the slope",
                "longrun_no_doubt": "and spikes cut",
                "longrun_no_growth": "and no longer on noise",
                "longrun_nominal": "and an average ever shorter: the nominal rule",
                "longrun_signals2": "and shares learned from m̃",
                "longrun": "and from m̃': Longrun",
            },
        ),
    ),
    "table seeds": Evidence(
        "Meta-seeds of Longrun on the validation tasks without convolutions",
        _entries(
            # With them nothing that was learned is used.
            (test for test in VALIDATION if not task_table.is_convolutional(test[0])),
            {f"longrun_seed{seed}": f"meta-seed {seed}" for seed in range(3)} | NOMINAL,
        ),
    ),
    "table wide": Evidence(
        "Wide networks with the initializers of Flax",
        _entries(WIDE, OURS | NOMINAL | {"adam": "Adam"}),
    ),
    "table stress": Evidence(
        "Far beyond the horizon, and with rates a quarter and four times the default",
        _entries(STRESS, OURS | NOMINAL) + _entries(LONG[:4], OURS | NOMINAL | RATES),
    ),
    "figure long": Evidence(
        "Base MLP for 10,000 steps",
        _entries(
            (LONG[1], LONG[3]), OURS | NOMINAL | {"adam": "Adam"} | SCHEDULED | LEARNED
        ),
        "curves",
    ),
}


def with_variants(
    weights: Mapping[str, Weights],
) -> dict[str, Weights]:
    """Besides, Longrun without parts of it, and with other rates."""
    found = dict(weights)
    if "longrun" not in found:
        return found
    ours = found["longrun"]

    def variant(what: str, **changes: Any) -> Weights:
        learned = ours.learned._replace(config={**ours.learned.config, **changes})
        return ours._replace(learned=learned, what=what, changes=changes)

    for name, config in CONFIGS.items():
        changes = ", ".join(f"{key} = {value}" for key, value in config.items())
        found[name] = variant(f"Longrun with {changes}", **config)
    default = l2l_jax.longrun_transform.__kwdefaults__["step_size"]
    for name, factor in FACTORS.items():
        rate = factor * ours.learned.config.get("step_size", default)
        found[name] = variant(f"Longrun, rate times {factor:g}", step_size=rate)
    return found
