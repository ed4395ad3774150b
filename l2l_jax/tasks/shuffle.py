"""Minibatches of shuffled epochs, at any step without those before it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.checks import check_number, check_size

# A pair is a round for each half. Large sets are shuffled well by fewer; a set of five
# needs this many until each of its 120 permutations has its probability within 0.2%.
_ROUND_PAIRS = 16


def minibatch_indices(
    key: jax.Array,
    num_examples: int,
    batch_size: int,
    start: jax.typing.ArrayLike,
    length: int,
) -> jax.Array:
    """Returns the indices of the minibatches of consecutive steps of a run.

    An epoch has B = num_examples // batch_size minibatches, a last partial one being
    dropped; step t takes minibatch t % B of epoch t // B. Each epoch has a random
    permutation of range(num_examples) of its own, drawn from
    `jax.random.fold_in(key, epoch)`. The indices of step t depend on `key` and t alone,
    however a run is cut into calls.

    The permutation is evaluated only where it is asked for: it is a Feistel network on
    the next power of two, walked along its cycles until back in range(num_examples).
    (`jax.random.permutation` of 55,000 takes about 100 times as long as 20 minibatches
    of 128 here.) Where num_examples is a power of two above 8, only even permutations
    occur, half of all.

    Args:
      key: a key of `jax.random`.
      num_examples: size of the data set, 1 to 2**31 - 1; static.
      batch_size: examples in a minibatch, 1 to num_examples; static.
      start: the first step, an integer scalar from 0, traced or not.
      length: number of steps, at least 1; static.

    Returns:
      int32 indices (length, batch_size), in range(num_examples).

    Raises:
      ValueError: a size is not a positive int, batch_size is above num_examples, or
        `start` is negative.
      TypeError: `start` is not an integer scalar.

    Example:
      >>> indices = minibatch_indices(jax.random.key(0), 6, 2, start=3, length=3)
      >>> sorted(indices.ravel().tolist())  # steps 3, 4 and 5: the second epoch
      [0, 1, 2, 3, 4, 5]

    References:
      Black, Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002, section 3.
    """
    check_size("num_examples", num_examples)
    check_size("batch_size", batch_size)
    check_size("length", length)
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most num_examples, {num_examples}, got {batch_size}"
        )
    check_number("start", start, 0)
    if jnp.shape(start) or not jnp.issubdtype(jnp.result_type(start), jnp.integer):
        raise TypeError(f"start must be an integer scalar, got {start!r}")
    return _minibatch_indices(key, num_examples, batch_size, start, length)


# Compiled, since a loop called outside of jit is compiled anew each time.
@functools.partial(jax.jit, static_argnums=(1, 2, 4))
def _minibatch_indices(
    key: jax.Array,
    num_examples: int,
    batch_size: int,
    start: jax.typing.ArrayLike,
    length: int,
) -> jax.Array:
    batches_per_epoch = num_examples // batch_size
    steps = jnp.asarray(start, jnp.int32) + jnp.arange(length, dtype=jnp.int32)
    epochs, batches = jnp.divmod(steps, batches_per_epoch)
    positions = batches[:, None] * batch_size + jnp.arange(batch_size)[None, :]
    epoch_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, epochs)
    shuffle = jax.vmap(_shuffled, in_axes=(0, 0, None))
    return shuffle(epoch_keys, positions, num_examples)


def _shuffled(key: jax.Array, positions: jax.Array, num_examples: int) -> jax.Array:
    """The entries at `positions` of a random permutation of range(num_examples)."""
    num_bits = (num_examples - 1).bit_length()
    low_bits = num_bits // 2
    low_mask = np.uint32(2**low_bits - 1)
    high_mask = np.uint32(2 ** (num_bits - low_bits) - 1)
    round_keys = jax.random.bits(key, (_ROUND_PAIRS, 2), jnp.uint32)

    def round_pair(halves, keys):
        high, low = halves
        high ^= _hash(low ^ keys[0]) & high_mask
        low ^= _hash(high ^ keys[1]) & low_mask
        return (high, low), None

    def walk(state):
        x, arrived = state
        halves = (x >> low_bits, x & low_mask)
        (high, low), _ = jax.lax.scan(round_pair, halves, round_keys)
        x = jnp.where(arrived, x, high << low_bits | low)
        return x, x < num_examples

    # Every walk ends: its cycle leads back to its start, which is in range.
    start = positions.astype(jnp.uint32), jnp.zeros(positions.shape, bool)
    x, _ = jax.lax.while_loop(lambda state: ~jnp.all(state[1]), walk, start)
    return x.astype(jnp.int32)


def _hash(x: jax.Array) -> jax.Array:
    """Mixes 32 bits, each of them into each (the constants of lowbias32)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
