"""The learned optimizer where people train: Flax, Equinox, plain JAX, optax, Orbax."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import l2l_jax

with warnings.catch_warnings(action="ignore"):  # of names that a newer JAX renames
    import equinox as eqx

LEARNED = l2l_jax.load_pretrained("rnnprop")
STEPS = 40

DRAW = np.random.default_rng(0).normal
X = np.float32(DRAW(size=(64, 8)))
LABELS = np.argmax(X @ DRAW(size=(8, 3)), axis=1)
START = np.float32(DRAW(0, 0.1, (8, 3)))


def cross_entropy(logits, labels=LABELS):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def loss_fn(params, x=X, labels=LABELS):
    logits = x @ params["w"]
    if "b" in params:
        logits += params["b"][None]
    return cross_entropy(logits, labels)


def initial_params():
    """A single leaf: each takes as long to compile."""
    return {"w": jnp.asarray(START)}


def train(tx, params, batches=((X, LABELS),), steps=STEPS):
    """Any optimizer on the batches in turn; the parameters, state and losses."""
    traces = []

    @jax.jit
    def step(params, state, x, labels):
        traces.append(1)
        loss, grads = jax.value_and_grad(loss_fn)(params, x, labels)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for t in range(steps):
        params, state, loss = step(params, state, *batches[t % len(batches)])
        losses.append(float(loss))
    assert len(traces) == 1
    return params, state, losses


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


def first_update(tx, grads, params):
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]


def assert_learned(losses, final=0.3):
    assert losses[0] > 1
    assert losses[-1] < final


def test_plain_jax():
    *_, losses = train(LEARNED.transform(), initial_params())
    assert_learned(losses)


def test_a_training_in_one_scan_is_the_same():
    tx, params = LEARNED.transform(), initial_params()

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    _, losses = jax.lax.scan(step, (params, tx.init(params)), length=STEPS)
    *_, expected = train(tx, params)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


def test_flax_linen():
    model, traces, losses = nn.Dense(3), [], []
    state = TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.key(0), X)["params"],
        tx=LEARNED.transform(),
    )

    @jax.jit
    def step(state):
        traces.append(1)
        loss, grads = jax.value_and_grad(
            lambda params: cross_entropy(state.apply_fn({"params": params}, X))
        )(state.params)
        return state.apply_gradients(grads=grads), loss

    for _ in range(STEPS):
        state, loss = step(state)
        losses.append(float(loss))
    assert_learned(losses)
    assert len(traces) == 1
    assert state.step == state.opt_state.count == STEPS
    assert isinstance(state.opt_state, l2l_jax.RNNpropState)


def test_flax_nnx():
    model, traces, losses = nnx.Linear(8, 3, rngs=nnx.Rngs(0)), [], []
    optimizer = nnx.Optimizer(model, LEARNED.transform(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        loss, grads = nnx.value_and_grad(lambda model: cross_entropy(model(X)))(model)
        optimizer.update(model, grads)
        return loss

    for _ in range(STEPS):
        losses.append(float(step(model, optimizer)))
    assert_learned(losses)
    assert len(traces) == 1


def test_equinox():
    model, traces, losses = eqx.nn.Linear(8, 3, key=jax.random.key(0)), [], []
    tx = LEARNED.transform()
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        traces.append(1)
        loss, grads = eqx.filter_value_and_grad(
            lambda model: cross_entropy(jax.vmap(model)(X))
        )(model)
        updates, state = tx.update(grads, state)
        return eqx.apply_updates(model, updates), state, loss

    for _ in range(STEPS):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert_learned(losses)
    assert len(traces) == 1
    assert isinstance(model, eqx.nn.Linear)


def test_multi_steps():
    """Two half batches accumulated are the whole batch."""
    tx, params = LEARNED.transform(), initial_params()
    halves = [(X[:32], LABELS[:32]), (X[32:], LABELS[32:])]
    found, state, _ = train(optax.MultiSteps(tx, 2), params, halves, steps=10)
    expected, inner, _ = train(tx, params, steps=5)
    assert_close(found, expected)
    assert state.inner_opt_state.count == inner.count == 5


def test_inject_hyperparams():
    """The step size α, by which no coordinate moves further, follows a schedule."""
    schedule = optax.cosine_decay_schedule(0.1, STEPS)
    tx = optax.inject_hyperparams(l2l_jax.rnnprop_transform)(
        params=LEARNED.params, step_size=schedule
    )
    params = initial_params()
    *_, state, losses = train(tx, params)
    assert_learned(losses, 0.5)
    np.testing.assert_allclose(state.hyperparams["step_size"], schedule(STEPS - 1))
    updates, _ = jax.jit(tx.update)(params, state)
    assert all(jnp.all(u == 0) for u in jax.tree.leaves(updates))  # the end: α is 0


def test_partition():
    """The learned rule for matrices, Adam for what is left."""
    tx = optax.partition(
        {"matrix": LEARNED.transform(), "rest": optax.adam(0.1)},
        lambda params: jax.tree.map(
            lambda p: "matrix" if p.ndim == 2 else "rest", params
        ),
    )
    params = initial_params() | {"b": jnp.zeros(3)}
    *_, losses = train(tx, params)
    assert_learned(losses)
    grads = jax.grad(loss_fn)(params)
    updates = first_update(tx, grads, params)
    for name, alone in {"w": LEARNED.transform(), "b": optax.adam(0.1)}.items():
        assert_close(updates[name], first_update(alone, grads[name], params[name]))


def test_clipping_before_and_weight_decay_after():
    """Updates are added, so what shall shrink the parameters is negative."""
    learned = LEARNED.transform()
    tx = optax.chain(
        optax.clip_by_global_norm(0.1), learned, optax.add_decayed_weights(-0.01)
    )
    params = initial_params()
    *_, losses = train(tx, params)
    assert_learned(losses)
    grads = jax.grad(loss_fn)(params)
    norm = optax.tree.norm(grads)
    assert norm > 0.1
    clipped = jax.tree.map(lambda g: g * 0.1 / norm, grads)
    expected = jax.tree.map(
        lambda u, p: u - 0.01 * p, first_update(learned, clipped, params), params
    )
    assert_close(first_update(tx, grads, params), expected)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_orbax(tmp_path, dtype):
    """What is restored is of the same types and goes on in the same bits."""
    tx = LEARNED.transform(state_dtype=dtype)
    params, update = initial_params(), jax.jit(tx.update)
    _, state = update(params, tx.init(params))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", state)
    assert isinstance(restored, l2l_jax.RNNpropState)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for found, expected in [
        (restored, state),
        (update(params, restored), update(params, state)),
    ]:
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_shapes_without_memory():
    """How much state a model of 10^10 parameters would need."""
    tx = LEARNED.transform()
    params = jax.ShapeDtypeStruct((100_000, 100_000), jnp.float32)
    state = jax.eval_shape(tx.init, params)
    found = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert found == 4 + 328 * params.size
    small = {"w": jnp.ones((3, 2)), "b": jnp.ones(2, jnp.bfloat16)}
    real, shapes = tx.init(small), jax.eval_shape(tx.init, small)
    assert jax.tree.structure(shapes) == jax.tree.structure(real)
    for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(real), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
