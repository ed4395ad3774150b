"""optax's own tests on the learned optimizers.

Where they look at where an optimizer arrives, the weights are those of `handset`, with
which it is Adam, or descent by the sign, or gradient descent; the others have the
weights that ship with the package.
"""

import dataclasses
import functools
import importlib
import unittest

import handset
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from handset import adam, sgd
from upstream import KEPT, Suite, load

from l2l_jax import dm_transform, load_pretrained, rnnprop_transform

TRANSFORMS = {"rnnprop": rnnprop_transform, "dm": dm_transform}
SHIPPED = {name: load_pretrained(name).params for name in TRANSFORMS}
CONVERGING = {
    "rnnprop": {"step_size": 1e-3 / handset.SQUASH},
    "dm": {"step_size": 5e-4, "p": 1.0},
}
# It is compared as text, by which 0.10 would be older than 0.7.2.
JAX_VERSION = jax.__version__ if jax.__version_info__ < (0, 10) else "0.9"


def rows(rule, **columns):
    return [{"opt_name": rule, "opt_kwargs": CONVERGING[rule], **columns}]


def upwards(rule):
    """Like `scale_by_adam`, which does not turn the sign."""
    return optax.chain(adam(rule, 1.0), optax.scale(-1.0))


def clipped_descent(step_size):
    return optax.chain(optax.scale(np.e), optax.clip(1.0), optax.scale(-step_size))


def suites(rule):
    by_name = {rule: functools.partial(TRANSFORMS[rule], handset.PHI[rule])}
    factories = {
        "sgd": lambda rate, momentum=0.0: sgd(rule, rate),
        "adam": functools.partial(adam, rule),
    }
    scale_by_adam = functools.partial(upwards, rule)
    plain = rows(rule, wrapper_name=None, wrapper_kwargs=None)
    yield Suite(
        "contrib/_common_test.py",
        {"ContribTest"},
        tables={
            "_MAIN_OPTIMIZERS_UNDER_TEST": plain,
            "_BASE_OPTIMIZERS": rows(rule),
            "_OTHER_OPTIMIZERS_UNDER_TEST": plain,
            "_ALL_OPTIMIZERS_UNDER_TEST": plain,
        },
        extended={"contrib": by_name},
    )
    yield Suite(
        "_src/sharding_test.py",
        {"ShardingTest"},
        tables={"OPTIMIZERS": {rule: TRANSFORMS[rule](SHIPPED[rule])}},
        extended={"jax": {"__version__": JAX_VERSION}},
    )
    yield Suite(
        "_src/float64_test.py",
        {"Float64Test"},
        tables={"ALL_MODULES": [(rule, TRANSFORMS[rule], {"params": SHIPPED[rule]})]},
    )
    yield Suite(
        "transforms/_masking_test.py",
        {"MaskedTest"},
        functions={"alias": {"sgd": factories["sgd"]}},
        # It looks into the state of SGD; the one below looks into ours.
        without=frozenset({"test_masked_state_structure"}),
    )
    yield Suite(
        "transforms/_combining_test.py",
        {"CombiningTest", "ExtraArgsTest", "PartitionTest"},
        functions={
            "alias": factories,
            "transform": {"scale_by_adam": scale_by_adam, "scale": KEPT, "ema": KEPT},
        },
        refused={"test_extra_args": (TypeError, r"leaf \['a'\] is int32")},
    )
    yield Suite(
        "transforms/_accumulation_test.py",
        {"AccumulationTest"},
        tables={"OPTIMIZERS_TO_TEST": rows(rule)},
        functions={
            "alias": {"sgd": factories["sgd"]},
            "transform": {
                "scale_by_adam": scale_by_adam,
                "add_decayed_weights": KEPT,
                "scale": KEPT,
            },
        },
        extended={"alias": by_name},
        newer=frozenset({"OPTIMIZERS_TO_TEST"}),
        eager=frozenset({"test_multi_steps_every_k_schedule"}),
        soak=frozenset({"test_multi_steps_mixed_precision"}),
    )
    yield Suite(
        "transforms/_conditionality_test.py",
        {"ConditionalityTest"},
        functions={
            "alias": {"sgd": factories["sgd"]},
            "transform": {"scale": KEPT},
        },
        without=frozenset({"test_apply_if_finite_stateful"}),  # ours are all stateful
        eager=frozenset({"test_apply_if_finite_sgd"}),
    )


