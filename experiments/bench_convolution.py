"""Times training steps of the paper's convolutional networks, by way of convolving.

A step is the gradient on a minibatch of 128 random images and Adam's update, one of
--num_steps in a compiled `lax.scan`, as in evaluations and meta-training. "xla" is what
`flax.linen.Conv` does by itself, "auto" what the tasks have, which take on a CPU as
many images at once as its cache holds. "whole" is the same with all images at once, as
are "shifted" and "canonical", the forms of `l2l_jax.tasks.CNN` between which both
choose.

    python -m experiments.bench_convolution --outdir=runs/convolution

Six minutes, nearly all of them with "xla"; needs no data.
"""

import itertools
from collections.abc import Callable

import jax
import numpy as np
import optax
from absl import flags

from experiments import common, options, timing
from l2l_jax import start_episode, unroll
from l2l_jax.tasks import CNN, Dataset, classification_task

FLAGS = flags.FLAGS
NETWORKS = ("c-c-p-f", "c-c-p-c-c-p-f-f")
WAYS = ("auto", "whole", "xla", "shifted", "canonical")
BATCH_SIZE = 128
SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
options.define_names("networks", NETWORKS, NETWORKS, "Networks.")
options.define_names(
    "images", list(SHAPES), SHAPES, "The data whose shape images have."
)
options.define_names("ways", WAYS, WAYS, "Ways of convolving.")
flags.DEFINE_integer("num_steps", 3, "Steps in one loop.", lower_bound=2)
flags.DEFINE_integer("repeats", 5, "Counted calls of each program.", lower_bound=1)
timing.define_outdir()

NUM_IMAGES = 512


def loop(network: str, images: str, way: str) -> Callable[[], jax.Array]:
    """A compiled function without arguments: the losses of --num_steps steps."""
    rng = np.random.default_rng(0)
    data = Dataset(
        rng.integers(0, 256, (NUM_IMAGES, *SHAPES[images]), np.uint8),
        rng.integers(0, 10, NUM_IMAGES, np.int32),
    )
    module = CNN(network, convolution="auto" if way == "whole" else way)
    at_once = None if way == "auto" else BATCH_SIZE
    task = classification_task(
        module, data, batch_size=BATCH_SIZE, microbatch_size=at_once
    )
    tx = optax.adam(1e-3)
    episode = start_episode(task, tx, jax.random.key(0))

    @jax.jit
    def losses(data, episode):
        return unroll(task._replace(data=data), tx, episode, FLAGS.num_steps)[1]

    compiled = losses.lower(task.data, episode).compile()
    return lambda: compiled(task.data, episode)


def main(argv: list[str]) -> None:
    """Measures and reports."""
    del argv
    path = timing.result_file("convolution.json")
    rows = {}
    for network, images in itertools.product(FLAGS.networks, FLAGS.images):
        programs = {way: loop(network, images, way) for way in FLAGS.ways}
        times = timing.interleaved(programs, FLAGS.repeats)
        rows[f"{network}, {images}"] = {
            way: {key: s / FLAGS.num_steps for key, s in seconds.items()}
            for way, seconds in times.items()
        }
    timing.write(path, {"seconds_a_step": rows, "machine": timing.machine()})


if __name__ == "__main__":
    common.run(main, quick={"networks": ["c-c-p-f"], "images": ["mnist"], "repeats": 1})
