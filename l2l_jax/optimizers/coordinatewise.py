"""What both LSTM optimizers share: state a leaf, and the network over its coordinates.

State of a parameter of shape S and hidden size H has shape (H, *S), a leaf a parameter.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2l_jax.checks import check_choice, check_floating, check_type
from l2l_jax.chunks import in_chunks
from l2l_jax.fused import fused_cell
from l2l_jax.lstm import LSTMState, LSTMWeights, lstm_cell, lstm_network
from l2l_jax.preprocess import relative_gradients
from l2l_jax.sharding import auto_within, zeros_beside
from l2l_jax.trees import map_rows, over_coordinates
from l2l_jax.types import PyTree

STATE_DTYPES = (None, "bfloat16", "float32", "float64")
PRECISIONS = ("default", "high", "highest")
IMPLEMENTATIONS = ("auto", "fused", "kernel", "plain")
# Coordinates of a leaf from which on "auto" takes the GPU's kernel. Every size of leaf
# compiles one for itself, and a network has many small ones of different sizes.
KERNEL_FROM = 2**16
# The JAX from which on Triton's products may have sides below 16, as its tiles have.
KERNEL_SINCE = (0, 9, 2)
# In jax 0.11 it is announced that this will go; "auto" then goes without the kernel.
TRITON = "jax.experimental.pallas.triton"
# Where it is but interpreted.
KERNEL_NOT_ON = ("cpu", "tpu")


def check_network(
    params: Any,
    kind: type[Any],
    state_dtype: str | None,
    precision: str,
    implementation: str,
    skip_nonfinite: bool,
) -> None:
    """Refuses weights of another optimizer or whose shapes do not fit together.

    Args:
      params: the weights φ, to be a `kind` with fields `lstm` and `output` and
        perhaps `input`, a dense layer in front. Two numbers a coordinate come in.
      kind: the NamedTuple class of the weights.
      state_dtype: one of `STATE_DTYPES`.
      precision: one of `PRECISIONS`.
      implementation: one of `IMPLEMENTATIONS`.
      skip_nonfinite: True or False.

    Raises:
      TypeError: `params` is not a `kind`.
      ValueError: a shape, or one of the other arguments, is not as it must be.
    """
    check_type("params", params, kind)
    check_choice("state_dtype", state_dtype, STATE_DTYPES)
    check_choice("precision", precision, PRECISIONS)
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    check_choice("skip_nonfinite", skip_nonfinite, (False, True))
    if implementation == "kernel" and not has_triton():
        since = ".".join(map(str, KERNEL_SINCE))
        raise ValueError(
            f"implementation 'kernel' needs jax {since} or newer, as long as it has"
            f" {TRITON}, got {jax.__version__}"
        )
    inputs, expected = 2, []
    for name, layer in _layers(params):
        gates = 4 if isinstance(layer, LSTMWeights) else 1
        hidden = layer.bias.size // gates
        rows = inputs + hidden if gates == 4 else inputs
        expected += [
            (f"{name}.kernel", layer.kernel.shape, (rows, gates * hidden)),
            (f"{name}.bias", layer.bias.shape, (gates * hidden,)),
        ]
        inputs = hidden
    expected.append(("output.bias", params.output.bias.shape, (1,)))
    for name, shape, wanted in expected:
        if shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}, got {shape}")


def _layers(params: Any) -> list[tuple[str, Any]]:
    first = [("input", params.input)] if hasattr(params, "input") else []
    lstm = [(f"lstm[{i}]", layer) for i, layer in enumerate(params.lstm)]
    return [*first, *lstm, ("output", params.output)]


def check_platform(implementation: str, params: PyTree) -> None:
    """Refuses the kernel for parameters that lie where it does not run.

    While a program is traced it is not known for which devices that is.

    Raises:
      ValueError: the message names the platform.
    """
    if implementation != "kernel":
        return
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            for device in leaf.devices():
                if device.platform in KERNEL_NOT_ON:
                    raise ValueError(
                        "implementation must be 'auto', 'fused' or 'plain' for"
                        f" parameters on a {device.platform.upper()}, got 'kernel',"
                        " which runs on GPUs"
                    )


def compute_dtype(leaf: jax.Array) -> jnp.dtype:
    """The dtype of moments and of the cell's arithmetic: at least float32."""
    return jnp.promote_types(jnp.float32, jnp.result_type(leaf))


def init_moments(params: PyTree) -> PyTree:
    """Zeros of the parameters' shapes, in `compute_dtype`."""
    return jax.tree.map(lambda p: zeros_beside(p, (), compute_dtype(p)), params)