for _rule in TRANSFORMS:
    for _suite in suites(_rule):
        _found = load(_suite, _rule)
        if _rule == "dm":  # it takes a minute for what RNNprop has shown
            _found = {name: pytest.mark.soak(cls) for name, cls in _found.items()}
        globals().update(_found)


@pytest.mark.parametrize(
    ("ours", "theirs", "rtol"),
    [
        (adam("rnnprop", 0.1), optax.adam(0.1, b1=0.95, b2=0.95), 1e-5),
        (adam("dm", 0.1), clipped_descent(0.1), 1e-6),
        (sgd("rnnprop", 1.0), optax.sgd(1.0), 0),
        (sgd("dm", 1.0), optax.sgd(1.0), 0),
    ],
    ids=["adam", "clipped", "sgd by rnnprop", "sgd by dm"],
)
def test_what_the_weights_set_by_hand_are(ours, theirs, rtol):
    g = jnp.array([1.0, -0.3, 0.02, 0.5])
    states = [tx.init(g) for tx in (ours, theirs)]
    for t in range(1, 4):
        found, states[0] = jax.jit(ours.update)(g / t, states[0])
        expected, states[1] = theirs.update(g / t, states[1])
        np.testing.assert_allclose(found, expected, rtol)


@pytest.mark.parametrize("rule", TRANSFORMS)
def test_masked_state_structure(rule):
    """In the place of optax's own, which looks for the trace of SGD."""
    params = {
        "a": [jnp.ones(1), (jnp.ones(2), jnp.ones(3))],
        "b": {"c": jnp.ones(4), "d": jnp.ones(5)},
    }
    mask = {"a": [True, (True, False)], "b": False}
    tx = optax.masked(TRANSFORMS[rule](handset.PHI[rule]), mask)
    hidden = jax.jit(tx.init)(params).inner_state.lstm[0].h
    none = optax.MaskedNode()
    expected = {"a": [jnp.ones(1), (jnp.ones(2), none)], "b": none}
    assert jax.tree.structure(hidden) == jax.tree.structure(expected)


@pytest.mark.parametrize(
    ("path", "change", "text"),
    [
        ("contrib/", {"tables": {}}, "'_BASE_OPTIMIZERS'"),
        ("_src/float64", {"tables": {"ALL_MODULES": [("dm",)]}}, "rows of ALL_MODULES"),
        ("transforms/_masking", {"functions": {"alias": {}}}, "alias.sgd"),
        ("transforms/_masking", {"classes": {"Masked"}}, "'MaskedTest'"),
        ("transforms/_masking", {"without": {"test_gone"}}, "no test test_gone"),
    ],
)
def test_what_changes_in_optax_is_noticed(path, change, text):
    (suite,) = (suite for suite in suites("dm") if suite.path.startswith(path))
    with pytest.raises(AssertionError, match=text):
        load(dataclasses.replace(suite, **change), "changed")


def test_a_missing_suite_is_skipped_by_name():
    (missing,) = load(Suite("_src/gone_test.py", set()), "dm").values()
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(missing).run(result)
    ((_, reason),) = result.skipped
    assert reason == f"optax {optax.__version__} does not ship _src/gone_test.py"


@pytest.mark.soak
@pytest.mark.parametrize("rule", TRANSFORMS)
@pytest.mark.parametrize("target", ["parabola", "rosenbrock", "matrix_parabola"])
def test_where_the_shipped_weights_arrive(rule, target, capsys):
    """Reported: they were learned on 100 steps, these are optax's 30,000."""
    module = importlib.import_module("optax.contrib._common_test")
    start, end, objective = getattr(module, f"_setup_{target}")(jnp.float32)
    tx = TRANSFORMS[rule](SHIPPED[rule])

    def step(carry, _):
        theta, state = carry
        updates, state = tx.update(jax.grad(objective)(theta), state)
        theta = optax.apply_updates(theta, updates)
        return (theta, state), jnp.max(jnp.abs(theta - end))

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=30_000)[1])
    away = run((start, tx.init(start)))
    assert jnp.isfinite(away).all()
    with capsys.disabled():
        found = {n: f"{away[n - 1]:.3g}" for n in (100, 1_000, 10_000, 30_000)}
        print(f"\n{rule} on {target}: steps and distance of the minimum {found}")
