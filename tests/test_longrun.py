"""Longrun: its recursion in NumPy, and what it is without parts of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from networks import random_weights

from l2l_jax import longrun_init, longrun_transform
from l2l_jax.optimizers.longrun import longrun_sizes

# Large enough that the bound of the factor is met.
PHI = jax.tree.map(lambda w: 4 * w, random_weights("longrun"))
NOMINAL = longrun_init()
# An average that weights z_t by t^3 throughout.
STEADY_AVERAGE = {"averaging_pace": 0.0, "averaging_growth": 0.0}
# Steps that know nothing of those at other coordinates, but for their length.
EVEN = {
    "warmup_steps": 0.0,
    "first_length": 1.0,
    "pace": 0.0,
    "largest": None,
    "excess": None,
    **STEADY_AVERAGE,
}
STEPS = np.random.default_rng(0).normal(size=(12, 5)) * [1e-3, 0.1, 1, 10, 0]


def moved(tx, steps):
    """θ after each step, from 0, a function to differentiate."""

    def step(carry, g):
        theta, state = carry
        updates, state = tx.update(g, state, theta)
        theta = optax.apply_updates(theta, updates)
        return (theta, state), theta

    start = jnp.zeros(steps.shape[1:], steps.dtype)
    return jax.lax.scan(step, (start, tx.init(start)), steps)[1]


def walk(tx, steps=STEPS):
    """The same, compiled, as an array."""
    return np.asarray(jax.jit(lambda g: moved(tx, g))(steps))


def cosine(one, other):
    sizes = np.linalg.norm(one) * np.linalg.norm(other)
    return one @ other / sizes if sizes else 0.0


def by_the_book(
    phi,
    steps,
    a=0.03,
    slow=0.99,
    averaging=0.9,
    r=3.0,
    growth=2.0,
    pace=0.2,
    doubt=2.0,
    averaging_pace=0.3,
    warmup=3.0,
    first=0.05,
    largest=1.0,
    excess=2.0,
    b2=0.99,
):
    """The recursion with z and x in it; the other numbers at their defaults."""
    weights, size = np.float64(phi.factor), steps.shape[1]
    m, m_slow, v, z, x = np.zeros((5, size))
    latest = agreement = noise = ascent = recency = 0.0
    length, usual = np.log(first), 1.0
    for t, g in enumerate(steps, 1):
        v = b2 * v + (1 - b2) * g**2
        root = np.sqrt(v / (1 - b2**t)) + 1e-16
        slowed = 1 / (1 + t / 100)
        now = cosine(m / root, g / root)
        agreement += 0.3 * slowed * (now - agreement)
        if t >= 3:
            noise += 0.3 * slowed * ((now - latest) ** 2 / 2 - noise)
        latest = now
        ascent += 0.05 * (cosine(z - x, g / root) - ascent)
        recency = np.clip(recency - averaging_pace * t / (100 + t) * ascent, -1, 1.5)
        short, doubts = length < 0, doubt is not None
        margin = doubt * np.sqrt(noise) if doubts and not short else 0.0
        surplus = max(agreement - 0.05 - margin, 0) + min(agreement + 0.15, 0)
        faster = 10 if short else 6 if doubts and surplus > 0 else 1
        length += faster * pace * slowed * surplus - 0.005 * max(length, 0)
        length = np.clip(length, -6, 0 if doubts and short else 3)
        m = 0.9 * m + 0.1 * g
        m_slow = slow * m_slow + (1 - slow) * g
        g, near, far = g / root, m / (1 - 0.9**t) / root, m_slow / (1 - slow**t) / root
        signals = np.stack(
            [
                np.abs(near),
                np.clip(near * g, -1, 1),
                np.abs(far),
                np.clip(far * g, -1, 1),
            ]
        )
        ages = [1, *(np.tanh(t / np.array([10.0, 100.0, 1000.0])) - 1)]
        signals = signals[: len(weights)]
        log = np.einsum("ic,ij,j->c", signals, weights, ages) / (1 + t / 1e4)
        alpha = a * (1 + t / 1000) ** -0.25 * np.exp(length)
        alpha *= 1 - np.exp(-t / warmup) if warmup else 1
        cut = min(np.sqrt(np.mean(g**2)), largest or np.inf)
        alpha *= min(cut, (excess or np.inf) * usual)
        usual = 0.95 * usual + 0.05 * cut
        u = np.exp(np.clip(log, -3, 3)) * g
        s = -alpha * u / np.sqrt(np.mean(u**2))
        z = z + s
        power = r * (1 + growth * t / (100 + t)) * np.exp(recency)
        c = (power + 1) / (t + power)
        x = (1 - c) * x + c * z
        yield (1 - averaging) * z + averaging * x


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"averaging": 0.5, "averaging_power": 0.5, "b1_slow": 0.8},
        EVEN,
        {"pace": 4.0, "warmup_steps": 2.0, "largest": 0.5},
        {"averaging_pace": 9.0},
        {"averaging_growth": 50.0},
        {"first_length": 0.6},
        {"excess": 0.9},
        {"first_length": 1.0, "doubt": 0.5},
        {"first_length": 0.9, "doubt": 0.0},
        {"first_length": 0.9, "doubt": None},
    ],
)
@pytest.mark.parametrize("signals", [2, 4])
def test_the_recursion(options, signals, x64):
    phi = jax.tree.map(lambda w: np.float64(w[:signals]), PHI)
    assert longrun_sizes(phi) == {"signals": signals}
    found = walk(longrun_transform(phi, **options))
    written = {
        "averaging_power": "r",
        "averaging_growth": "growth",
        "b1_slow": "slow",
        "warmup_steps": "warmup",
        "first_length": "first",
    }
    book = by_the_book(phi, STEPS, **{written.get(k, k): v for k, v in options.items()})
    np.testing.assert_allclose(found, list(book), rtol=1e-12, atol=1e-15)
    assert np.abs(found - walk(longrun_transform(NOMINAL, **options))).max() > 1e-4


def test_unlearned_it_is_schedule_free_rmsprop(x64):
    """optax's, whose average counts all steps alike, r = 0."""
    options = {"decay_power": 0.0, "averaging_power": 0.0, **EVEN}
    rmsprop = optax.chain(optax.scale_by_adam(0.0, 0.99, 1e-16), optax.scale(-0.03))
    theirs = optax.contrib.schedule_free(rmsprop, 1.0, b1=0.9, weight_lr_power=0.0)
    ours = walk(longrun_transform(NOMINAL, **options))
    np.testing.assert_allclose(ours, walk(theirs), rtol=1e-9, atol=1e-12)


