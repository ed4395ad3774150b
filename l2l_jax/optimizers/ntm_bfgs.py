"""NTM-BFGS: an LSTM that learns how to keep an estimate of the inverse Hessian."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from l2l_jax.checks import (
    check_choice,
    check_floating,
    check_number,
    check_size,
    check_sizes,
    check_type,
)
from l2l_jax.fused import fused_cell
from l2l_jax.lstm import (
    Dense,
    LSTMState,
    LSTMWeights,
    dense,
    lstm_layers,
    stack_init,
)
from l2l_jax.optimizers.averaging import averaging_cell, check_averaged_units
from l2l_jax.optimizers.coordinatewise import compute_dtype, init_cells
from l2l_jax.optimizers.quasi_newton import (
    read_memory,
    secant_basis,
    write_memory,
)

MAX_COORDINATES = 4096
_BASIS = 4  # of the vectors that heads are made of
_LOST = 10  # so many times the least |g|, and M is begun anew
_HEADS = 3  # of writing: as many as BFGS needs
_INPUTS = 6  # of the controller, beside the read results


class NTMBFGSParams(NamedTuple):
    """Weights φ of NTM-BFGS, with R read heads, W write heads and layers of H units.

    Attributes:
      lstm: the controller, one `LSTMWeights` a layer, the lowest (6 + R inputs) first.
      read: H -> 2·R, for each head its share of g and a number of its own.
      left: H -> 4·W, for each head its shares of ŝ, û, v and a number of its own.
      right: likewise.
      output: H -> R, the step's shares of the read results.
    """

    lstm: tuple[LSTMWeights, ...]
    read: Dense
    left: Dense
    right: Dense
    output: Dense


def ntm_bfgs_init(
    key: jax.Array,
    hidden_sizes: tuple[int, ...] = (20,),
    read_heads: int = 1,
    write_heads: int = 3,
    start: str = "gradient",
    dtype: Any = jnp.float32,
) -> NTMBFGSParams:
    """Initial weights φ of NTM-BFGS: a random controller, which no head heeds yet.

    Args:
      key: randomness.
      hidden_sizes: hidden units of each LSTM layer, the lowest first.
      read_heads: vectors with which M is read, R.
      write_heads: pairs of vectors that are written into it, W.
      start: what it is before anything is learned: "gradient", descent along the
        gradient, whose left write vectors are those of BFGS and whose right ones are 0,
        so that nothing is written, or "bfgs", BFGS with unit steps; needs W = 3.
      dtype: floating dtype of φ.

    Returns:
      φ; 2,807 numbers with the default sizes.

    Raises:
      ValueError: a size is not a positive int, or `start` is none of these.

    Example:
      >>> import jax
      >>> phi = ntm_bfgs_init(jax.random.key(0))
      >>> phi.left.kernel.shape, sum(x.size for x in jax.tree.leaves(phi))
      ((20, 12), 2807)
    """
    sizes = check_sizes("hidden_sizes", hidden_sizes)
    check_size("read_heads", read_heads)
    check_size("write_heads", write_heads)
    check_choice("start", start, ("gradient", "bfgs"))
    if start == "bfgs" and write_heads != _HEADS:
        raise ValueError(f"write_heads must be 3 to start as BFGS, got {write_heads}")

    def head(biases: jax.Array) -> Dense:
        return Dense(jnp.zeros((sizes[-1], biases.size), dtype), biases.reshape(-1))

    one_each = jnp.eye(write_heads, _BASIS, dtype=dtype).at[:, -1].set(0)
    if start == "bfgs":
        right = one_each * jnp.array([[1.0], [-1.0], [1.0]], dtype)
    else:
        right = jnp.zeros_like(one_each)
    return NTMBFGSParams(
        lstm=stack_init(key, _INPUTS + read_heads, sizes, dtype),
        read=head(jnp.tile(jnp.array([[1.0, 0.0]], dtype), (read_heads, 1))),
        left=head(one_each),
        right=head(right),
        output=head((jnp.arange(read_heads) == 0).astype(dtype)),
    )


def ntm_bfgs_sizes(params: NTMBFGSParams) -> dict[str, Any]:
    """The arguments of `ntm_bfgs_init` that give weights of the same shapes."""
    return {
        "hidden_sizes": [layer.bias.shape[0] // 4 for layer in params.lstm],
        "read_heads": params.output.bias.shape[0],
        "write_heads": params.left.bias.shape[0] // _BASIS,
    }


class NTMBFGSState(NamedTuple):
    """State of `ntm_bfgs_transform` for n coordinates, all leaves in tree order.

    Attributes:
      count: int32 scalar, steps done.
      params: θ of the last step, (n,).
      gradient: of the last step, (n,).
      scale: scalar γ.
      least: scalar, the smallest |g| since M was γ·I.
      memory: (n, n), symmetric; M = γ·I + memory. (0, 0) without memory.
      reads: read results of the last step, (R, n).
      lstm: an `LSTMState` of arrays (H, n) for each layer.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    params: jax.Array
    gradient: jax.Array
    scale: jax.Array
    least: jax.Array
    memory: jax.Array
    reads: jax.Array
    lstm: tuple[LSTMState, ...]


