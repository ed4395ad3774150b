"""One step of an LSTM optimizer on GPUs, as one kernel (Pallas, through Triton).

A program takes a block of coordinates, reads gradient, moments and LSTM states once and
writes the update and the new ones once. What is between stays in registers, where a
chain of XLA operations writes and reads the gates of every layer.

Triton computes with arrays whose sizes are powers of two, and does not join them. So a
vector of n numbers a coordinate is a list of tiles of rows, 20 is 16 and 4, and a
matrix times it is a sum of products, one a tile. Layers of 20 waste nothing that way;
padded to 32 they would take 2.6 times the products. TF32 products need 16 rows, though:
below "highest" precision 20 is 16 and 16, of which 12 are zeros.

The four gates of a tile are one product, with the gates of a unit in consecutive rows:
a thread holds four rows, hence whole units, so that telling the gates apart moves no
data between threads.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from l2l_jax.fused import elu, fused_cell
from l2l_jax.lstm import LSTMState, dense, lstm_network

# The kernel is straight-line code: its compile time grows with the layers' sizes.
MAX_SIZE = 32


class _How(NamedTuple):
    """What a compiled kernel is fixed by, beside shapes and dtypes."""

    see: Callable
    move: Callable
    precision: str
    block: int
    num_warps: int
    interpret: bool


def kernel_supports(
    weights: Any, g: jax.Array, moments: tuple[jax.Array, ...], cells: tuple
) -> bool:
    """Whether `kernel_step` takes a leaf; if not, some other path must.

    Refused are float64, leaves without elements, and layers of more than `MAX_SIZE`
    units.

    Args:
      weights: as of `kernel_step`; shapes and dtypes count, here and below.
      g: likewise.
      moments: likewise.
      cells: likewise.
    """
    states = jax.tree.leaves(cells)
    sizes = [x.shape[0] for x in states]
    if hasattr(weights, "input"):
        sizes.append(weights.input.bias.shape[0])
    floats = (g, *moments, *states)
    return (
        g.size > 0
        and max(sizes) <= MAX_SIZE
        and all(x.dtype.itemsize <= 4 for x in floats)
    )


def kernel_step(
    see: Callable[..., tuple],
    move: Callable[..., jax.Array],
    weights: Any,
    scalars: tuple[jax.Array, ...],
    g: jax.Array,
    moments: tuple[jax.Array, ...],
    cells: tuple[LSTMState, ...],
    *,
    precision: str = "highest",
    block: int = 64,
    num_warps: int = 8,
    interpret: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, ...], tuple[LSTMState, ...]]:
    """One step of the optimizer at every coordinate of one leaf of shape S.

    The step::

        (a, b), moments = see(scalars, g, moments)
        x               = [a, b], or ELU(input(a, b)) where the weights have `input`
        x_out, cells    = LSTM(x, cells)
        update          = move(scalars, x_out, (a, b))

    Moments and cells are updated in place where their buffers are donated, or carried
    by a loop; where the old ones are still wanted, XLA copies them first.

    Reverse-mode differentiation takes the same step by `l2l_jax.fused` instead, forward
    and back.

    Args:
      see: pure, element by element, of float32 arrays of one shape, whatever it is. Not
        a closure over arrays: those are `scalars`. The same function object at every
        call, or everything compiles again.
      move: likewise.
      weights: φ, with fields `lstm` and `output` and perhaps `input`.
      scalars: numbers of the step, each of shape (), traced or not.
      g: gradient, shape S, float16, bfloat16 or float32.
      moments: float32 arrays of shape S, as many as `see` takes and returns.
      cells: one state a layer with arrays (H, *S), any floating dtype but float64.
      precision: "highest": products in float32. "high", "default": in TF32.
      block: coordinates of a program, a power of two, at least 16.
      num_warps: groups of 32 threads that a program has, a power of two.
      interpret: run as ordinary JAX, on any device, to test.

    Returns:
      The update, in g's dtype, and the new moments and cells in theirs.
    """
    how = _How(see, move, precision, block, num_warps, interpret)
    weights, scalars = jax.tree.map(jnp.float32, (weights, tuple(scalars)))
    return _step(how, weights, scalars, g, moments, cells)


def _reference(how, weights, scalars, g, moments, cells):
    """The step by the fused cell, the function that is differentiated."""
    inputs, moments = how.see(scalars, g.astype(jnp.float32), moments)
    states = jax.tree.map(jnp.float32, cells)
    x = jnp.stack(inputs)
    if hasattr(weights, "input"):
        x = elu(dense(weights.input, x, how.precision))
    x_out, states = lstm_network(
        weights.lstm, weights.output, states, x, how.precision, fused_cell
    )
    states = jax.tree.map(lambda new, old: new.astype(old.dtype), states, cells)
    return how.move(scalars, x_out, inputs).astype(g.dtype), moments, states


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def _step(how, weights, scalars, g, moments, cells):
    flat = lambda x: x.reshape(-1)
    rows = lambda x: x.reshape(x.shape[0], -1)
    weights = weights._replace(lstm=jax.tree.map(_gates_last, weights.lstm))
    old = (tuple(map(flat, moments)), jax.tree.map(rows, cells))
    arguments = (jax.tree.map(flat, weights), jnp.stack(scalars), flat(g), *old)
    first, kept = (len(jax.tree.leaves(x)) for x in (arguments[:3], old))
    found = pl.pallas_call(
        functools.partial(_kernel, how),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments[2:]),
        grid=(pl.cdiv(g.size, how.block),),
        # Moments and cells in place; the update, result 0, has an array of its own.
        input_output_aliases={first + i: 1 + i for i in range(kept)},
        compiler_params=plgpu.CompilerParams(num_warps=how.num_warps, num_stages=1),
        interpret=how.interpret,
    )(*arguments)
    return jax.tree.map(lambda x, y: x.reshape(y.shape), found, (g, moments, cells))


def _forward_rule(how, *arguments):
    return jax.vjp(functools.partial(_reference, how), *arguments)


def _backward_rule(how, pull, slope):
    del how
    return pull(slope)


_step.defvjp(_forward_rule, _backward_rule)


def _gates_last(x: jax.Array) -> jax.Array:
    """Columns of gates i, j, f, o of H each, as H of i, j, f, o."""
    return jnp.swapaxes(x.reshape(*x.shape[:-1], 4, -1), -1, -2)


class _Tile(NamedTuple):
    """`size` rows of an array from `start` on; those from `end` on are padding."""

    start: int
    size: int
    end: int

    def rows(self) -> jax.Array:
        return jax.lax.iota(jnp.int32, self.size)

    def exists(self) -> jax.Array | None:
        """Which rows are no padding; None: all."""
        rest = self.end - self.start
        return self.rows() < rest if self.size > rest else None


def _tiles(n: int, smallest: int) -> list[_Tile]:
    """Powers of two, none below `smallest`, that cover n rows."""
    tiles, start = [], 0
    while start < n:
        size = min(16, max(smallest, 1 << ((n - start).bit_length() - 1)))
        tiles.append(_Tile(start, size, n))
        start += size
    return tiles


def _outer_and(shape, *masks):
    """Mask of a matrix from masks of its rows and columns, None where all exist."""
    spread = [
        jax.lax.broadcast_in_dim(mask, shape, (axis,))
        for axis, mask in enumerate(masks)
        if mask is not None
    ]
    return functools.reduce(jnp.logical_and, spread) if spread else None


def _read(ref, index, mask) -> jax.Array:
    """Elements of an array in float32, 0 where the mask is False."""
    other = None if mask is None else 0.0
    return plgpu.load(ref.at[index], mask=mask, other=other).astype(jnp.float32)


def _write(ref, index, mask, x) -> None:
    plgpu.store(ref.at[index], x.astype(ref.dtype), mask=mask)


def _wait(how) -> None:
    """Until all threads have read what is now written over, in place.

    Where a block has fewer numbers than the program threads, several of these read the
    same one, and the first may write its successor before the last has read it.
    """
    if not how.interpret:
        plgpu.debug_barrier()


def _affine(weights, outputs: _Tile, parts, precision: str):
    """Outputs of kernel^T·x + bias; `parts` of x: (first row, tile, value)."""
    width = weights.bias.shape[0]
    bias = _read(weights.bias, outputs.start + outputs.rows(), outputs.exists())
    total = bias[:, None]
    for row, inputs, x in parts:
        # Addresses are a pattern, the same for all parts of a size, and a constant:
        # Triton's compile time grows fast with the number of operations.
        pattern = outputs.rows()[:, None] + width * inputs.rows()[None, :]
        start = width * (row + inputs.start) + outputs.start
        exists = _outer_and(pattern.shape, outputs.exists(), inputs.exists())
        part = _read(weights.kernel, pattern + start, exists)
        if inputs.size == 1:
            total = total + part * x
        else:
            total = total + jax.lax.dot(part, x, precision=precision)
    return total


def _cell(weights, tiles, c, h, x, precision):
    """`l2l_jax.lstm.lstm_cell`; c and h: values of `tiles`, x: (tile, value) pairs."""
    width = weights.bias.shape[0]
    inputs = weights.kernel.shape[0] // width - width // 4
    parts = [(0, tile, value) for tile, value in x]
    parts += [(inputs, tile, value) for tile, value in zip(tiles, h, strict=True)]
    new_c, new_h = [], []
    for tile, old in zip(tiles, c, strict=True):
        gates = _Tile(4 * tile.start, 4 * tile.size, 4 * tile.end)
        total = _affine(weights, gates, parts, precision)
        total = total.reshape(tile.size, 4, -1)
        i, j, f, o = (jnp.squeeze(x, 1) for x in jnp.split(total, 4, axis=1))
        value = jax.nn.sigmoid(f + 1) * old + jax.nn.sigmoid(i) * jnp.tanh(j)
        new_c.append(value)
        new_h.append(jax.nn.sigmoid(o) * jnp.tanh(value))
    return new_c, new_h


def _kernel(how, weights, scalars, g, moments, cells, update, new_moments, new_cells):
    """One program; all arguments but `how` are references to whole arrays."""
    smallest = 4 if how.precision == "highest" else 16
    column = pl.program_id(0) * how.block + jax.lax.iota(jnp.int32, how.block)
    exists = column < g.shape[0]

    def place(tile):
        rows = tile.start + tile.rows()
        mask = _outer_and((tile.size, how.block), tile.exists(), exists)
        return (rows[:, None], column[None, :]), mask

    scalars = tuple(scalars[i] for i in range(scalars.shape[0]))
    old = tuple(_read(m, column, exists) for m in moments)
    pair, seen = how.see(scalars, _read(g, column, exists), old)
    x = [(_Tile(i, 1, 2), value[None, :]) for i, value in enumerate(pair)]
    if hasattr(weights, "input"):
        tiles = _tiles(weights.input.bias.shape[0], smallest)
        parts = [(0, *part) for part in x]
        x = [(t, elu(_affine(weights.input, t, parts, how.precision))) for t in tiles]
    for layer, state, new_state in zip(weights.lstm, cells, new_cells, strict=True):
        tiles = _tiles(state.c.shape[0], smallest)
        c, h = ([_read(ref, *place(t)) for t in tiles] for ref in state)
        c, h = _cell(layer, tiles, c, h, x, how.precision)
        _wait(how)
        for tile, c_tile, h_tile in zip(tiles, c, h, strict=True):
            index, mask = place(tile)
            _write(new_state.c, index, mask, c_tile)
            _write(new_state.h, index, mask, h_tile)
        x = list(zip(tiles, h, strict=True))
    # The read-out has one unit: a sum, no matrix product.
    x_out = weights.output.bias[0]
    for tile, h in x:
        column_ = _read(weights.output.kernel, tile.start + tile.rows(), tile.exists())
        x_out = x_out + jnp.sum(column_[:, None] * h, axis=0)
    _write(update, column, exists, how.move(scalars, x_out, pair))
    # Not sooner: see `_wait`.
    for ref, value in zip(new_moments, seen, strict=True):
        _write(ref, column, exists, value)
