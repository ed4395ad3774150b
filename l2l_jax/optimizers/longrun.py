"""Longrun: averaged iterates, steps whose length gradients tell and φ shares out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2l_jax.checks import (
    check_choice,
    check_floating,
    check_number,
    check_size,
    check_state,
    check_type,
)
from l2l_jax.compiler import compiled_once
from l2l_jax.optimizers.coordinatewise import compute_dtype, init_moments
from l2l_jax.preprocess import relative_gradients
from l2l_jax.trees import map_unzip
from l2l_jax.types import PyTree

# Steps that the rule tells apart: it knows tanh(t / age) of each.
AGES = (10.0, 100.0, 1000.0)
# How many signals there may be: those of m, those of both moments.
SIGNALS = (2, 4)
# Of the logarithm of what was learned.
BOUND = 3.0
# Of the logarithm of the common length.
LENGTHS = (-6.0, 3.0)
# A first length that lies within them.
SHORTEST = 0.0025
# Of the running mean of how far gradients agree: the part of it that is new, at first.
AGREEMENT_RENEWED = 0.3
# Steps after which that, and the pace of the common length, have halved, and the pace
# and the growth of the average have come half way.
SLOWING = 100.0
# Between these the agreement is as it should be, and a common length below 1 stays.
AGREEABLE = (-0.15, 0.05)
# The part of its logarithm that a common length above 1 loses at a step.
FORGOTTEN = 0.005
# How many times faster the common length moves as long as it is below 1, and grows
# beyond.
HASTE, GROWTH = 10.0, 6.0
# Of the other running means: the part of them that is new.
RENEWED = 0.05
# Of the logarithm of what multiplies r.
RECENCIES = (-1.0, 1.5)


class LongrunParams(NamedTuple):
    """Weights φ of Longrun.

    Attributes:
      factor: W (4, 4), how much each of the signals at a coordinate (rows: `|m̃|, m̃g̃,
        |m̃'|, m̃'g̃`) counts for its share of a step: in the long run (column 0), and
        what is taken off that in the first 10, 100, 1,000 steps. With two rows the
        signals left are the first ones.
    """

    factor: jax.Array


def longrun_init(
    key: jax.Array | None = None, signals: int = 4, dtype: Any = jnp.float32
) -> LongrunParams:
    """Initial weights φ of Longrun, all 0, with which it is its nominal rule.

    Args:
      key: not used; there because the other optimizers' weights are drawn.
      signals: 4, or 2: without those of the slow moment.
      dtype: floating dtype of φ.

    Returns:
      φ, 16 numbers with the default size.

    Raises:
      ValueError: `signals` is another number.

    Example:
      >>> longrun_init().factor.shape
      (4, 4)
    """
    del key
    check_choice("signals", signals, SIGNALS)
    return LongrunParams(jnp.zeros((signals, 1 + len(AGES)), dtype))


def longrun_sizes(params: LongrunParams) -> dict[str, Any]:
    """The arguments of `longrun_init` that give weights of the same shapes."""
    return {"signals": params.factor.shape[0]}


class LongrunState(NamedTuple):
    """State of `longrun_transform`.

    Attributes:
      count: int32 scalar, steps done.
      latest: ρ, how far the last gradient agreed with those before, a scalar in
        [-1, 1], at least float32.
      agreement: ρ̄, its running mean, likewise.
      noise: ν̄, variance of ρ from step to step, a scalar, at least 0, likewise.
      length: ℓ, logarithm of the length that all steps have in common, likewise.
      ascent: τ̄, running mean of how far the loss rises from the average towards the
        fast iterate, a scalar in [-1, 1], likewise.
      recency: η, logarithm of how much more recent steps count than r says, likewise.
      usual: σ̄, running mean of how large g̃ is, a scalar, at least 0, likewise.
      offset: δ, how far the fast iterate is from the parameters, a tree like them, at
        least float32.
      m: first moments, likewise.
      slow: first moments over more steps, likewise.
      v: second moments, likewise.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    latest: jax.Array
    agreement: jax.Array
    noise: jax.Array
    length: jax.Array
    ascent: jax.Array
    recency: jax.Array
    usual: jax.Array
    offset: PyTree
    m: PyTree
    slow: PyTree
    v: PyTree


