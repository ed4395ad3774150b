"""Names for optimizees: `<data>_<network>`, "sine_lstm…", "quadratic", "convex"."""

from collections.abc import Callable, Iterable

import flax.linen as nn
import numpy as np

from experiments.networks import STRUCTURES, WIDE
from l2l_jax import Task, convex_task, quadratic_task
from l2l_jax.tasks import (
    CNN,
    MLP,
    Dataset,
    classification_task,
    load_dataset,
    sine_task,
)

PIXEL_RANGES = {
    "digits": (0.0, 1.0),
    "mnist": (0.0, 1.0),
    # At half the resolution, four times as cheap. A pixel stands for four of MNIST, so
    # that a step moves a unit as far as there.
    "mnist14": (0.0, 4.0),
    "cifar10": (-0.5, 0.5),
    # Likewise, for convolutions: they add up as many pixels at any resolution.
    "cifar16": (-0.5, 0.5),
}

# Data sets at half the resolution, and the whole ones.
HALVED = {"mnist14": "mnist", "cifar16": "cifar10"}

NETWORKS = {
    "mlp": lambda: MLP(),
    "mlp_relu": lambda: MLP(activation="relu"),
    "mlp_elu": lambda: MLP(activation="elu"),
    "mlp_tanh": lambda: MLP(activation="tanh"),
    "mlp_relu_depth2": lambda: MLP(depth=2, activation="relu"),
    "mlp_width40": lambda: MLP(width=40),
    **{f"mlp_depth{n}": lambda n=n: MLP(depth=n) for n in range(2, 11)},
    "cnn_small": lambda: CNN("c-p-c-p-f", channels=(8, 16)),
    "cnn_ccpf": lambda: CNN("c-c-p-f"),
    "cnn_ccpccpff": lambda: CNN("c-c-p-c-c-p-f-f"),
    **STRUCTURES,
    **WIDE,
}

FUNCTIONS: dict[str, Callable[[], Task]] = {
    "quadratic": quadratic_task,
    "convex": convex_task,
    "sine_lstm": sine_task,
    "sine_lstm_2layers": lambda: sine_task(layers=2),
    "sine_lstm_small_noise": lambda: sine_task(noise=0.01),
}

TASKS = (
    *FUNCTIONS,
    *(f"{data}_{network}" for data in PIXEL_RANGES for network in NETWORKS),
)

# The tests of the RNNprop authors' program: task and steps.
PAPER_TESTS = (
    ("mnist_mlp", 100),
    ("mnist_mlp", 2_000),
    ("mnist_mlp", 10_000),
    *((f"mnist_mlp_{name}", 100) for name in ("relu", "elu", "tanh")),
    *((f"mnist_mlp_depth{n}", 100) for n in range(2, 11)),
    *(
        (f"{data}_cnn_{network}", 100)
        for data in ("mnist", "cifar10")
        for network in ("ccpf", "ccpccpff")
    ),
    *((f"sine_lstm{variant}", 100) for variant in ("", "_2layers", "_small_noise")),
)


def make_module(name: str) -> nn.Module | None:
    """The network of the task of that name; None if it does not classify."""
    return None if name in FUNCTIONS else NETWORKS[name.split("_", 1)[1]]()


def is_convolutional(name: str) -> bool:
    """Whether the network of that task is, so that a run takes long.

    Example:
      >>> is_convolutional("digits_cnn_small"), is_convolutional("digits_mlp")
      (True, False)
    """
    return "_cnn_" in name


def unit(name: str) -> str:
    """Of the loss of the task of that name.

    Example:
      >>> unit("sine_lstm"), unit("digits_mlp")
      ('squared error', 'nats')
    """
    return "squared error" if name in FUNCTIONS else "nats"


def listing() -> str:
    """All names, those of the paper's tests with their steps."""
    tests = [f"  --task={name} --num_steps={steps}" for name, steps in PAPER_TESTS]
    others = sorted(set(TASKS) - {name for name, _ in PAPER_TESTS})
    return "\n".join(
        ["tests of the RNNprop paper:", *tests, "other tasks:"]
        + [f"  --task={name}" for name in others]
    )


def make_task(
    name: str, data_dir: str | None = None, source: str = "files", split: str = "train"
) -> Task:
    """The task of that name.

    Args:
      name: one of `TASKS`.
      data_dir: directory of the data set, see `l2l_jax.tasks.load_dataset`.
      source: "files" or "tfds".
      split: "train", "validation" or "test", as far as the data set has it.

    Returns:
      The task, without Random Scaling or a convex part.

    Raises:
      ValueError: the name is unknown, with the known ones.

    Example:
      >>> make_task("digits_mlp_relu").data.images.shape
      (1437, 8, 8, 1)
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known are {', '.join(TASKS)}")
    if name in FUNCTIONS:
        return FUNCTIONS[name]()
    return classification_task(
        make_module(name),
        make_dataset(name, data_dir, source, split),
        pixel_range=pixel_range(name),
        # As in the paper; the other structures have initializers of their own.
        init_std=None if name.split("_", 1)[1] in STRUCTURES | WIDE else 0.1,
    )


def check_data(
    names: Iterable[str], data_dir: str | None = None, source: str = "files"
) -> None:
    """Reads the data of those tasks once, to fail before anything long begins.

    Args:
      names: of tasks, of which those that need no files are passed over.
      data_dir: as of `make_task`.
      source: likewise.

    Raises:
      ValueError, OSError, ImportError, RuntimeError: as of `load_dataset`.
    """
    data = [name.split("_", 1)[0] for name in names if name not in FUNCTIONS]
    for one in dict.fromkeys(HALVED.get(name, name) for name in data):
        for split in ("train", "test") if one != "digits" else ():
            load_dataset(one, split, data_dir, source)


def pixel_range(name: str) -> tuple[float, float]:
    """To which numbers the pixels of that task are scaled."""
    return PIXEL_RANGES[name.split("_", 1)[0]]


def make_dataset(
    name: str, data_dir: str | None = None, source: str = "files", split: str = "train"
) -> Dataset:
    """The images of the task of that name; arguments as of `make_task`."""
    data = name.split("_", 1)[0]
    dataset = load_dataset(HALVED.get(data, data), split, data_dir, source)
    if data not in HALVED:
        return dataset
    count, height, width, channels = dataset.images.shape
    blocks = dataset.images.reshape(count, height // 2, 2, width // 2, 2, channels)
    means = np.mean(blocks, (2, 4), dtype=np.float32)
    return dataset._replace(images=np.round(means).astype(np.uint8))
