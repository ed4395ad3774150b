"""Convolutional networks like VGG, written as strings such as "c-c-p-f"."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from l2l_jax.checks import check_choice
from l2l_jax.compiler import apart

CONVOLUTIONS = ("auto", "xla", "shifted", "canonical")
FEW = 8  # channels; with fewer, nine copies are small and "shifted" is the fastest


class CNN(nn.Module):
    """Convolutions (c), max-poolings (p) and fully-connected layers (f) in a row.

    Convolutions are 3x3, stride 1, SAME, ReLU; poolings 2x2, stride 2. All but the last
    fully-connected layer have ReLU.

    Attributes:
      layers: letters c, p and f joined by dashes; c and p first, f last, one f at
        least.
      channels: of the convolutions before the first pooling, before the second, …
      hidden: units of the fully-connected layers but the last.
      num_classes: number of logits.
      convolution: "xla" for XLA's own convolution and pooling. The same numbers, and
        inside `lax.scan` on a CPU many times faster, are "shifted" for nine shifted
        copies and one matrix product, "canonical" for XLA's convolution with
        derivatives written in the one form for which it has a fast program (no forward
        differentiation), both with pooling as a reshape. "auto" is one of these two on
        the CPU, "shifted" for few channels, and "xla" elsewhere.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x, key = jnp.zeros((1, 28, 28, 1)), jax.random.key(0)
      >>> params = jax.eval_shape(CNN("c-c-p-f").init, key, x)
      >>> params["params"]["Dense_0"]["kernel"].shape
      (3136, 10)

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, section 5.4.1.
    """

    layers: str = "c-c-p-f"
    channels: tuple[int, ...] = (16, 32)
    hidden: int = 64
    num_classes: int = 10
    convolution: str = "auto"

    def __post_init__(self):
        """Refuses an architecture that cannot be built when the module is made."""
        check_choice("convolution", self.convolution, CONVOLUTIONS)
        letters = self.layers.split("-")
        features = [x for x in letters if x in ("c", "p")]
        dense = letters[len(features) :]
        if letters[: len(features)] != features or set(dense) != {"f"}:
            raise ValueError(
                "layers must be letters c and p, then at least one f, joined by dashes,"
                f" got {self.layers!r}"
            )
        blocks = "".join(features).rstrip("p").count("p") + 1 if "c" in features else 0
        if len(self.channels) < blocks:
            raise ValueError(
                f"channels must name {blocks} numbers for {self.layers!r}, got"
                f" {self.channels}"
            )
        super().__post_init__()

    def widest(self, height: int, width: int) -> int:
        """The most values that a convolution makes of an image of that size.

        Example:
          >>> CNN("c-c-p-c-f").widest(28, 28)  # 16 channels, then 32 of a fourth of it
          12544
        """
        sizes, block = [height * width], 0
        for letter in self.layers.split("-"):
            if letter == "c":
                sizes.append(height * width * self.channels[block])
            elif letter == "p":
                height, width, block = height // 2, width // 2, block + 1
        return max(sizes)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, num_classes) of x (B, H, W, C); refuses what poolings use up."""
        chosen = self.convolution
        if chosen == "auto":
            chosen = "fast" if jax.default_backend() == "cpu" else "xla"
        operations = {
            "fast": _fast_convolution,
            "shifted": shifted_convolution,
            "canonical": canonical_convolution,
        }
        operation: dict[str, Any] = {}
        if chosen != "xla":
            operation = {"conv_general_dilated": operations[chosen]}
        pool = _xla_max_pool if chosen == "xla" else reshaped_max_pool
        halvings = self.layers.count("p")
        if min(x.shape[1:3]) < 2**halvings:
            raise ValueError(
                f"images must have at least {2**halvings}x{2**halvings} pixels for"
                f" {self.layers!r}, which halves them {halvings} times, got"
                f" {x.shape[1:3]}"
            )
        *letters, _ = self.layers.split("-")
        block = 0
        for letter in letters:
            if letter == "c":
                x = nn.relu(nn.Conv(self.channels[block], (3, 3), **operation)(x))
            elif letter == "p":
                x, block = pool(x), block + 1
            else:
                x = nn.relu(nn.Dense(self.hidden)(_flat(x)))
        return nn.Dense(self.num_classes)(_flat(x))