def init_cells(
    layers: tuple[LSTMWeights, ...], params: PyTree, state_dtype: str | None
) -> tuple[LSTMState, ...]:
    """LSTM states of every coordinate, all 0.

    Args:
      layers: weights of the LSTM layers; their sizes count, not their values.
      params: pytree of floating arrays, the parameters to optimize.
      state_dtype: dtype of the state; None stands for each leaf's `compute_dtype`.

    Returns:
      For every layer an `LSTMState` of two trees like `params`, whose leaves have
      shape (H, *leaf.shape).

    Raises:
      TypeError: a leaf is not real floating; the message has its path.
    """
    check_floating(params)

    def zeros(hidden: int) -> PyTree:
        return jax.tree.map(
            lambda p: zeros_beside(p, (hidden,), state_dtype or compute_dtype(p)),
            params,
        )

    return tuple(
        LSTMState(zeros(layer.bias.shape[0] // 4), zeros(layer.bias.shape[0] // 4))
        for layer in layers
    )


class Rule(NamedTuple):
    """What an optimizer does at every coordinate, in three parts.

    All work on one coordinate, or on arrays of them behind the other axes; what depends
    on the call comes in as `scalars`, a tuple of arrays () of the moments' dtype.

    Attributes:
      see: `see(scalars, g, moments) -> (inputs, moments)`: the two numbers that the
        network gets, and the new moments.
      enter: `enter(weights, x) -> x`: what the lowest LSTM layer gets, of the two
        inputs (2,).
      move: `move(scalars, x_out, inputs) -> update`.
      precision: of the network's matrix products.
    """

    see: Callable[..., tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]]
    enter: Callable[..., jax.Array]
    move: Callable[..., jax.Array]
    precision: str


def relative_scalars(
    g: jax.Array, step_size: Any, b1: Any, b2: Any, eps: Any, count: jax.Array
) -> tuple:
    """What `see_relative` works with: α, β1, β2, ε, 1 - β1^t, 1 - β2^t."""
    beta1, beta2, t = (jnp.asarray(x, compute_dtype(g)) for x in (b1, b2, count))
    return step_size, beta1, beta2, eps, 1 - beta1**t, 1 - beta2**t


def see_relative(scalars: tuple, g: jax.Array, moments: tuple) -> tuple:
    """The `see` of a `Rule` whose network gets g̃ and m̃; the moments are m and v."""
    _, beta1, beta2, epsilon, left1, left2 = scalars
    m, v = moments
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    return relative_gradients(g, m / left1, v / left2, epsilon), (m, v)


def step_leaf(
    rule: Rule,
    weights: PyTree,
    scalars: tuple,
    g: jax.Array,
    moments: tuple[jax.Array, ...],
    cells: tuple[LSTMState, ...],
    implementation: str = "plain",
    skip_nonfinite: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, ...], tuple[LSTMState, ...]]:
    """One step of a rule on one leaf of shape S.

    Args:
      rule: what is done.
      weights: of the network; cast to the dtype of the arithmetic.
      scalars: numbers or arrays () for the rule, likewise.
      g: gradient, shape S.
      moments: arrays of shape S.
      cells: states with leaves (H, *S), of any floating dtype.
      implementation: "plain": `lstm_cell` mapped over the coordinates, "fused":
        `fused_cell` of arrays of them, chunk by chunk, "kernel": the GPU's kernel,
        "fused" for a leaf that it does not take, "auto": "kernel" for leaves of at
        least `KERNEL_FROM` coordinates where `on_one_gpu`, else "fused".
      skip_nonfinite: whether coordinates are left alone where the gradient or a new
        moment is not finite.

    Returns:
      The update in g's dtype, the new moments, and the new cells in their own dtypes.
    """
    dtype = compute_dtype(g)
    scalars = tuple(jnp.asarray(x, dtype) for x in scalars)

    def step(shared, g, state):
        (scalars, weights), (moments, cells) = shared, state
        inputs, moments = rule.see(scalars, g.astype(dtype), moments)
        x_out, cells = _step_cells(
            rule, weights, inputs, cells, implementation == "plain"
        )
        return rule.move(scalars, x_out, inputs).astype(g.dtype), (moments, cells)

    guard = functools.partial(_skipping, rule.see) if skip_nonfinite else lambda f: f
    step = guard(step)
    if implementation != "plain":
        step = in_chunks(step)
    arguments = (scalars, weights), g, (moments, cells)
    if implementation == "kernel":
        step = _by_kernel(rule, arguments, guard) or step
    elif implementation == "auto" and g.size >= KERNEL_FROM and on_one_gpu():
        kernel = _by_kernel(rule, arguments, guard) or step
        # Beside the GPU there is the CPU, for which a program may be compiled, too.
        step = functools.partial(jax.lax.platform_dependent, cuda=kernel, default=step)
    update, (moments, cells) = auto_within(step)(*arguments)
    return update, moments, cells


def _skipping(see: Callable, step: Callable) -> Callable:
    """`step(shared, g, state)`, but where it would not stay finite: 0 and no change."""

    def skipping(shared, g, state):
        good = stays_finite(see, shared[0], g, state[0])
        # The step takes 0 there, or the derivative of what is not taken would be NaN,
        # and NaN times 0 is NaN.
        new = step(shared, jnp.where(good, g, 0), state)
        return where_good(good, new, (jnp.zeros_like(g), state))

    return skipping


