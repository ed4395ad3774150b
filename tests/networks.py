"""Weights and images for tests: all different, and nothing to compile."""

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax import dm_init, longrun_init, rnnprop_init
from l2l_jax.tasks import Dataset


def shapes_of(kind, hidden_sizes=(), input_size=20):
    """φ as shapes; `input_size` is that of RNNprop's layer in front."""
    sizes = {
        "dm": (hidden_sizes,),
        "longrun": (),
        "rnnprop": (hidden_sizes, input_size),
    }[kind]
    init = {"dm": dm_init, "longrun": longrun_init, "rnnprop": rnnprop_init}[kind]
    return jax.eval_shape(lambda key: init(key, *sizes), jax.random.key(0))


def random_weights(kind, hidden_sizes=(), input_size=20, seed=0):
    """φ of such a network, biases too."""
    return random_like(shapes_of(kind, hidden_sizes, input_size), seed)


def random_like(shapes, seed=0):
    """A tree of float32 of these shapes."""
    rng = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32)
    return jax.tree.map(draw, shapes)


def random_start(task):
    """Parameters of a task whose initial ones take long to compile."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return random_like(jax.eval_shape(task.init, key, ()))


def random_images(shape=(8, 8, 1), count=40):
    """Images of this shape in ten classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return Dataset(images, rng.integers(0, 10, count).astype(np.int32))