def test_without_averaging_it_is_rmsprop(x64):
    rmsprop = optax.chain(optax.scale_by_adam(0.0, 0.99, 1e-16), optax.scale(-0.03))
    ours = walk(longrun_transform(NOMINAL, averaging=0.0, decay_power=0.0, **EVEN))
    np.testing.assert_allclose(ours, walk(rmsprop), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("options", [{"learned_scale": 0.0}, {"fade_steps": 1e-12}])
def test_without_the_learned_part_it_is_the_nominal_rule(options):
    found = walk(longrun_transform(PHI, **options), np.float32(STEPS))
    nominal = walk(longrun_transform(NOMINAL), np.float32(STEPS))
    np.testing.assert_allclose(found, nominal, rtol=1e-6, atol=1e-9)


def test_a_skipped_coordinate_moves_with_its_average_alone():
    steps = np.float32(STEPS[:, 1:4])
    steps[6, 1] = np.nan
    tx = longrun_transform(PHI, skip_nonfinite=True, **STEADY_AVERAGE)
    found = walk(tx, steps)
    assert np.isfinite(found).all()
    theta, state = jnp.float32(found[5]), tx.init(steps[0])
    for g in steps[:6]:
        _, state = tx.update(g, state)
    c = 4 / (7 + 3)
    np.testing.assert_allclose(
        found[6, 1] - theta[1], c * state.offset[1], rtol=1e-4, atol=1e-8
    )


def test_what_is_learned_shares_a_step_out_and_does_not_lengthen_it():
    steps = jnp.float32(STEPS)
    paces = {"pace": 0.0, **STEADY_AVERAGE}
    rules = [longrun_transform(phi, **paces) for phi in (PHI, NOMINAL)]
    states = [tx.init(steps[0]) for tx in rules]
    for t, g in enumerate(steps, 1):
        c, taken = 4 / (t + 3), []
        for i, tx in enumerate(rules):
            update, after = tx.update(g, states[i])
            taken.append((update - c * states[i].offset) / (1 - 0.9 * (1 - c)))
            states[i] = after
        ours, nominal = taken
        sizes = [jnp.linalg.norm(s) for s in taken]
        np.testing.assert_allclose(*sizes, rtol=1e-4)
        assert (jnp.sign(ours) == jnp.sign(nominal)).all()
    assert jnp.abs(ours - nominal).max() > 0.2 * jnp.abs(nominal).max()


def test_with_a_convolution_it_is_the_nominal_rule():
    """Whatever else there is; and without it, or if told so, it is not."""

    def walked(phi, shape, **options):
        tx = longrun_transform(phi, **options)
        kernels = np.float32(STEPS[:, :4]).reshape(-1, *shape)
        gradients = {"kernel": kernels, "dense": np.float32(STEPS[:, 1:])}

        def step(state, g):
            return tx.update(g, state)[::-1]

        start = tx.init(jax.tree.map(lambda g: g[0], gradients))
        updates = jax.lax.scan(step, start, gradients)[1]
        return np.concatenate([u.reshape(len(u), -1) for u in updates.values()], 1)

    convolution, flat = (2, 2, 1, 1), (2, 2, 1)
    nominal = walked(NOMINAL, flat)
    np.testing.assert_allclose(walked(PHI, convolution), nominal, rtol=1e-5, atol=1e-8)
    learned = walked(PHI, flat)
    assert np.abs(learned - nominal).max() > 1e-4
    for options in ({"learned_axes": None}, {"learned_axes": 4}):
        found = walked(PHI, convolution, **options)
        np.testing.assert_allclose(found, learned, rtol=1e-4, atol=1e-7)


def lengths(steps, **options):
    """e^ℓ after each of the gradients, whatever tree they are."""
    tx = longrun_transform(NOMINAL, **options)

    def step(state, g):
        state = tx.update(g, state)[1]
        return state, jnp.exp(state.length)

    start = tx.init(jax.tree.map(lambda g: g[0], steps))
    return np.asarray(jax.lax.scan(step, start, steps)[1])


def test_steps_grow_while_gradients_agree_and_shrink_when_they_turn_about():
    steady = jnp.ones((40, 3))
    turning = steady * (-1.0) ** jnp.arange(40)[:, None]
    grown, shrunk = lengths(steady), lengths(turning)
    assert (np.diff(grown[1:8]) > 0).all()
    assert grown[-1] == pytest.approx(np.exp(3))
    assert (np.diff(shrunk[1:3]) < 0).all()
    assert shrunk[-1] == pytest.approx(np.exp(-6))
    # Noise alone neither lengthens nor shortens.
    noise = lengths(jax.random.normal(jax.random.key(0), (400, 2000)))
    np.testing.assert_allclose(noise, 0.05, rtol=0.02)
    np.testing.assert_allclose(lengths(steady, pace=0.0), 0.05, rtol=1e-6)


def test_short_steps_grow_ten_times_faster_and_are_not_forgotten():
    steady, still = jnp.ones((5, 3)), jnp.zeros((500, 3))

    def changes(first_length, steps=steady, **options):
        found = lengths(steps, first_length=first_length, pace=0.01, **options)
        return np.diff(np.log(found))

    short = changes(0.1)[1:]
    for options, times in (({}, 10 / 6), ({"doubt": None}, 10)):
        long = changes(1.0, **options)[1:]
        np.testing.assert_allclose(short, times * long, rtol=0.02)
    # A length of 1 begins to shrink as slowly as one beyond it.
    turning = steady * (-1.0) ** jnp.arange(5)[:, None]
    short, long = (changes(first, turning)[0] for first in (0.1, 1.0))
    assert short == pytest.approx(10 * long, rel=1e-4)
    stays = lengths(still, first_length=0.1)
    np.testing.assert_allclose(stays, 0.1, rtol=1e-5)
    steps = jnp.concatenate([jnp.ones((60, 3)), still])
    assert lengths(steps)[-1] < 0.5 * lengths(steps)[70]


def test_a_length_halts_at_1_on_its_way():
    grown = lengths(jnp.ones((20, 3)))
    assert np.sum(grown == 1) == 1
    assert 1 not in lengths(jnp.ones((20, 3)), doubt=None)


@pytest.mark.parametrize(
    ("coordinates", "doubt", "grows"),
    [(10, 2.0, False), (10, 0.0, True), (4000, 2.0, True)],
)
def test_beyond_1_it_grows_where_agreement_is_more_than_noise(
    coordinates, doubt, grows
):
    """The mean is the same; the cosine of few coordinates is noisy."""
    noise = jax.random.normal(jax.random.key(0), (200, coordinates))
    found = lengths(0.3 + noise, first_length=1.0, doubt=doubt)
    assert (found.max() > 2) == grows
    assert grows or found.max() < 1.2


def test_the_length_is_of_all_leaves_together_and_of_no_scale():
    steps = jnp.asarray(STEPS, jnp.float32)
    whole = lengths(steps)
    assert np.abs(np.log(whole)).max() > 0.01
    split = {"a": steps[:, :2], "b": [steps[:, 2:].reshape(-1, 1, 3)]}
    np.testing.assert_allclose(lengths(split), whole, rtol=1e-5)
    np.testing.assert_allclose(lengths(1e3 * steps, eps=0.0), whole, rtol=0.01)


def recencies(gradient_of, num_steps=400, **options):
    """e^η after each step, from θ = 1 on, and the last δ."""
    tx = longrun_transform(NOMINAL, **options)

    def step(carry, t):
        theta, state = carry
        updates, state = tx.update(gradient_of(theta, t), state)
        return (theta + updates, state), jnp.exp(state.recency)

    start = jnp.ones(1000)
    end, found = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(num_steps))
    return np.asarray(found), end[1].offset


