"""A network that learns to classify images, as an optimizee."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import InvalidRngError

from l2l_jax.checks import check_number, check_size, check_type
from l2l_jax.tasks.conv import CNN
from l2l_jax.tasks.data import Dataset
from l2l_jax.tasks.shuffle import minibatch_indices
from l2l_jax.types import PyTree, Task


def classification_task(
    module: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 128,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    init_std: float | None = 0.1,
    microbatch_size: int | None = None,
) -> Task:
    """Mean softmax cross-entropy of a Flax module on minibatches of a data set.

    ::

        f_d(θ) = -1/B·Σ_{(x, y) in d} log softmax(module_θ(x))_y

    The minibatches d are those of shuffled epochs, a last partial one dropped.

    Args:
      module: a `flax.linen` module with only "params", from images (B, H, W, C) to
        logits (B, classes).
      dataset: uint8 images (N, H, W, C) and labels (N,). They go to the device here,
        once, and stay uint8 there.
      batch_size: B, from 1 to N.
      pixel_range: what the bytes 0 and 255 become. The papers: (0, 1) for MNIST,
        (-0.5, 0.5) for CIFAR-10.
      init_std: deviation of the N(0, init_std²) from which every initial parameter is
        drawn, biases too, as in the RNNprop paper; None: the module's own initializers.
      microbatch_size: images of which loss and gradient are computed at once, a divisor
        of B; the numbers are the same but for rounding. None: B, but on a CPU as many
        as its cache holds of a `CNN`, which is half again to twice as fast. Fewer than
        B leave no forward differentiation.

    Returns:
      The task; its params are the module's "params", a minibatch is B indices.

    Raises:
      TypeError: the module or the data are not of their types.
      ValueError: an argument is out of range, the data do not fit together, or the
        module is not as above or does not fit the data.

    Example:
      >>> import flax.linen as nn, jax, numpy as np
      >>> from l2l_jax.tasks import Dataset, MLP
      >>> images = np.zeros((256, 8, 8, 1), np.uint8)
      >>> task = classification_task(MLP(), Dataset(images, np.zeros(256, np.int32)))
      >>> task.batches(jax.random.key(0), task.data, (), 0, 5).shape
      (5, 128)

    References:
      Lv, Jiang, Li, `Learning Gradient Descent <https://arxiv.org/abs/1703.03633>`_,
      2017, section 5.
    """
    check_size("batch_size", batch_size)
    _check(module, dataset)
    num_examples, *shape = dataset.images.shape
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most the number of images, {num_examples}, got"
            f" {batch_size}"
        )
    pixels = _scaled_to(pixel_range)
    if init_std is not None:
        check_number("init_std", init_std, 0)
    if microbatch_size is None:
        microbatch_size = _fitting(module, batch_size, shape)
    check_size("microbatch_size", microbatch_size)
    if batch_size % microbatch_size:
        raise ValueError(
            f"microbatch_size must divide batch_size, {batch_size}, got"
            f" {microbatch_size}"
        )

    def init(key: jax.Array, instance: Any) -> Any:
        del instance
        example = jnp.zeros((1, *shape))
        if init_std is None:
            return module.init(key, example)["params"]
        shapes = jax.eval_shape(module.init, key, example)["params"]
        return optax.tree.random_like(
            key, shapes, lambda k, s, dtype: init_std * jax.random.normal(k, s, dtype)
        )

    def batches(key, data, instance, start, length):
        del data, instance
        return minibatch_indices(key, num_examples, batch_size, start, length)

    def mean_loss(params, data, indices):
        logits = module.apply({"params": params}, pixels(data.images[indices]))
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, data.labels[indices]
        ).mean()

    if microbatch_size < batch_size:
        mean_loss = _by_pieces(mean_loss, microbatch_size)

    def loss(params, data, instance, indices):
        del instance
        return mean_loss(params, data, indices)

    return Task(
        data=jax.tree.map(jnp.asarray, dataset),
        sample=lambda key: (),
        init=init,
        batches=batches,
        loss=loss,
    )


def accuracy(
    module: nn.Module,
    dataset: Dataset,
    *,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    batch_size: int = 500,
) -> Callable[[PyTree], jax.Array]:
    """Prepares the fraction of images that a network classifies rightly.

    Args:
      module: as in `classification_task`.
      dataset: usually the split "test".
      pixel_range: as in the task on which the network was trained.
      batch_size: images at a time; bounds the memory, does not change the result.

    Returns:
      A function from the params of `classification_task` to a float in [0, 1].

    Raises:
      TypeError: as of `classification_task`.
      ValueError: likewise.

    Example:
      >>> import jax, numpy as np
      >>> from l2l_jax.tasks import Dataset, MLP, classification_task
      >>> labels = np.array([3] * 7 + [1] * 3, np.int32)
      >>> data = Dataset(np.zeros((10, 8, 8, 1), np.uint8), labels)
      >>> params = classification_task(MLP(), data, batch_size=10, init_std=0.0).init(
      ...     jax.random.key(0), ()
      ... )
      >>> params["Dense_1"]["bias"] = params["Dense_1"]["bias"].at[3].set(1.0)
      >>> round(float(accuracy(MLP(), data)(params)), 3)  # it always answers 3
      0.7
    """
    check_size("batch_size", batch_size)
    _check(module, dataset)
    pixels = _scaled_to(pixel_range)
    dataset = jax.tree.map(jnp.asarray, dataset)

    @jax.jit
    def fraction(params, dataset):
        def is_right(image, label):
            logits = module.apply({"params": params}, pixels(image[None]))
            return jnp.argmax(logits[0]) == label

        # Takes care of a last, smaller batch.
        right = jax.lax.map(
            lambda example: is_right(*example), tuple(dataset), batch_size=batch_size
        )
        return jnp.mean(right)

    return lambda params: fraction(params, dataset)


# Bytes of an image's widest layer times images: with all that is made of it on the way
# back, it is what a core's cache holds.
CACHED = 2**20
FEWEST = 4  # images, for which a turn of a loop pays


def _fitting(module: nn.Module, batch_size: int, shape: Sequence[int]) -> int:
    """How many images to take at once, a divisor of the minibatch's size."""
    if not isinstance(module, CNN) or jax.default_backend() != "cpu":
        return batch_size
    most = CACHED // (4 * module.widest(*shape[:2]))
    if most >= batch_size:
        return batch_size
    divisors = (n for n in range(FEWEST, most + 1) if batch_size % n == 0)
    return max(divisors, default=batch_size)


