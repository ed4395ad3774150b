"""The least arithmetic of the LSTM layers, for the benchmarks to compare with."""

import jax
import jax.numpy as jnp


def products(sizes: list[int], inputs: int, coordinates: int, steps: int, back: bool):
    """The bare matrix products of the layers.

    Args:
      sizes: hidden units of each layer, the lowest first.
      inputs: of the lowest layer.
      coordinates: columns of the products.
      steps: how often all layers are computed.
      back: whether dX and dW are computed as well.

    Returns:
      The compiled function, its arguments, and how many FLOP it takes.
    """
    layers, flop = [], 0
    for hidden in sizes:
        rows, columns = inputs + hidden, 4 * hidden
        kernel = jnp.ones((rows, columns))
        layers.append(
            (kernel, jnp.ones((rows, coordinates)), jnp.ones((columns, coordinates)))
        )
        flop += (3 if back else 1) * 2 * rows * columns * coordinates * steps
        inputs = hidden

    def product(a, b, axis):
        return jax.lax.dot_general(a, b, (((axis,), (axis,)), ((), ())))

    # One number of each result enters an operand of the next step, or XLA would compute
    # all steps once; nothing larger does, so that only products are timed.
    @jax.jit
    def run(layers):
        def step(_, layers):
            new = []
            for kernel, x, gates in layers:
                forward = product(kernel, x, 0)[:1, :1]
                if back:
                    d_x = product(kernel.T, gates, 0)[0, 0]
                    kernel = kernel + 1e-9 * d_x
                    forward += product(gates, x, 1)[:1, :1]
                x = jax.lax.dynamic_update_slice(x, 1e-9 * forward, (0, 0))
                new.append((kernel, x, gates))
            return new

        return jax.lax.fori_loop(0, steps, step, layers)

    return run, (layers,), flop


def gates(sizes: list[int], coordinates: int, steps: int):
    """The gates and cells as tanh, once a step: 5 a hidden unit.

    Returns:
      The compiled function and its arguments.
    """
    x = jnp.full((5 * sum(sizes), coordinates), 0.1)
    run = jax.jit(
        lambda x: jax.lax.fori_loop(0, steps, lambda _, x: jnp.tanh(x) * 1.01, x)
    )
    return run, (x,)