def test_recent_steps_count_more_downhill_and_less_where_steps_are_but_noise():
    downhill, offset = recencies(lambda theta, t: jnp.ones_like(theta))
    assert (np.diff(downhill) >= 0).all()
    assert downhill[-1] == pytest.approx(np.exp(1.5))
    # All of it is the delay of the average, which is less where recent steps count.
    late = recencies(lambda theta, t: jnp.ones_like(theta), averaging_pace=0.0)[1]
    assert 0 < jnp.linalg.norm(offset) < 0.5 * jnp.linalg.norm(late)

    def noisy(theta, t):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), t), theta.shape)
        return theta + 0.3 * noise

    at_the_minimum = recencies(noisy, num_steps=2000)[0]
    assert at_the_minimum[-1] < 0.5
    assert recencies(noisy, averaging_pace=0.0)[0][-1] == 1


def test_a_gradient_much_larger_than_those_before_is_cut():
    *usual, sudden = jnp.ones((20, 4)).at[19].set(1e3)

    def last_step(largest):
        options = {"largest": largest, "excess": None, **STEADY_AVERAGE}
        tx = longrun_transform(NOMINAL, **options)
        state = tx.init(sudden)
        for g in usual:
            _, state = tx.update(g, state)
        c = 4 / 23
        return tx.update(sudden, state)[0] - c * state.offset

    v = (0.99 * (1 - 0.99**19) + 0.01 * 1e6) / (1 - 0.99**20)
    size = 1e3 / np.sqrt(v)
    assert size > 2
    np.testing.assert_allclose(
        last_step(2.0), last_step(None) * 2 / size, rtol=1e-4, atol=1e-9
    )


