"""An optimizer for each group: what one group is, and whose gradient is whose."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_weights

from l2l_jax import (
    LearnedOptimizer,
    Task,
    learned_optimizer,
    load_pretrained,
    meta_gradient,
    meta_trainer,
    no_batches,
    partitioned,
    start_episode,
)

PLAIN = learned_optimizer("rnnprop", {"hidden_sizes": (3,), "input_size": 3})
PHI, OTHER = (random_weights("rnnprop", (3,), 3, seed) for seed in (0, 1))
LABELS = {"a": "one", "b": "two"}


def bowl(names="ab", coupling=0.0):
    """A function of vectors of those names; without coupling a sum of theirs."""
    start = {"a": jnp.linspace(-1, 1, 3), "b": jnp.linspace(0.5, 2, 2)}

    def loss(x, data, instance, batch):
        apart = sum(jnp.sum(jnp.cosh(leaf - 0.3)) for leaf in x.values())
        return apart + coupling * jnp.prod(jnp.stack([y[0] for y in x.values()]))

    params = {name: start[name] for name in names}
    return Task((), lambda key: (), lambda key, instance: params, no_batches, loss)


def segment(optimizer, phi, task):
    """Meta-gradient and the episode after four steps."""

    @jax.jit
    def run(phi):
        episode = start_episode(task, optimizer.transform(phi), jax.random.key(0))
        weights = np.array([0.5, 0.0, 1.0, 2.0])
        return meta_gradient(phi, optimizer.transform, task, episode, weights)

    (loss, after), slope = run(phi)
    return loss, after.params, slope


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def plain():
    return segment(PLAIN, PHI, bowl(coupling=0.5))


def test_one_group_is_the_plain_optimizer_and_an_empty_one_learns_nothing(plain):
    optimizer = partitioned({"all": PLAIN, "none": PLAIN}, "all")
    phi = {"all": PHI, "none": OTHER}
    loss, params, slope = segment(optimizer, phi, bowl(coupling=0.5))
    assert_close((loss, params, slope["all"]), plain)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope["none"]))


def test_equal_groups_are_the_plain_optimizer_and_share_its_gradient(plain):
    optimizer = partitioned({"one": PLAIN, "two": PLAIN}, lambda params: LABELS)
    phi = {"one": PHI, "two": PHI}
    loss, params, slope = segment(optimizer, phi, bowl(coupling=0.5))
    both = jax.tree.map(jnp.add, slope["one"], slope["two"])
    assert_close((loss, params, both), plain)


def test_a_group_learns_from_its_own_coordinates():
    optimizer = partitioned({"one": PLAIN, "two": optax.adam(0.1)}, LABELS)
    phi = {"one": PHI}
    _, params, slope = segment(optimizer, phi, bowl())
    _, alone, expected = segment(PLAIN, PHI, bowl("a"))
    assert_close((params["a"], slope), (alone["a"], {"one": expected}))


def test_members_of_several_kinds_learn_together():
    members = {"one": PLAIN, "two": learned_optimizer("dm", {"hidden_sizes": (2,)})}

    def labels(params):
        def label(path, _):
            return "one" if "a" in jax.tree_util.keystr(path) else "two"

        return jax.tree.map_with_path(label, params)

    task, optimizer = bowl(), partitioned(members, labels)
    trainer = meta_trainer(task, optimizer, optax.adam(1e-2), segment_length=3)
    state = before = trainer.init(jax.random.key(0))
    for key in jax.random.split(jax.random.key(1), 2):
        state, metrics = trainer.iterate(state, key, 2)
        assert int(metrics["skipped"]) == 0
    assert set(state.phi) == {"one", "two"}
    for name in state.phi:
        moved = jax.tree.map(jnp.subtract, state.phi[name], before.phi[name])
        assert all(np.any(leaf) for leaf in jax.tree.leaves(moved)), name
    assert trainer.program._cache_size() == 1


def test_groups_start_from_weights_of_their_own():
    toy = LearnedOptimizer(jax.random.normal, optax.sgd)
    phi = partitioned({"one": toy, "two": toy}, LABELS).init(jax.random.key(0))
    assert phi["one"] != phi["two"]


def test_bad_arguments_are_refused_by_name():
    members = {"one": PLAIN}
    with pytest.raises(ValueError, match=r"members must name"):
        partitioned({}, "one")
    with pytest.raises(TypeError, match=r"members\['two'\] must be .*, got Learned"):
        partitioned({**members, "two": load_pretrained("dm")}, "one")
    with pytest.raises(ValueError, match=r"label of \['b'\] must be .*'one'.*'two'"):
        partitioned(members, LABELS)
    for answer in ("two", None):
        optimizer = partitioned(members, lambda params, answer=answer: answer)
        trainer = meta_trainer(bowl(), optimizer, optax.sgd(0.1))
        with pytest.raises(ValueError, match=rf"whole tree\) must be .*{answer}"):
            trainer.iterate(trainer.init(jax.random.key(0)), jax.random.key(1), 1)