def shifted_convolution(
    inputs: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """A 3x3 SAME convolution as nine shifted copies and one matrix product.

    XLA's CPU backend leaves its fast convolution inside loops; a matrix product stays
    fast. In the place of `jax.lax.conv_general_dilated` in `flax.linen.Conv`.

    Args:
      inputs: (B, H, W, C).
      kernel: (3, 3, C, O).
      strides: (1, 1).
      padding: "SAME".
      **options: those of `conv_general_dilated`; only `precision` counts.

    Returns:
      (B, H, W, O).

    Raises:
      ValueError: another convolution is asked for.

    Example:
      >>> import jax.numpy as jnp
      >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
      >>> y = shifted_convolution(x, kernel, (1, 1), "SAME")
      >>> y.shape, float(y[0, 1, 1, 0]), float(y[0, 0, 0, 0])
      ((1, 4, 4, 5), 18.0, 8.0)
    """
    _check_same(kernel, strides, padding)
    height, width = inputs.shape[1:3]
    padded = jnp.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # First sidewards, then up and down: pieces three times as long to be copied.
    three = jnp.concatenate([padded[:, :, j : j + width] for j in range(3)], axis=-1)
    nine = jnp.concatenate([three[:, i : i + height] for i in range(3)], axis=-1)
    return jnp.matmul(
        nine,
        kernel.reshape(-1, kernel.shape[-1]),
        precision=options.get("precision"),
    )


def canonical_convolution(
    inputs: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """A 3x3 SAME convolution whose derivatives stay fast in loops on a CPU.

    Images first, channels last is the one order of axes for which XLA's CPU backend has
    a fast convolution. Outside loops it brings others into that order, inside it does
    not, and there the derivatives, whose order is another, are twenty times slower. So
    they are written in that order here. Under `jax.vmap` one follows the other, because
    a convolution in groups is slow, too. Arguments, result and errors are those of
    `shifted_convolution`.

    Example:
      >>> import jax.numpy as jnp
      >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
      >>> y = canonical_convolution(x, kernel, (1, 1), "SAME")
      >>> y.shape, float(y[0, 1, 1, 0]), float(y[0, 0, 0, 0])
      ((1, 4, 4, 5), 18.0, 8.0)
    """
    _check_same(kernel, strides, padding)
    return _convolution(inputs, kernel, (1, 1), options.get("precision"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(
    x: jax.Array, kernel: jax.Array, margins: tuple[int, int], precision: Any
) -> jax.Array:
    @jax.custom_batching.sequential_vmap
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            [(margin, margin) for margin in margins],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision,
        )

    return convolve(x, kernel)


def _convolution_forward(x, kernel, margins, precision):
    return _convolution(x, kernel, margins, precision), (x, kernel)


def _convolution_backward(margins, precision, saved, slope):
    # Both are convolutions of the same form, so they have derivatives again.
    x, kernel = saved
    mirrored = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    rest = tuple(size - 1 - m for size, m in zip(kernel.shape, margins, strict=False))
    of_x = _convolution(slope, mirrored, rest, precision)
    # Images are what is summed over, channels take their place.
    pictures, filters = _moved(x, (3, 1, 2, 0)), _moved(slope, (1, 2, 0, 3))
    of_kernel = _convolution(pictures, filters, margins, precision)
    return of_x, of_kernel.transpose(1, 2, 0, 3)


_convolution.defvjp(_convolution_forward, _convolution_backward)


# By the CPU's own program for it. XLA fuses it with what made the array, which is made
# again, element by element in the new order: three times slower.
_moved = apart(jnp.transpose, static_argnums=(1,))


def _fast_convolution(
    inputs: jax.Array, kernel: jax.Array, *args: Any, **options: Any
) -> jax.Array:
    """Of the two the one that is faster on a CPU."""
    # XLA's fast convolution knows float32 and float16 only.
    few = kernel.shape[2] < FEW or kernel.dtype == jnp.float64
    convolve = shifted_convolution if few else canonical_convolution
    return convolve(inputs, kernel, *args, **options)


def _check_same(kernel: jax.Array, strides: Any, padding: Any) -> None:
    if kernel.shape[:2] != (3, 3) or tuple(strides) != (1, 1) or padding != "SAME":
        raise ValueError(
            "only 3x3 convolutions with strides (1, 1) and padding 'SAME' can be done"
            f" so, got {kernel.shape[:2]}, {strides} and {padding!r}"
        )


def reshaped_max_pool(x: jax.Array) -> jax.Array:
    """2x2 max-pooling with stride 2 of (B, H, W, C), an odd last row or column cut."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    # By twos, as a derivative of `max` over axes counts how many are largest.
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def _xla_max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)