def test_a_gradient_larger_than_usual_is_cut_to_twice_that():
    """Where most are small beside their second moment, as with rare spikes."""
    *usual, sudden = 0.01 * jnp.ones((60, 4)).at[0].set(100.0).at[59].set(100.0)

    def last_step(excess):
        tx = longrun_transform(NOMINAL, excess=excess, **STEADY_AVERAGE)
        state = tx.init(sudden)
        for g in usual:
            _, state = tx.update(g, state)
        c = 4 / 63
        return tx.update(sudden, state)[0] - c * state.offset, state.usual

    whole, mean = last_step(None)
    cut, _ = last_step(2.0)
    assert jnp.linalg.norm(cut) < 0.5 * jnp.linalg.norm(whole)
    np.testing.assert_allclose(cut, whole * 2 * mean, rtol=1e-4)


def test_a_gradient_that_all_but_vanishes_counts_as_any_other():
    """As those of the first layers of a deep sigmoid network do."""
    steps = np.float32(STEPS[:, 1:4])
    vanishing = steps * np.float32([1, 1e-12, 1])
    usual = walk(longrun_transform(PHI), steps)
    found = walk(longrun_transform(PHI), vanishing)
    np.testing.assert_allclose(found, usual, rtol=0.01, atol=1e-5)
    held = walk(longrun_transform(PHI, eps=1e-8), vanishing)
    assert np.abs(held[:, 1]).max() < 0.01 * np.abs(usual[:, 1]).max()


