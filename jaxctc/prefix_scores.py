r"""Log-probability of everything that begins with a prefix: CTC as a guide for attention decoders.

With y_t(k) for what class k has in frame t, a prefix g has two rows (Watanabe et al. 2017,
algorithm 2; Hori et al. 2017):

    blank_t   is the weight of all paths over the first t frames that spell g and end in a blank,
    label_t   of those that end in its last label.

A path that begins with g and goes on by the token c enters c in some frame for the first time, and
after that goes on in any way:

    score(g·c)   = Σ_t before_t(c) · y_{t+1}(c) · (everything after)
    before_t(c)  = blank_t + label_t, or blank_t alone where c repeats the last label of g

which needs no recursion at all. The rows of g·c need one,

    label_{t+1}  = y_{t+1}(c) · (label_t + before_t(c))
    blank_{t+1}  = y_{t+1}(blank) · (blank_t + label_t)

but each line alone takes log T rounds instead of T steps (`rounds`).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.classes import read_columns
from jaxctc._core.derivatives import nan_where
from jaxctc._core.frame_sums import likeliest_frames, shape_of, sum_of_all, sum_of_window
from jaxctc._core.lean import broadcast, reverse, select
from jaxctc._core.normalizer import (
    at_least_float32,
    largest_or_nan,
    mask_padding,
    normalizer,
    safe_max,
    sum_over_frames,
)
from jaxctc._core.rounds import products, steps
from jaxctc._core.semirings import LOG, WIDE, Number, Semiring, Wide


class PrefixState(NamedTuple):
    """All that is known of W prefixes per example; numbers are those of `semirings`."""

    emissions: Any
    """[*B, T, K]: of each class in each frame; zero for the blank and in padded frames."""
    blank_emissions: Any
    """[*B, T]: of the blank; one in padded frames."""
    label_emissions: Any
    """[*B, T]: of all other classes together; zero in padded frames."""
    tails: Any
    """[*B, T+1]: everything that may come after so many frames."""
    offset: Float[Array, "*B"]
    """Nats by which all weights are too small."""
    is_frame: Bool[Array, "*B T"]
    """False in padded frames."""
    is_nan: Bool[Array, "*B"]
    """True where a frame in use held NaN or +inf."""
    blank: Any
    """[*B, W, T+1]: the prefix spelt in so many frames, in a blank at the end."""
    label: Any
    """[*B, W, T+1]: in its last label at the end."""
    last: Int[Array, "*B W"]
    """The last label of each prefix; -1 if it is empty."""


class PrefixScores(NamedTuple):
    """What `prefix_scores` returns, in nats."""

    token: Float[Array, "*B W C"]
    """Of everything that begins with the prefix and this token."""
    end: Float[Array, "*B W"]
    """Of the prefix and nothing more."""


def prefix_scores_init(
    logits: Float[ArrayLike, "*B T K"],
    logit_paddings: Shaped[ArrayLike, "*B T"] | None,
    *,
    beam_width: int = 1,
    blank_id: int = 0,
    logits_normalized: bool = False,
) -> PrefixState:
    """W empty prefixes, for `prefix_scores` and `prefix_scores_select`.

    Args:
      logits: scores over classes, the blank included.
      logit_paddings: nonzero where a frame is padded, anywhere; None pads nothing.
      beam_width: static; W, the hypotheses that an attention decoder keeps of each example.
      blank_id: static class id of the blank; a negative one counts from the last class.
      logits_normalized: static; True takes `logits` for log-probabilities, of any sum.

    Returns:
      `PrefixState`, 8 bytes for each of B · T · (K + 2 W) numbers. No derivative.

    Raises:
      ValueError: if shapes disagree, `blank_id` is not a class, or `beam_width` is less than 1.

    Note:
      When more frames come in, rows of earlier ones stay as they are, but those of the new ones
      depend on the whole prefix: begin with all frames, and select its tokens again, each in log T
      rounds. With frames padded to a number that stays the same, this compiles once.

    Example:
      See `prefix_scores`.

      >>> state = prefix_scores_init(jnp.zeros((4, 3)), None, beam_width=2)
      >>> state.last.tolist()
      [-1, -1]

    References:
      Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end speech recognition",
      algorithm 2; Hori et al. 2017, "Joint CTC/attention decoding for end-to-end speech
      recognition".
    """
    function = "prefix_scores_init"
    scores = checks.class_scores(function, "logits", logits)
    padded = checks.paddings(function, "logit_paddings", logit_paddings, scores.shape[:-1])
    checks.not_explicit(function, logits=scores, logit_paddings=padded)
    checks.flags(function, logits_normalized=logits_normalized)
    width = checks.count(function, "beam_width", beam_width, least=1)
    blank = checks.class_id(function, "blank_id", blank_id, scores.shape[-1])
    if scores.shape[-2] == 0:  # one padded frame stands for none
        *batch, _, classes = scores.shape
        scores = jnp.zeros_like(scores, shape=(*batch, 1, classes))
        padded = jnp.ones_like(padded, shape=(*batch, 1))
    return _first_state(width, blank, logits_normalized, lax.stop_gradient(scores), ~padded)


def prefix_scores(
    state: PrefixState,
    tokens: Int[ArrayLike, "*B W C"] | None = None,
    *,
    window: int | None = None,
) -> PrefixScores:
    """Log-probability, for each next token, of all label sequences that begin so.

    What a joint decoder adds to the scores of its attention: `ctc_weight * prefix_scores(…)`, and
    the score of the end to that of its token for the end.

    Args:
      state: of `prefix_scores_init` or `prefix_scores_select`.
      tokens: C candidates of each prefix, class ids; None is all K classes.
      window: static number of frames. Of each prefix only so many count, those in which it is most
        likely to go on: a peak, where the next label begins, and what is around it. What is summed
        in other frames is missing from the scores of tokens, which so are never too high; `end` is
        exact. On a CPU those frames cost nothing, elsewhere as much as ever. None counts all, as
        a window of T does.

    Returns:
      `PrefixScores`, of the whole prefix and not of the last step alone: with the scores of all
      other tokens and of the end, those of one prefix sum to that of the prefix before, in
      probability. -inf for the blank, for what is no class, and where there are too few frames;
      NaN where a frame in use held NaN or +inf. `end` is `-ctc_loss` of the prefix.

    Raises:
      ValueError: if `tokens` are no integers or do not have the axes of the state; if `window` is
        less than 1.

    Example:
      Of nine equally likely paths over two frames three spell 1 and nothing more, three 2, and
      `1 2`, `2 1` and `- -` are left:

      >>> state = prefix_scores_init(jnp.zeros((2, 3)), None)
      >>> scores = prefix_scores(state)
      >>> (9 * jnp.exp(scores.token)).round(4).tolist(), (9 * jnp.exp(scores.end)).round(4).tolist()
      ([[0.0, 4.0, 4.0]], [1.0])
      >>> scores = prefix_scores(prefix_scores_select(state, jnp.array([1])))
      >>> (9 * jnp.exp(scores.token)).round(4).tolist(), (9 * jnp.exp(scores.end)).round(4).tolist()
      ([[0.0, 0.0, 1.0]], [3.0])

      A first label 1 begins in the first frame of three paths, in the second frame of one:

      >>> (9 * jnp.exp(prefix_scores(state, window=1).token)).round(4).tolist()
      [[0.0, 3.0, 3.0]]

    References:
      See `prefix_scores_init`.
    """
    function = "prefix_scores"
    checks.not_explicit(function, state=state.last)
    ids = None
    if tokens is not None:
        ids = checks.class_ids(function, "tokens", tokens)
        if ids.shape[:-1] != state.last.shape:
            requirement = f"have shape [*B, W, C] with [*B, W] = {state.last.shape}, as in state"
            checks.fail(function, "tokens", requirement, ids.shape)
    if window is not None:
        window = checks.count(function, "window", window, least=1)
        window = None if window >= state.is_frame.shape[-1] else window
    return _scores(window, state, ids)


def prefix_scores_select(
    state: PrefixState,
    tokens: Int[ArrayLike, "*B W"],
    parents: Int[ArrayLike, "*B W"] | None = None,
) -> PrefixState:
    """The prefixes with one token more each.

    Args:
      state: of `prefix_scores_init` or the last `prefix_scores_select`; it is not changed.
      tokens: the token that each prefix goes on by; -1 leaves it as it is, as a decoder does with
        hypotheses that have ended. Any number of prefixes.
      parents: which of the W prefixes of the state each of them comes from; None is its own place.

    Returns:
      `PrefixState` with as many prefixes as tokens. A prefix with a blank in it, or what is no
      class, is impossible.

    Raises:
      ValueError: if the arguments are no integers or have other batch axes than the state.

    Example:
      See `prefix_scores`.

      >>> state = prefix_scores_init(jnp.zeros((4, 3)), None)
      >>> prefix_scores_select(state, jnp.array([2, 1]), jnp.array([0, 0])).last.tolist()
      [2, 1]

    References:
      See `prefix_scores_init`.
    """
    function = "prefix_scores_select"
    checks.not_explicit(function, state=state.last)
    ids = checks.class_ids(function, "tokens", tokens)
    *batch, width = state.last.shape
    if ids.shape[:-1] != tuple(batch):
        requirement = f"have shape [*B, W] with *B = {tuple(batch)}, as in state"
        checks.fail(function, "tokens", requirement, ids.shape)
    places = None
    if parents is not None:
        places = checks.class_ids(function, "parents", parents)
        if places.shape != ids.shape:
            checks.fail(function, "parents", f"have the shape of tokens, {ids.shape}", places.shape)
    elif ids.shape[-1] != width:
        remedy = "With parents, there may be any number of them."
        checks.fail(function, "tokens", f"be one for each of {width} prefixes", ids.shape, remedy)
    return _selected(state, ids, places)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _first_state(
    width: int,
    blank: int,
    logits_normalized: bool,
    scores: Float[Array, "*B T K"],
    is_frame: Bool[Array, "*B T"],
) -> PrefixState:
    semiring = LOG if scores.dtype == jnp.float64 else WIDE
    scores = at_least_float32(mask_padding(scores, is_frame))
    if logits_normalized:
        largest, log_sum = safe_max(largest_or_nan(scores)), None
    else:
        largest, log_sum = normalizer(scores, blank)
    weights = semiring.encode(scores, broadcast(largest[..., None], scores.shape))
    if log_sum is None:
        # Rows of any sum: what comes after a token counts with what it sums to.
        sums, offset = _where(is_frame, semiring.sum(weights), semiring.one), largest
    else:
        scale = semiring.encode(-log_sum, lax.full_like(log_sum, 0))
        scale = jax.tree.map(lambda part: broadcast(part[..., None], scores.shape), scale)
        weights = semiring.normalize(semiring.times(weights, scale))
        sums = _where(lax.full_like(is_frame, False), _column(weights, blank), semiring.one)
        offset = lax.full_like(largest, 0)
    of_blank = _where(is_frame, _column(weights, blank), semiring.one)
    is_label = jnp.arange(scores.shape[-1], dtype=jnp.int32) != blank
    is_label = is_frame[..., None] & jnp.expand_dims(is_label, range(scores.ndim - 1))
    labels = semiring.mask(is_label, weights)
    only_blanks = products(of_blank, semiring)
    shape = (*shape_of(only_blanks)[:-1], width, is_frame.shape[-1] + 1)
    return PrefixState(
        emissions=labels,
        blank_emissions=of_blank,
        label_emissions=semiring.normalize(semiring.sum(labels)),
        tails=_backwards(products(_backwards(sums), semiring)),
        offset=sum_over_frames(select(is_frame, offset, 0)),
        is_frame=is_frame,
        is_nan=jnp.any(~(largest + (0 if log_sum is None else log_sum) < jnp.inf) & is_frame, -1),
        blank=jax.tree.map(lambda part: broadcast(part[..., None, :], shape), only_blanks),
        label=jax.tree.map(
            lambda part, zero: lax.full_like(part, zero, shape=shape), only_blanks, semiring.zero
        ),
        last=lax.full_like(is_frame, -1, jnp.int32, shape[:-1]),
    )


@functools.partial(jax.jit, static_argnums=0)
def _scores(
    window: int | None, state: PrefixState, tokens: Int[Array, "*B W C"] | None
) -> PrefixScores:
    semiring = _semiring_of(state)
    classes = shape_of(state.emissions)[-1]
    once, again = _before(state, semiring)
    shape = shape_of(once)
    tails = jax.tree.map(lambda part: broadcast(part[..., None, 1:], shape), state.tails)
    once, again = semiring.times(once, tails), semiring.times(again, tails)
    if tokens is None:
        ids = jnp.expand_dims(jnp.arange(classes, dtype=jnp.int32), range(state.last.ndim))
        emissions = jax.tree.map(lambda part: part[..., None, :, :], state.emissions)
    else:
        ids = tokens
        emissions = _emissions_of(state, tokens)
    is_repeat = ids == state.last[..., None]
    summed = sum_of_all
    if window is not None:
        starts = likeliest_frames(once, state.label_emissions, window, semiring)
        summed = functools.partial(sum_of_window, starts, window)
    found = summed(once, emissions, semiring)
    own = _emissions_of(state, state.last[..., None])
    repeated = summed(again, own, semiring)
    scores = jnp.where(is_repeat, repeated, found)
    is_class = (ids >= 0) & (ids < classes)
    scores = select(broadcast(is_class, scores.shape), scores, -jnp.inf)
    ends = _last_place(semiring.plus(state.blank, state.label))
    ends = semiring.times(
        ends, jax.tree.map(lambda a, b: broadcast(b[..., -1:], a.shape), ends, state.tails)
    )

    def in_nats(scores: Array) -> Array:
        offset = jnp.expand_dims(state.offset, range(state.offset.ndim, scores.ndim))
        scores = select(scores > -jnp.inf, scores + offset, -jnp.inf)
        factor = nan_where(state.is_nan, scores)
        return scores * jnp.expand_dims(factor, range(factor.ndim, scores.ndim))

    return PrefixScores(in_nats(scores), in_nats(semiring.decode(ends)))


@jax.jit
def _selected(
    state: PrefixState, tokens: Int[Array, "*B W"], parents: Int[Array, "*B W"] | None
) -> PrefixState:
    semiring = _semiring_of(state)
    if parents is not None:
        rows = state.blank, state.label, state.last[..., None]
        blank, label, last = jax.tree.map(functools.partial(_rows_of, parents), rows)
        state = state._replace(blank=blank, label=label, last=last[..., 0])
    shape = shape_of(state.blank)
    once, again = _before(state, semiring)
    is_repeat = (tokens == state.last)[..., None]
    before = _where(is_repeat, again, once)
    y = jax.tree.map(lambda part: part[..., 0], _emissions_of(state, tokens[..., None]))
    is_frame = broadcast(state.is_frame[..., None, :], shape_of(y))
    none = semiring.mask(jnp.zeros_like(is_frame), y)
    label = steps(
        _where(is_frame, y, semiring.one),
        _where(is_frame, semiring.times(y, before), none),
        semiring,
    )
    y = jax.tree.map(
        lambda part: broadcast(part[..., None, :], is_frame.shape), state.blank_emissions
    )
    entering = semiring.times(y, _all_but_last(label))
    blank = steps(y, _where(is_frame, entering, none), semiring)
    stays = broadcast((tokens == -1)[..., None], shape)
    return state._replace(
        blank=_where(stays, state.blank, blank),
        label=_where(stays, state.label, label),
        last=jnp.where(tokens == -1, state.last, tokens),
    )


def _semiring_of(state: PrefixState) -> Semiring:
    return WIDE if isinstance(state.emissions, Wide) else LOG


def _before(state: PrefixState, semiring: Semiring) -> tuple[Number, Number]:
    """What the next token comes after, `[*B, W, T]`: any token, or the last label once more."""
    blank, label = (_all_but_last(row) for row in (state.blank, state.label))
    return semiring.normalize(semiring.plus(blank, label)), blank


def _emissions_of(state: PrefixState, tokens: Int[Array, "*B W C"]) -> Number:
    """`[*B, W, T, C]`; anything for what is no class."""
    *batch, width, count = tokens.shape
    flat = tokens.reshape(*batch, width * count)

    def one(part: Array) -> Array:
        columns = read_columns(part, jnp.maximum(flat, 0))
        return jnp.moveaxis(columns.reshape(*part.shape[:-1], width, count), -2, -3)

    found = jax.tree.map(one, state.emissions)
    is_class = ((tokens >= 0) & (tokens < shape_of(state.emissions)[-1]))[..., None, :]
    return _semiring_of(state).mask(broadcast(is_class, shape_of(found)), found)


def _rows_of(parents: Int[Array, "*B V"], values: Shaped[Array, "*B W L"]) -> Array:
    """`values[parents]` as a sum of which one term is not 0, for a gather of rows is a loop on a
    TPU; a parent that does not exist is the nearest that does."""
    width = values.shape[-2]
    parents = jnp.minimum(jnp.maximum(parents, 0), width - 1)
    places = jnp.expand_dims(jnp.arange(width, dtype=jnp.int32), range(parents.ndim))
    is_here = (parents[..., None] == places)[..., None]
    shape = (*parents.shape, *values.shape[-2:])
    terms = select(is_here, broadcast(values[..., None, :, :], shape), 0)
    return jnp.sum(terms, axis=-2, dtype=values.dtype)


def _where(condition: Bool[Array, "..."], number: Number, otherwise: Number) -> Number:
    """A number where the condition holds, elsewhere another, or a constant of the semiring."""
    return jax.tree.map(functools.partial(select, condition), number, otherwise)


def _column(number: Number, index: int) -> Number:
    return jax.tree.map(lambda part: part[..., index], number)


def _backwards(row: Number) -> Number:
    return jax.tree.map(lambda part: reverse(part, -1), row)


def _all_but_last(row: Number) -> Number:
    return jax.tree.map(lambda part: part[..., :-1], row)


def _last_place(number: Number) -> Number:
    return jax.tree.map(lambda part: part[..., -1], number)