def longrun_transform(
    params: LongrunParams,
    *,
    step_size: float = 0.03,
    decay_steps: float = 1000.0,
    decay_power: float = 0.25,
    warmup_steps: float = 3.0,
    first_length: float = 0.05,
    pace: float = 0.2,
    doubt: float | None = 2.0,
    largest: float | None = 1.0,
    excess: float | None = 2.0,
    b1: float = 0.9,
    b1_slow: float = 0.99,
    b2: float = 0.99,
    eps: float = 1e-16,
    averaging: float = 0.9,
    averaging_power: float = 3.0,
    averaging_growth: float = 2.0,
    averaging_pace: float = 0.3,
    learned_scale: float = 1.0,
    learned_axes: int | None = 3,
    fade_steps: float = 1e4,
    skip_nonfinite: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""The Longrun optimizer as an optax transformation.

    Two iterates: a fast one, z, takes steps that hardly anneal, and x averages it,
    later steps counting more: the more so the longer a run has lasted, and while the
    loss falls from x towards z, which is then ahead; the less while it rises, where z
    is but noisier. Gradients are taken at the parameters, θ = (1 - B)·z + B·x, which so
    follow the average: its noise falls as 1/t, whatever the horizon. All steps have a
    length e^ℓ in common that grows while gradients point where those before did and
    shrinks when they turn about. It begins small, and grows fast up to 1 where a
    network lets it: a wide one does not. Beyond 1 it grows only while gradients agree
    more than their noise explains, which on a plateau they do not. A single gradient
    much larger than usual is cut. How a step of RMSprop of that length is shared out
    among coordinates was learned, from how steady the gradient is at each; learned on
    MLPs, so it is not used where there are convolutions. With t = 1, 2, …, the moments
    m and v as in `rnnprop_transform`, m' like m with β1', RMS and cosine over all
    coordinates, δ = z - θ, before the first step ρ, ρ̄, ν̄, τ̄ and η 0, σ̄ 1 and ℓ ln F,
    and cosines with 0 being 0::

        g̃_t, m̃_t, m̃'_t = (g_t, m̂_t, m̂'_t) / (v̂_t^(1/2) + ε)
        ρ_t = cosine(m_{t-1} / (v̂_t^(1/2) + ε), g̃_t)
        h_t = 1 / (1 + t/100)
        ρ̄_t = (1 - .3·h_t)·ρ̄_{t-1} + .3·h_t·ρ_t
        ν̄_t = (1 - .3·h_t)·ν̄_{t-1} + .3·h_t·(ρ_t - ρ_{t-1})²/2 if t ≥ 3 else 0
        d_t = ρ̄_t - clip(ρ̄_t, -.15, .05 + (Q·ν̄_t^(1/2) if ℓ_{t-1} ≥ 0 else 0))
        κ_t = 10κ if ℓ_{t-1} < 0 else 6κ if d_t > 0 else κ
        ℓ'_t = ℓ_{t-1} - .005·max(ℓ_{t-1}, 0) + κ_t·h_t·d_t
        ℓ_t = clip(ℓ'_t, -6, 0 if ℓ_{t-1} < 0 else 3)
        α_t = α·e^{ℓ_t}·(1 - e^{-t/T_w})·(1 + t/T_α)^(-p)
        f_t = (|m̃_t|, clip(m̃_t·g̃_t, -1, 1), |m̃'_t|, clip(m̃'_t·g̃_t, -1, 1))
        a_t = (1, tanh(t/10) - 1, tanh(t/100) - 1, tanh(t/1000) - 1)
        λ_t = λ / (1 + t/T_λ)
        u_t = exp(clip(λ_t·f_t^T·W·a_t, -3, 3))·g̃_t
        σ_t = min(RMS(g̃_t), S)
        s_t = -α_t·min(σ_t, E·σ̄_{t-1})·u_t / RMS(u_t)
        σ̄_t = .95·σ̄_{t-1} + .05·σ_t
        τ̄_t = .95·τ̄_{t-1} + .05·cosine(g̃_t, δ_{t-1})
        η_t = clip(η_{t-1} - κ'·(1 - h_t)·τ̄_t, -1, 1.5)
        r_t = r·(1 + G·(1 - h_t))·e^{η_t}
        c_t = (r_t + 1) / (t + r_t)
        Δθ_t = c_t·δ_{t-1} + (1 - B·(1 - c_t))·s_t
        δ_t = (1 - c_t)·(δ_{t-1} + B·s_t)

    The last two lines are z_t = z_{t-1} + s_t, x_t = (1 - c_t)·x_{t-1} + c_t·z_t and
    θ = (1 - B)·z + B·x, with x and z eliminated. For W = 0, or λ = 0, or where a
    leaf has more than A axes, u is g̃: that is the nominal rule, Schedule-Free RMSprop
    whose steps have a length in common.

    Args:
      params: the learned weights φ, as `longrun_init` or `load` give them.
      step_size: α, at least 0; the first steps are `first_length` of it.
      decay_steps: T_α > 0.
      decay_power: p, at least 0.
      warmup_steps: T_w, at least 0; 0: the first step is as long as the next.
      first_length: F in [.0025, 1], the length with which the first steps are taken;
        with `pace=0` that of all.
      pace: κ, at least 0, how fast ℓ follows; 0: it stays where it begins.
      doubt: Q, at least 0: for a length of 1 or more to grow, the mean of ρ must exceed
        .05 by so many times the noise of ρ. None: as 0, with the same pace for growing
        as for shrinking and without the halt at 1.
      largest: S > 0, the root mean square of g̃ beyond which the step is cut; None:
        never.
      excess: E > 0, how many times its running mean beyond which it is cut; None:
        never.
      b1: β1 in [0, 1), decay of the first moment.
      b1_slow: β1' in [0, 1), decay of the slow first moment.
      b2: β2 in [0, 1), decay of the second moment.
      eps: ε, at least 0, in the unit of the gradient. Coordinates whose gradients are
        smaller stand still; with 1e-8 the first layers of a deep sigmoid network do.
      averaging: B in [0, 1]; 0: no averaging, θ is z.
      averaging_power: r, at least 0: the average weights z_t by about t^r at first.
      averaging_growth: G, at least 0: and by t^((1 + G)·r) after hundreds of steps.
      averaging_pace: κ', at least 0, how fast η follows; 0: η stays 0.
      learned_scale: λ; 0 is the nominal rule.
      learned_axes: A >= 1. A tree in which a leaf has more axes, as the kernel of a
        convolution over images has, is given the nominal rule; the same parameters as
        one vector are not, and to learn on such networks, A must be larger, too. None:
        what was learned is used for all.
      fade_steps: T_λ > 0: beyond that many steps the nominal rule takes over.
      skip_nonfinite: leave a coordinate's moments and fast iterate alone where its
        gradient or a new moment is not finite; it still moves with its average.

    Returns:
      An `optax.GradientTransformationExtraArgs` for any pytree of floating arrays.
      Updates have the gradients' dtypes and are to be ADDED, the sign is in them.
      `update` needs no `params`. What is not finite counts as 0 in RMS and cosine. Both
      are over all coordinates under `jax.jit`, wherever they lie; within
      `jax.shard_map` over those of the device alone, which is another optimizer.

    Raises:
      TypeError: `params` is not a `LongrunParams`; at init or update, a leaf is not
        floating, or the state is another optimizer's; the message has its path.
      ValueError: a shape or a hyper-parameter is out of range; at update, gradients
        are not like the parameters that init saw.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> tx = longrun_transform(longrun_init())
      >>> theta = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
      >>> updates, state = tx.update(theta, tx.init(theta))
      >>> jax.tree.map(jnp.shape, optax.apply_updates(theta, updates))
      {'b': (2,), 'w': (3, 2)}

    References:
      The nominal rule: Defazio et al., `The Road Less Scheduled
      <https://arxiv.org/abs/2405.15682>`_, 2024. Lengths by the product of successive
      gradients: Baydin et al., `Online Learning Rate Adaptation with Hypergradient
      Descent <https://arxiv.org/abs/1703.04782>`_, 2017. The inputs:
      `rnnprop_transform`.
    """
    check_number("step_size", step_size, 0)
    check_number("decay_steps", decay_steps, 0, low_open=True)
    check_number("decay_power", decay_power, 0)
    check_number("warmup_steps", warmup_steps, 0)
    check_number("first_length", first_length, SHORTEST, 1)
    check_number("pace", pace, 0)
    if doubt is not None:
        check_number("doubt", doubt, 0)
    for name, bound in (("largest", largest), ("excess", excess)):
        if bound is not None:
            check_number(name, bound, 0, low_open=True)
    for name, beta in (("b1", b1), ("b1_slow", b1_slow), ("b2", b2)):
        check_number(name, beta, 0, 1, high_open=True)
    check_number("eps", eps, 0)
    check_number("averaging", averaging, 0, 1)
    check_number("averaging_power", averaging_power, 0)
    check_number("averaging_growth", averaging_growth, 0)
    check_number("averaging_pace", averaging_pace, 0)
    check_number("learned_scale", learned_scale)
    if learned_axes is not None:
        check_size("learned_axes", learned_axes)
    check_number("fade_steps", fade_steps, 0, low_open=True)
    check_choice("skip_nonfinite", skip_nonfinite, (False, True))
    phi = params
    check_type("params", phi, LongrunParams)
    allowed = tuple((signals, 1 + len(AGES)) for signals in SIGNALS)
    check_choice("the shape of factor", phi.factor.shape, allowed)

    def init_fn(params):
        check_floating(params)
        dtypes = [compute_dtype(leaf) for leaf in jax.tree.leaves(params)]
        dtype = jnp.result_type(jnp.float32, *dtypes)
        # One array each: a buffer cannot be donated twice.
        zeros = (jnp.zeros([], dtype) for _ in range(5))
        latest, agreement, noise, ascent, recency = zeros
        usual = jnp.ones([], dtype)
        length = jnp.log(jnp.asarray(first_length, dtype))
        moments = (init_moments(params) for _ in range(4))
        scalars = (latest, agreement, noise, length, ascent, recency, usual)
        return LongrunState(jnp.zeros([], jnp.int32), *scalars, *moments)

    @compiled_once
    def advance(updates, state):
        check_state(updates, state.v, "v")
        count = optax.safe_increment(state.count)
        most_axes = max((leaf.ndim for leaf in jax.tree.leaves(updates)), default=0)
        is_learned = learned_axes is None or most_axes <= learned_axes

        def share(gradient, *moments):
            """The direction u, the gradient that counts, and the new moments."""
            dtype = compute_dtype(gradient)
            g, t = gradient.astype(dtype), count.astype(dtype)
            decays = [jnp.asarray(beta, dtype) for beta in (b1, b1_slow, b2)]
            seen = g
            if skip_nonfinite:
                good = jnp.isfinite(decays[2] * moments[2] + (1 - decays[2]) * g**2)
                # `products` leaves NaN out; here a 0 keeps derivatives finite.
                seen, g = jnp.where(good, g, jnp.nan), jnp.where(good, g, 0)
            powers = (g, g, g**2)
            new = [
                beta * old + (1 - beta) * x
                for beta, old, x in zip(decays, moments, powers, strict=True)
            ]
            m, slow, v = (x / (1 - b**t) for x, b in zip(new, decays, strict=True))
            u, m_relative = relative_gradients(g, m, v, eps)
            if is_learned:
                _, slow_relative = relative_gradients(g, slow, v, eps)
                scale = learned_scale / (1 + t / fade_steps)
                weights = scale * _at_age(phi.factor, t)
                u *= _factor(weights, u, m_relative, slow_relative)
            if skip_nonfinite:
                u = jnp.where(good, u, 0)
                pairs = zip(new, moments, strict=True)
                new = [jnp.where(good, x, old) for x, old in pairs]
            return u, seen, *new

        before = (state.m, state.slow, state.v)
        shares, seen, *moments = map_unzip(share, updates, *before)

        def products(g, u, m, v, offset):
            """Sums of g̃m, g̃δ, g̃², m², u² and δ²; not finite counts as 0."""
            v_hat = v / (1 - jnp.asarray(b2, u.dtype) ** count.astype(u.dtype))
            g, m = relative_gradients(g, m, v_hat, eps)
            good = jnp.isfinite(g) & jnp.isfinite(m) & jnp.isfinite(u)
            g, m, u, d = (jnp.where(good, x, 0) for x in (g, m, u, offset))
            pairs = ((g, m), (g, d), (g, g), (m, m), (u, u), (d, d))
            return jnp.stack([jnp.sum(x * y, dtype=accurate) for x, y in pairs])

        trees = (seen, shares, state.m, moments[-1], state.offset)
        leaves = [jax.tree.leaves(tree) for tree in trees]
        accurate = state.length.dtype
        sums = sum(map(products, *leaves), jnp.zeros(6, accurate))
        gm, gd, gg, mm, uu, dd = sums
        # Both 0 at t = 1, where there is nothing to compare with.
        cosine = gm * _inverse_root(gg * mm)
        agreement, noise, length = _pace(state, cosine, count, pace, doubt)
        rise = gd * _inverse_root(gg * dd)
        ascent, recency = _recency(state, rise, count, averaging_pace)
        r = averaging_power * jnp.exp(recency)
        r *= 1 + averaging_growth * (1 - _slowed(count, r.dtype))
        number = float(sum(leaf.size for leaf in leaves[0]))
        size = gg * _inverse_root(gg * number)
        if largest is not None:
            size = jnp.minimum(size, largest)
        usual = _renewed(state.usual, size)
        if excess is not None:
            size = jnp.minimum(size, excess * state.usual)
        common = jnp.exp(length) * size * number * _inverse_root(uu * number)

        def step(u, offset):
            t = count.astype(u.dtype)
            alpha = step_size * (1 + t / decay_steps) ** -decay_power
            alpha *= -jnp.expm1(-t / warmup_steps)
            s = -alpha * common.astype(u.dtype) * u
            power = r.astype(u.dtype)
            c = (power + 1) / (t + power)
            update = c * offset + (1 - averaging * (1 - c)) * s
            return update, (1 - c) * (offset + averaging * s)

        steps, offset = map_unzip(step, shares, state.offset)
        updates = jax.tree.map(lambda x, g: x.astype(g.dtype), steps, updates)
        scalars = (cosine, agreement, noise, length, ascent, recency, usual)
        new = LongrunState(count, *scalars, offset, *moments)
        # Hyper-parameters may have a wider dtype than the state.
        return updates, jax.tree.map(lambda x, old: x.astype(old.dtype), new, state)

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        check_type("the state in update(updates, state)", state, LongrunState)
        check_floating(updates)
        return advance(updates, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _inverse_root(x: jax.Array) -> jax.Array:
    """x^(-1/2), and 0 with derivative 0 where x is 0."""
    return jnp.where(x > 0, 1 / jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def _pace(
    state: LongrunState,
    cosine: jax.Array,
    count: jax.Array,
    pace: float,
    doubt: float | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """ρ̄_t, ν̄_t and ℓ_t from those before and ρ_t."""
    slowed = _slowed(count, cosine.dtype)
    renewed = AGREEMENT_RENEWED * slowed
    agreement = state.agreement + renewed * (cosine - state.agreement)
    variance = (cosine - state.latest) ** 2 / 2
    # Before t = 3 one of the two is not yet a cosine.
    renewed = jnp.where(count > 2, renewed, 0)
    noise = state.noise + renewed * (variance - state.noise)
    is_short = state.length < 0
    growth, margin = pace, jnp.zeros_like(noise)
    longest = jnp.full_like(noise, LENGTHS[1])
    if doubt is not None:
        # The derivative of a root at 0 is infinite.
        deviation = noise * _inverse_root(noise)
        growth, margin = GROWTH * pace, jnp.where(is_short, 0, doubt * deviation)
        longest = jnp.where(is_short, 0, longest)
    lowest, highest = AGREEABLE
    surplus = agreement - jnp.clip(agreement, lowest, highest + margin)
    beyond = jnp.where(surplus > 0, growth, pace)
    change = jnp.where(is_short, HASTE * pace, beyond) * slowed * surplus
    length = state.length - FORGOTTEN * jnp.maximum(state.length, 0) + change
    return agreement, noise, jnp.clip(length, LENGTHS[0], longest)


def _recency(
    state: LongrunState, rise: jax.Array, count: jax.Array, pace: float
) -> tuple[jax.Array, jax.Array]:
    """τ̄_t and η_t from those before and the cosine of g̃_t and δ_{t-1}."""
    ascent = _renewed(state.ascent, rise)
    change = pace * (1 - _slowed(count, rise.dtype)) * ascent
    return ascent, jnp.clip(state.recency - change, *RECENCIES)


def _renewed(mean: jax.Array, new: jax.Array) -> jax.Array:
    """A running mean after its next number."""
    return mean + RENEWED * (new - mean)


def _slowed(count: jax.Array, dtype: Any) -> jax.Array:
    """h_t."""
    return 1 / (1 + count.astype(dtype) / SLOWING)


def _at_age(weights: jax.Array, t: jax.Array) -> jax.Array:
    """W·a_t (4,), in the dtype of t."""
    fading = jnp.tanh(t / jnp.asarray(AGES, t.dtype)) - 1
    ages = jnp.concatenate([jnp.ones(1, t.dtype), fading])
    return jnp.matmul(weights.astype(t.dtype), ages, precision="highest")


def _factor(weights: jax.Array, g: Any, m: Any, slow: Any) -> jax.Array:
    """exp(clip(w·f)) of the relative gradient and moments."""
    signals = (
        jnp.abs(m),
        jnp.clip(m * g, -1, 1),
        jnp.abs(slow),
        jnp.clip(slow * g, -1, 1),
    )
    pairs = zip(weights, signals, strict=False)
    return jnp.exp(jnp.clip(sum(w * f for w, f in pairs), -BOUND, BOUND))
