"""An LSTM that predicts noisy sine waves, as an optimizee."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from l2l_jax.checks import check_number, check_size
from l2l_jax.types import Task


class SineLSTM(nn.Module):
    """LSTM layers over a sequence of numbers and a linear read-out of the last state.

    The gates are i, f, o and g, with no number added to the forget gate.

    Attributes:
      layers: number of LSTM layers, at least 1.
      hidden: units of each.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x, key = jnp.zeros((3, 10)), jax.random.key(0)
      >>> params = jax.eval_shape(SineLSTM().init, key, x)["params"]
      >>> sum(x.size for x in jax.tree.leaves(params))
      1781

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, section 5.4.2.
    """

    layers: int = 1
    hidden: int = 20

    def __post_init__(self):
        """Refuses sizes that are not positive when the module is made."""
        check_size("layers", self.layers)
        check_size("hidden", self.hidden)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Predictions (B,) from sequences x (B, length)."""
        sequence: Any = x[..., None]
        for _ in range(self.layers):
            # Unrolled, it would compile four times longer, and run no faster.
            sequence = nn.RNN(nn.OptimizedLSTMCell(self.hidden))(sequence)
        return nn.Dense(1)(sequence[..., -1, :])[..., 0]


def sine_task(
    layers: int = 1,
    *,
    hidden: int = 20,
    noise: float = 0.1,
    length: int = 10,
    batch_size: int = 128,
    init_std: float = 0.1,
) -> Task:
    """Mean squared error of an LSTM that predicts sine waves from noisy values.

    Every sequence has its own wave, every minibatch is new::

        A ~ U(0, 10), ω ~ U(0, π/2), φ ~ U(0, 2π),  f(x) = A·sin(ω·x + φ)
        seen: f(0) + ε_0, …, f(length-1) + ε_(length-1),  ε ~ N(0, noise²)
        to be predicted: f(length)

    Args:
      layers: LSTM layers; the paper: 1 and, as a test, 2.
      hidden: units of each.
      noise: deviation of what is added to the values seen, at least 0; the paper: 0.1
        and, as a test, 0.01.
      length: values seen.
      batch_size: sequences of a minibatch.
      init_std: deviation of the N(0, init_std²) from which every initial parameter is
        drawn.

    Returns:
      The task; its params are those of a `SineLSTM`, a minibatch is a random key.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> import jax
      >>> task = sine_task()
      >>> key = jax.random.key(0)
      >>> batch = task.batches(key, (), (), 0, 1)[0]
      >>> 10 < task.loss(task.init(key, ()), (), (), batch) < 30  # about E[A²]/2
      Array(True, dtype=bool)

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, section 5.4.2; the deviation of the noise is that of the authors' program.
    """
    module = SineLSTM(layers, hidden)
    check_size("length", length)
    check_size("batch_size", batch_size)
    check_number("noise", noise, 0)
    check_number("init_std", init_std, 0)
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros((batch_size, length))
    )["params"]

    def init(key: jax.Array, instance: Any) -> Any:
        del instance
        return optax.tree.random_like(
            key, shapes, lambda k, s, dtype: init_std * jax.random.normal(k, s, dtype)
        )

    def batches(key, data, instance, start, length):
        del data, instance
        steps = start + jnp.arange(length)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, steps)

    def loss(params, data, instance, key):
        del data, instance
        seen, target = sine_waves(key, batch_size, length, noise)
        predicted: Any = module.apply({"params": params}, seen)
        return jnp.mean((predicted - target) ** 2)

    return Task((), lambda key: (), init, batches, loss)


def sine_waves(
    key: jax.Array, count: int, length: int, noise: float
) -> tuple[jax.Array, jax.Array]:
    """Random waves: noisy values (count, length) and the next one without (count,)."""
    keys = jax.random.split(key, 4)
    amplitude, frequency, phase = (
        jax.random.uniform(k, (count, 1), maxval=high)
        for k, high in zip(keys[:3], (10, jnp.pi / 2, 2 * jnp.pi), strict=True)
    )
    x = jnp.arange(length + 1, dtype=jnp.float32)[None, :]
    f = amplitude * jnp.sin(frequency * x + phase)
    seen = f[:, :-1] + noise * jax.random.normal(keys[3], (count, length))
    return seen, f[:, -1]
