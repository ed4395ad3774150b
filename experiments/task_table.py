"""Names for optimizees: `<data>_<network>`, "quadratic", "convex"."""

from collections.abc import Callable

from l2l_jax import Task, convex_task, quadratic_task
from l2l_jax.tasks import CNN, MLP, classification_task, load_dataset

PIXEL_RANGES = {"digits": (0.0, 1.0), "mnist": (0.0, 1.0), "cifar10": (-0.5, 0.5)}

NETWORKS = {
    "mlp": lambda: MLP(),
    "mlp_relu": lambda: MLP(activation="relu"),
    "mlp_elu": lambda: MLP(activation="elu"),
    "mlp_tanh": lambda: MLP(activation="tanh"),
    **{f"mlp_depth{n}": lambda n=n: MLP(depth=n) for n in range(2, 11)},
    "cnn_small": lambda: CNN("c-p-c-p-f", channels=(8, 16)),
    "cnn_ccpf": lambda: CNN("c-c-p-f"),
    "cnn_ccpccpff": lambda: CNN("c-c-p-c-c-p-f-f"),
}

FUNCTIONS: dict[str, Callable[[], Task]] = {
    "quadratic": quadratic_task,
    "convex": convex_task,
}

TASKS = (
    *FUNCTIONS,
    *(f"{data}_{network}" for data in PIXEL_RANGES for network in NETWORKS),
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
    data, network = name.split("_", 1)
    return classification_task(
        NETWORKS[network](),
        load_dataset(data, split, data_dir, source),
        pixel_range=PIXEL_RANGES[data],
    )