def ntm_bfgs_transform(
    params: NTMBFGSParams,
    *,
    step_size: float = 0.1,
    averaged_units: int | None = None,
    memory: bool = True,
    max_coordinates: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""NTM-BFGS as an optax transformation, for problems of few coordinates.

    A matrix M (n x n) over all n coordinates of the tree takes the part of BFGS's
    estimate of the inverse Hessian; what is written into it and read from it is
    learned. A controller, an LSTM with global averaging cells, runs at every coordinate
    and works the heads: each gives one number at every coordinate, and so a vector. At
    step t, with the gradient g, s and y the differences of θ and g since the last step,
    u = M·y and ŝ, û, v as in `secant_basis`::

        h = LSTM(g, s, y, u, i_{t-1}; y^T·u/s^T·y, |g_t|/|g_{t-1}|)
        a_k = A_k1(h)·ŝ + A_k2(h)·û + A_k3(h)·v + A_k4(h)·|ŝ|    left write vectors
        b_k = likewise with B                                   right ones
        M ← M + Σ_k (a_k·b_k^T + b_k·a_k^T) / 2
        r_k = C_k1(h)·g + C_k2(h)·|g|                           read vectors
        i_k = M·r_k                                             read results
        Δθ = -Σ_k D_k(h)·i_k

    `|x|` is the root mean square, vectors come into the LSTM divided by it, ratios as
    logarithms, and A, B, C, D are linear in h. M is γ·I at first, with `γ = α/|g_1|`,
    so that the first step has length α in the root mean square; it becomes `I·s^T·y /
    y^T·y`, if s^T·y is positive, at the second step, and again whenever y^T·u is not
    positive or `|g|` ten times its least since then. Where Δθ does not go down, g^T·Δθ
    >= 0, it is -γ·g.

    Departures from the paper, whose heads are free and whose read results reach the
    step through the controller at the following step: heads are also given shares of
    the vectors of BFGS (the last term of each is the paper's), M is written before it
    is read, the read results are the step's direction as well, u is read for the
    controller, and there are the two safeguards above.

    Args:
      params: the learned weights φ, as `ntm_bfgs_init` or `load` give them.
      step_size: α, at least 0.
      averaged_units: of each layer, see `l2l_jax.optimizers.averaging`; None: a quarter
        of the smallest layer's.
      memory: False: nothing is written, M is γ·I, and the controller is alone.
      max_coordinates: the most coordinates with a memory, whose square it holds; None:
        4,096.

    Returns:
      An `optax.GradientTransformationExtraArgs` for any pytree of floating arrays.
      Updates have the gradients' dtypes and are to be ADDED. `update` needs `params`.
      Not coordinatewise; leaves that are sharded are gathered.

    Raises:
      TypeError: `params` is not an `NTMBFGSParams`; at init, a leaf is not floating.
      ValueError: an argument is out of range; at init, there are too many coordinates;
        at update, `params` is missing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> tx = ntm_bfgs_transform(ntm_bfgs_init(jax.random.key(0), start="bfgs"))
      >>> curvature, theta = jnp.array([1.0, 10.0, 100.0]), jnp.ones(3)
      >>> state = tx.init(theta)
      >>> for _ in range(20):
      ...     updates, state = tx.update(curvature * theta, state, theta)
      ...     theta = theta + updates
      >>> bool(jnp.abs(theta).max() < 1e-5)
      True

    References:
      Andrychowicz et al., `Learning to learn by gradient descent by gradient descent
      <https://arxiv.org/abs/1606.04474>`_, first version, 2016, appendix on NTM-BFGS.
    """
    check_type("params", params, NTMBFGSParams)
    check_number("step_size", step_size, 0)
    check_choice("memory", memory, (False, True))
    phi = params
    limit = MAX_COORDINATES if max_coordinates is None else max_coordinates
    check_size("max_coordinates", limit)
    _check_shapes(phi)
    if averaged_units is None:
        averaged_units = min(layer.bias.shape[0] // 16 for layer in phi.lstm)
    check_averaged_units(averaged_units, phi.lstm, "fused")

    def init_fn(params):
        check_floating(params)
        theta, _ = _vector(params)
        if memory and theta.size > limit:
            raise ValueError(
                f"NTM-BFGS holds a matrix of {theta.size} x {theta.size} numbers; it"
                f" takes up to max_coordinates={limit} coordinates"
            )
        side = theta.size if memory else 0
        return NTMBFGSState(
            count=jnp.zeros([], jnp.int32),
            params=theta,
            gradient=jnp.zeros_like(theta),
            scale=jnp.ones([], theta.dtype),
            least=jnp.full([], jnp.inf, theta.dtype),
            memory=jnp.zeros((side, side), theta.dtype),
            reads=jnp.zeros((phi.output.bias.size, theta.size), theta.dtype),
            lstm=init_cells(phi.lstm, theta, None),
        )

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        check_type("the state in update(updates, state)", state, NTMBFGSState)
        if params is None:
            raise ValueError("NTM-BFGS needs update(…, params)")
        check_floating(updates)
        (g, as_tree), (theta, _) = _vector(updates), _vector(params)
        weights = jax.tree.map(lambda x: x.astype(g.dtype), phi)
        first = state.count == 0
        s = jnp.where(first, 0, theta - state.params)
        y = jnp.where(first, 0, g - state.gradient)
        scale, matrix, least = _start(state, step_size, g, s, y)

        # Not in the paper: M·y is read for the controller, whatever its heads ask.
        u = read_memory(scale, matrix, y)
        basis = secant_basis(s, y, u)
        x = _inputs(g, s, y, u, state, first)
        hs, cells = lstm_layers(
            *([(w,) for w in weights.lstm], [(c,) for c in state.lstm], [x], "highest"),
            averaging_cell(fused_cell, averaged_units, [None]),
        )
        (h,) = hs
        # The paper's heads have the last of these to share, a constant; the others are
        # ours, so that what BFGS writes is a matter of signs.
        basis = jnp.concatenate(
            [basis, jnp.broadcast_to(_size(basis[:1]), (1, g.size))]
        )
        left, right = (_heads(w, h, basis) for w in (weights.left, weights.right))
        # In the paper M is read, then written. So the newest pair counts at once, as it
        # does in BFGS.
        matrix = write_memory(matrix, left, right)
        own = jnp.stack([g, jnp.broadcast_to(_size(g), g.shape)])
        reads = read_memory(scale, matrix, _heads(weights.read, h, own))
        # The paper's controller is told what was read, at the following step, and makes
        # the step of it. Here it is told, too, but what was read is the direction.
        step = -jnp.sum(dense(weights.output, h) * reads, axis=0)
        # Not in the paper, and without it what was learned diverged.
        step = jnp.where(jnp.vdot(g, step) < 0, step, -scale * g)

        state = NTMBFGSState(
            count=optax.safe_increment(state.count),
            params=theta,
            gradient=g,
            scale=scale,
            least=least,
            memory=matrix,
            reads=reads,
            lstm=tuple(LSTMState(cell.c[0], cell.h[0]) for cell in cells),
        )
        return as_tree(step), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_shapes(phi: NTMBFGSParams) -> None:
    heads = phi.output.bias.size
    inputs, expected = _INPUTS + heads, []
    for i, layer in enumerate(phi.lstm):
        hidden = layer.bias.size // 4
        expected += [(f"lstm[{i}]", layer, (inputs + hidden, 4 * hidden))]
        inputs = hidden
    writes = phi.left.bias.size // _BASIS * _BASIS
    sizes = {"read": 2 * heads, "left": writes, "right": writes, "output": heads}
    expected += [(n, getattr(phi, n), (inputs, size)) for n, size in sizes.items()]
    for name, layer, shape in expected:
        found = layer.kernel.shape, layer.bias.shape
        if found != (shape, shape[1:]):
            raise ValueError(
                f"{name} must have shapes {shape} and {shape[1:]}, got"
                f" {found[0]} and {found[1]}"
            )


def _vector(tree: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """All coordinates in tree order, in the dtype of the arithmetic; the way back."""
    vector, unravel = ravel_pytree(tree)
    dtype = vector.dtype
    # A copy, for it becomes part of the state, which may be donated, and that of one
    # array alone would be the caller's own.
    vector = jnp.array(vector, compute_dtype(vector))
    return vector, lambda x: unravel(x.astype(dtype))


def _size(x: jax.Array) -> jax.Array:
    """The root mean square along the last axis, which stays; 0 has the derivative 0."""
    square = jnp.mean(x**2, -1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _start(state, step_size, g, s, y):
    """γ, the memory and the least |g|, begun anew where it is time to."""
    size, sy, yy = _size(g)[0], jnp.vdot(s, y), jnp.vdot(y, y)
    first = jnp.where(size > 0, step_size / jnp.where(size > 0, size, 1), 1)
    yu = jnp.vdot(y, read_memory(state.scale, state.memory, y))
    # Not in the paper either: a memory that is no longer positive, or has led far up,
    # is given up.
    lost = ~(yu > 0) | (size > _LOST * state.least)
    anew = (sy > 0) & (yy > 0) & ((state.count == 1) | lost)
    scale = jnp.where(anew, sy / jnp.where(anew, yy, 1), state.scale)
    scale = jnp.where(state.count == 0, first, scale).astype(g.dtype)
    least = jnp.where(anew, size, jnp.minimum(size, state.least))
    return scale, jnp.where(anew, 0, state.memory), least


def _inputs(g, s, y, u, state, first):
    """What the controller sees at every coordinate, (6 + R, n), of a size around 1."""
    vectors = jnp.concatenate([jnp.stack([g, s, y, u]), state.reads])
    sizes = _size(vectors)
    vectors = jnp.where(sizes > 0, vectors / jnp.where(sizes > 0, sizes, 1), 0)

    def log_ratio(a, b):
        known = (a > 0) & (b > 0) & ~first
        log = jnp.log(jnp.where(known, a, 1)) - jnp.log(jnp.where(known, b, 1))
        return jnp.broadcast_to(jnp.clip(log / 4, -3, 3), (1, g.size))

    before = _size(state.gradient)[0]
    ratios = [
        log_ratio(jnp.vdot(y, u), jnp.vdot(s, y)),
        log_ratio(_size(g)[0], before),
    ]
    return jnp.concatenate([vectors, *ratios])


def _heads(weights: Dense, h: jax.Array, basis: jax.Array) -> jax.Array:
    """Vectors (heads, n): shares of a basis (K, n), linear in each coordinate's h."""
    shares = dense(weights, h).reshape(-1, *basis.shape)
    return jnp.sum(shares * basis[None], axis=1)