def _by_pieces(loss: Callable, size: int) -> Callable:
    """The mean of a loss over pieces of a minibatch, each with its derivative at once.

    What a piece needs on its way back is still in the cache then. Derivatives are those
    with respect to the parameters; they have derivatives again.
    """

    def pieces(indices):
        return indices.reshape(-1, size)

    @jax.custom_vjp
    def mean(params, data, indices):
        losses = jax.lax.map(lambda piece: loss(params, data, piece), pieces(indices))
        return losses.mean()

    def forward(params, data, indices):
        def add(total, piece):
            value, slope = jax.value_and_grad(loss)(params, data, piece)
            return jax.tree.map(jnp.add, total, slope), value

        zero = jax.tree.map(jnp.zeros_like, params)
        total, values = jax.lax.scan(add, zero, pieces(indices))
        return values.mean(), jax.tree.map(lambda x: x / len(values), total)

    def backward(slope, cotangent):
        slope = jax.tree.map(lambda x: (cotangent * x).astype(x.dtype), slope)
        return slope, None, None

    mean.defvjp(forward, backward)
    return mean


def _check(module: nn.Module, dataset: Dataset) -> None:
    """Refuses data that are not as documented, and a module that does not fit them.

    The module is tried on shapes alone.
    """
    check_type("module", module, nn.Module, "a flax.linen module instance")
    check_type("dataset", dataset, Dataset, "an l2l_jax.tasks.Dataset")
    images, labels = dataset
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(
            "images must be uint8, from 0 to 255, of shape (N, H, W, C), got"
            f" {images.dtype} of shape {images.shape}"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be {len(images)} integers, one an image, got {labels.dtype}"
            f" of shape {labels.shape}"
        )
    # Two images, because of one a batch axis may be squeezed away.
    some = jax.ShapeDtypeStruct((2, *images.shape[1:]), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(module.init, key, some)
    if set(variables) != {"params"}:
        raise ValueError(
            "module must have the collection 'params' alone, got"
            f" {sorted(variables)} (batch normalization has 'batch_stats')"
        )
    try:
        logits = jax.eval_shape(module.apply, variables, some)
    except InvalidRngError as error:
        raise ValueError(
            "module must need no random numbers but for its initial parameters"
            f" (dropout does, unless it is deterministic): {error}"
        ) from error
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(
            "module must return logits of shape (batch, classes), got"
            f" {shape or type(logits).__name__} for a batch of 2"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < shape[1]:
        raise ValueError(
            f"labels must be from 0 to {shape[1] - 1}, the network having {shape[1]}"
            f" outputs, got {labels.min()} to {labels.max()} (num_classes=…)"
        )


def _scaled_to(pixel_range: tuple[float, float]) -> Callable[[jax.Array], jax.Array]:
    """Bytes to floats: 0 becomes the lower, 255 the upper of the two."""
    low, high = pixel_range
    check_number("pixel_range[0]", low)
    check_number("pixel_range[1]", high, low, low_open=True)
    return lambda images: low + images.astype(jnp.float32) * ((high - low) / 255)