def test_after_a_pause_of_gradients_steps_are_soon_what_they_were():
    tx = longrun_transform(NOMINAL, pace=0.0, averaging=0.0, decay_power=0.0)
    ones, still = jnp.ones((30, 3)), jnp.zeros((500, 3))
    theta = walk(tx, jnp.concatenate([ones, still, ones]))
    sizes = np.abs(np.diff(theta[:, 0]))
    assert (sizes[30:525] == 0).all()
    assert sizes[-10] > 0.9 * sizes[25]


def test_a_gradient_that_is_not_finite_leaves_the_length_finite():
    steps = np.float32(STEPS[:, 1:4])
    without = lengths(np.where(np.arange(3) == 1, 0, steps))
    steps[:, 1] = np.nan
    np.testing.assert_allclose(lengths(steps, skip_nonfinite=True), without, rtol=1e-6)


def test_a_gradient_whose_square_is_not_finite_is_skipped_as_one_that_is_not():
    steps = np.float32(STEPS[:, 1:4])
    found = []
    # At step 6 its square is no float32, at the next one the second moment would be.
    for bad in ((np.nan, np.nan), (1e30, -3e38)):
        steps[6:8, 1] = bad
        found.append(walk(longrun_transform(PHI, skip_nonfinite=True), steps))
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(*found)


def test_skipping_keeps_the_derivative_finite():
    steps = np.float32(STEPS[:, 1:4])
    steps[6, 1], steps[7, 1], steps[8, 1] = np.nan, np.inf, 1e30

    @jax.grad
    def slope(phi):
        return jnp.sum(moved(longrun_transform(phi, skip_nonfinite=True), steps) ** 2)

    factor = slope(PHI).factor
    assert np.isfinite(factor).all()
    assert np.any(factor)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"step_size": -1.0}, "step_size"),
        ({"decay_steps": 0.0}, "decay_steps"),
        ({"decay_power": -1.0}, "decay_power"),
        ({"warmup_steps": -1.0}, "warmup_steps"),
        ({"first_length": 0.002}, "first_length"),
        ({"pace": -0.1}, "pace"),
        ({"doubt": -1.0}, "doubt"),
        ({"largest": 0.0}, "largest"),
        ({"excess": 0.0}, "excess"),
        ({"b1_slow": 1.0}, "b1_slow"),
        ({"averaging": 1.5}, "averaging"),
        ({"averaging_power": -1.0}, "averaging_power"),
        ({"averaging_growth": -1.0}, "averaging_growth"),
        ({"averaging_pace": -1.0}, "averaging_pace"),
        ({"learned_scale": float("nan")}, "learned_scale"),
        ({"learned_axes": 0}, "learned_axes"),
        ({"fade_steps": 0.0}, "fade_steps"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, text):
    with pytest.raises(ValueError, match=f"{text} must"):
        longrun_transform(PHI, **options)


def test_hyper_parameters_of_a_wider_dtype_leave_the_state_its_own(x64):
    g = jnp.ones(3, jnp.float32)
    names = ("step_size", "eps", "averaging", "averaging_pace", "pace", "decay_steps")
    values = {name: np.float64(0.5) for name in (*names, "doubt", "averaging_growth")}
    tx = longrun_transform(NOMINAL, **values)
    state = tx.init(g)
    _, new = tx.update(g, state)
    for old, found in zip(state, new, strict=True):
        assert found.dtype == old.dtype


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match=r"signals must be one of .* got 5"):
        longrun_init(signals=5)
    with pytest.raises(ValueError, match=r"shape of factor .* \(4, 4\)"):
        longrun_transform(PHI._replace(factor=PHI.factor[:3]))
    with pytest.raises(TypeError, match="LongrunParams, got dict"):
        longrun_transform({"factor": PHI.factor})