def stays_finite(
    see: Callable, scalars: tuple, g: jax.Array, moments: tuple
) -> jax.Array:
    """Where the gradient, and the moments that it would give, are finite."""
    seen = g.astype(compute_dtype(g))
    finite = map(jnp.isfinite, (seen, *see(scalars, seen, moments)[1]))
    return functools.reduce(jnp.logical_and, finite)


def where_good(good: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """The new arrays at coordinates that are good, the old ones at others."""
    choose = lambda x, y: jnp.where(jnp.broadcast_to(good, x.shape), x, y)
    return jax.tree.map(choose, new, old)


def _by_kernel(rule: Rule, arguments: tuple, guard: Callable) -> Callable | None:
    """`step(shared, g, state)` by the GPU's kernel; None if it does not take these."""
    # Pallas is imported only where it may be wanted.
    from l2l_jax.kernel import kernel_step, kernel_supports

    def step(shared, g, state):
        (scalars, weights), (moments, cells) = shared, state
        update, *state = kernel_step(
            *(rule.see, rule.move, weights, scalars, g, moments, cells),
            precision=rule.precision,
        )
        return update, tuple(state)

    (_, weights), g, state = arguments
    return guard(step) if kernel_supports(weights, g, *state) else None


def on_one_gpu() -> bool:
    """Whether JAX's default devices are one GPU on which Triton's code runs.

    Among several, a leaf may be sharded, and the kernel would gather it.
    """
    devices = jax.devices()
    # "9.0" of CUDA, "gfx90a" of ROCm, nothing of a CPU.
    capability = str(getattr(devices[0], "compute_capability", ""))
    new = capability[:1].isdigit() and float(capability) >= 8
    return len(devices) == 1 and new and has_triton()


def has_triton() -> bool:
    """Whether this JAX compiles the kernel."""
    if jax.__version_info__ < KERNEL_SINCE:
        return False
    return importlib.util.find_spec(TRITON) is not None


def _step_cells(rule, weights, inputs, cells, plain):
    """The network's output, of the inputs' shape and dtype, and the new cells."""
    shape, dtype = inputs[0].shape, inputs[0].dtype

    def network(weights, states, x, cell):
        return lstm_network(
            *(weights.lstm, weights.output, states, rule.enter(weights, x)),
            *(rule.precision, cell),
        )

    weights, states = jax.tree.map(lambda x: x.astype(dtype), (weights, cells))
    if plain:
        # Where a mapped array meets an unmapped one element by element, vmap moves the
        # mapped axis to the front, a transposition of everything. So biases are mapped
        # too; the broadcast is fused away.
        axes = jax.tree.map(lambda w: -1 if w.ndim == 1 else None, weights)
        weights = jax.tree.map(
            lambda w: _spread(w, shape) if w.ndim == 1 else w, weights
        )
        run = over_coordinates(
            functools.partial(network, cell=lstm_cell), len(shape), (axes, -1, -1)
        )
    else:
        run = functools.partial(network, cell=fused_cell)
    output, states = run(weights, states, jnp.stack(inputs))
    return output, jax.tree.map(lambda new, old: new.astype(old.dtype), states, cells)


def _spread(bias: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.broadcast_in_dim(bias, (*bias.shape, *shape), (0,))


def map_leaves(
    f: Callable[..., tuple],
    updates: PyTree,
    moments: tuple[PyTree, ...],
    lstm: tuple[LSTMState, ...],
) -> tuple[PyTree, tuple[PyTree, ...], tuple[LSTMState, ...]]:
    """Applies `f(g, moments, cells) -> (update, moments, cells)` leaf by leaf.

    Args:
      f: works on one leaf: its gradient, a tuple of its moments, and a tuple of
        `LSTMState` of arrays, one a layer.
      updates: tree of gradients.
      moments: trees like `updates`.
      lstm: one `LSTMState` of two such trees a layer.

    Returns:
      The tree of updates, and the new moments and LSTM states as they came.
    """
    return map_all_leaves(
        lambda rows: [f(*row) for row in rows], updates, moments, lstm
    )


def map_all_leaves(
    f: Callable[..., list[tuple]],
    updates: PyTree,
    moments: tuple[PyTree, ...],
    lstm: tuple[LSTMState, ...],
) -> tuple[PyTree, tuple[PyTree, ...], tuple[LSTMState, ...]]:
    """`map_leaves` for an `f` that sees all leaves at once, and returns such lists."""
    split = len(moments)

    def pairs(values: tuple) -> tuple[LSTMState, ...]:
        return tuple(map(LSTMState, values[::2], values[1::2]))

    def all_leaves(rows):
        found = f([(r[0], r[1 : split + 1], pairs(r[split + 1 :])) for r in rows])
        return [
            (u, *new, *(x for cell in cells for x in cell)) for u, new, cells in found
        ]

    states = (tree for layer in lstm for tree in layer)
    updates, *values = map_rows(all_leaves, updates, *moments, *states)
    return updates, tuple(values[:split]), pairs(tuple(values[split:]))
