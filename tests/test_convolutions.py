"""Convolutions, the papers' CNNs, and minibatches that go through them in pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_images, random_start

from l2l_jax.tasks import CNN, MLP, classification_task
from l2l_jax.tasks.conv import canonical_convolution, shifted_convolution

KEY = jax.random.key(0)


@pytest.mark.parametrize("convolution", ["shifted", "canonical"])
def test_convolutions_are_those_of_xla(convolution):
    """Pooling divides the height and leaves a column."""
    ours, xla = (
        classification_task(
            CNN("c-c-p-f", channels=(3,), convolution=convolution),
            random_images((8, 7, 2)),
            batch_size=4,
        )
        for convolution in (convolution, "xla")
    )
    params = random_start(ours)
    found, expected = (
        jax.jit(jax.value_and_grad(task.loss))(params, task.data, (), jnp.arange(4))
        for task in (ours, xla)
    )
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_canonical_convolutions_have_derivatives_again_and_map():
    x = jax.random.normal(KEY, (2, 3, 5, 4, 2))
    kernels = jax.random.normal(jax.random.key(1), (2, 3, 3, 2, 3))

    def results(convolve):
        def f(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel, (1, 1), "SAME")))

        def second(x, kernel):
            gradients = jax.grad(f, (0, 1))(x, kernel)
            return sum(jnp.sum(jnp.sin(g)) for g in gradients)

        both = jax.vmap(jax.grad(second, (0, 1)))(x, kernels)
        shared = jax.vmap(jax.grad(f, 1), (None, 0))(x[0], kernels)
        return jax.tree.leaves((both, shared))

    found, expected = map(results, (canonical_convolution, shifted_convolution))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_a_minibatch_by_pieces_is_the_whole_one():
    """Loss, slope and second derivatives, also for several networks side by side."""
    params = None
    network = MLP(width=5)
    indices = jnp.array([3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 9, 7])
    seen = []
    for size in (12, 3):
        task = classification_task(
            network, random_images(), batch_size=12, microbatch_size=size
        )
        if params is None:
            params = jax.vmap(task.init, (0, None))(jax.random.split(KEY, 2), ())

        def loss(params, task=task):
            return 3 * task.loss(params, task.data, (), indices)

        def steepness(params, loss=loss):
            return optax.tree.norm(jax.grad(loss)(params), squared=True)

        one = jax.tree.map(lambda x: x[0], params)
        functions = (loss, jax.value_and_grad(loss), jax.value_and_grad(steepness))
        seen.append([jax.jit(f)(one) for f in functions])
        seen[-1].append(jax.jit(jax.vmap(functions[1]))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, 1e-4, 1e-6), *seen)


@pytest.mark.parametrize(
    ("module", "side", "batch_size", "pieces"),
    [
        (CNN("c-c-p-f"), 28, 128, 8),
        (CNN("c-p-f", channels=(64,)), 28, 128, 32),
        (CNN("c-c-p-f"), 28, 100, 5),
        (CNN("c-c-p-f"), 28, 127, 1),  # nothing divides it
        (CNN("c-c-p-f"), 8, 128, 1),  # small
        (CNN("c-p-f", channels=(128,)), 28, 128, 1),  # not even four fit
        (MLP(), 28, 128, 1),
    ],
)
def test_convolutions_take_what_a_cache_holds(module, side, batch_size, pieces):
    task = classification_task(
        module, random_images((side, side, 1), 128), batch_size=batch_size
    )
    params = jax.eval_shape(task.init, KEY, ())
    traced = jax.make_jaxpr(jax.grad(task.loss))(
        params, task.data, (), jnp.arange(batch_size)
    )
    loops = [e.params["length"] for e in traced.eqns if e.primitive.name == "scan"]
    if jax.default_backend() == "cpu":
        assert loops == [pieces] * (pieces > 1)


def test_sizes_of_the_papers_cnns():
    def shapes(layers):
        tree = jax.eval_shape(CNN(layers).init, KEY, jnp.zeros((1, 28, 28, 1)))
        return jax.tree.map(lambda x: x.shape, tree["params"])

    small, large = shapes("c-c-p-f"), shapes("c-c-p-c-c-p-f-f")
    assert small["Conv_1"]["kernel"] == (3, 3, 16, 16)
    assert small["Dense_0"]["kernel"] == (14 * 14 * 16, 10)
    assert large["Conv_2"]["kernel"] == (3, 3, 16, 32)
    assert large["Dense_0"]["kernel"] == (7 * 7 * 32, 64)
    assert large["Dense_1"]["kernel"] == (64, 10)


def test_another_convolution_is_refused():
    x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
    for convolve in (shifted_convolution, canonical_convolution):
        with pytest.raises(ValueError, match=r"\(2, 2\)"):
            convolve(x, kernel, (2, 2), "SAME")
