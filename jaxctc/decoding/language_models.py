"""What a decoder may know of the language: hot words, n-grams, or a model of your own.

A model scores one hypothesis, one token at a time, and says nothing of batches or beams: `vmap`
does. Pass models to a compiled function as arguments, like parameters; those that it closes over
become constants of the program. N-grams are read by `jaxctc.decoding.arpa`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxctc._core import checks
from jaxctc.decoding.automata import LARGEST, MOST, Automaton, build_automaton, key_pairs


@runtime_checkable
class LanguageModel(Protocol):
    """What a beam needs to know of a model: three pure functions of one hypothesis."""

    @property
    def initial_state(self) -> Any:
        """The state before any token: a pytree of arrays."""
        ...

    def score_and_advance(self, state: Any, token: Array, /) -> tuple[Array, Any]:
        """Log-probability, in nats, of `token` (int32) after `state`, and the state after it."""
        ...

    def final_score(self, state: Any, /) -> Array:
        """What it is worth, in nats, that the hypothesis ends in `state`."""
        ...


def _nothing_at_the_end(state: Any) -> Float[Array, ""]:
    del state
    return jnp.zeros((), jnp.float32)


class CustomModel(NamedTuple):
    """A language model of your own, from pure functions of one hypothesis."""

    initial_state: Any
    """The state before any token: a pytree of arrays, of the same shapes ever after."""
    score_and_advance: Callable[..., tuple[Array, Any]]
    """`(state, token) -> (log_prob, state)`, in nats, for a token that is a scalar int32."""
    final_score: Callable[..., Array] = _nothing_at_the_end
    """`state -> log_prob`: what it is worth to end there; 0 unless given."""


def as_language_model(model: Any, *, function: str = "as_language_model") -> LanguageModel:
    """The model itself, or one made of the tuple `(initial_state, score_and_advance)`.

    Args:
      model: a `LanguageModel`, which is returned as it is; or a tuple of an initial state, a
        function `(state, token) -> (log_prob, state)` and perhaps a function
        `state -> log_prob` for the end, which are checked by tracing them once. To make such a
        model an argument of a compiled function, give arrays that a function `f` needs as
        `jax.tree_util.Partial(f, arrays)`.
      function: name of the caller, for messages.

    Returns:
      A `LanguageModel`.

    Raises:
      ValueError: if `model` is neither, if a score is not a floating scalar, or if the state
        comes back with another structure, shape or dtype.

    Example:
      A model that counts tokens, and takes one nat for each:

      >>> model = as_language_model((jnp.int32(0), lambda n, token: (jnp.float32(-1), n + 1)))
      >>> score, state = model.score_and_advance(model.initial_state, jnp.int32(7))
      >>> float(score), int(state), float(model.final_score(state))
      (-1.0, 1, 0.0)
    """
    if isinstance(model, LanguageModel) and not isinstance(model, CustomModel):
        return model
    if not (isinstance(model, tuple) and len(model) in (2, 3) and all(map(callable, model[1:]))):
        requirement = "be a model, or a tuple (initial_state, score_and_advance[, final_score])"
        got = f"a tuple of {len(model)}" if isinstance(model, tuple) else type(model).__name__
        checks.fail(function, "language_model", requirement, got)
    state = jax.tree.map(jnp.asarray, model[0])
    custom = CustomModel(state, *map(_as_pytree, (*model[1:], _nothing_at_the_end)[:2]))
    _check_custom(function, custom)
    return custom


def _as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function as one without leaves; what brings its own arrays stays as it is."""
    is_plain = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if is_plain else function


def _check_custom(function: str, model: CustomModel) -> None:
    token = jax.ShapeDtypeStruct((), jnp.int32)
    result = jax.eval_shape(model.score_and_advance, model.initial_state, token)
    if not (isinstance(result, tuple) and len(result) == 2):
        got = f"a {type(result).__name__}"
        checks.fail(function, "score_and_advance", "return a tuple (log_prob, state)", got)
    final = jax.eval_shape(model.final_score, model.initial_state)
    for name, score in (("score_and_advance", result[0]), ("final_score", final)):
        if not isinstance(score, jax.ShapeDtypeStruct) or score.shape:
            checks.fail(function, name, "score with a scalar", score)
        if not jnp.issubdtype(score.dtype, jnp.floating):
            checks.fail(function, name, "score with a floating number", score.dtype)
    came, state = result[1], model.initial_state
    if jax.tree.structure(came) != jax.tree.structure(state) or _kinds(came) != _kinds(state):
        requirement = f"return a state like the initial one, {jax.tree.map(jax.typeof, state)}"
        checks.fail(function, "score_and_advance", requirement, came)


def _kinds(tree: Any) -> list[tuple[tuple[int, ...], Any]]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def weighted(weight: Float[Array, ""], worth: Array) -> Float[Array, ""]:
    """The product; -inf at any weight, 0 among them, for what is impossible."""
    worth = worth.astype(jnp.float32)
    return jnp.where(worth == -jnp.inf, worth, weight * worth)


def hot_words(words: Sequence[Sequence[int]], bonus: ArrayLike | Sequence[float]) -> Automaton:
    """A model under which every occurrence of a word is worth a bonus, and nothing else is.

    An occurrence is a run of tokens anywhere in the hypothesis: occurrences overlap, one word may
    occur within another, and a word that is listed twice earns both bonuses. (For a word that
    must stand alone, give its separators as tokens of it.) The bonus is paid in advance, in equal
    shares from token to token: while words are under way, the hypothesis holds the share of the
    one that has the largest. A word that fails gives back what it was paid.

    Args:
      words: token ids of each word.
      bonus: nats per occurrence, for all words or for each. A negative one is a penalty, and is
        not paid in advance.

    Returns:
      An `Automaton`. Its scores, the final one included, sum to Σ bonus · occurrences: exactly
      (shares are rounded) where bonuses are multiples of 1/1024 and the sum is below 2¹⁴, and
      else to float32. Any token may come, whether or not words know it.

    Raises:
      ValueError: if a word is empty or holds what is no token id, or a bonus is not finite or
        not one per word.

    Example:
      The word `1 2` is under way after a 1, and a 3 ends that:

      >>> model = hot_words([[1, 2]], bonus=4.0)
      >>> half, state = model.score_and_advance(model.initial_state, 1)
      >>> float(half), float(model.score_and_advance(state, 2)[0])
      (2.0, 2.0)
      >>> float(model.score_and_advance(state, 3)[0]), float(model.final_score(state))
      (-2.0, -2.0)

    References:
      Aho and Corasick 1975, "Efficient string matching: an aid to bibliographic search".
    """
    bonuses = _bonuses(words, bonus)
    prefixes = {()} | {word[: end + 1] for word in bonuses for end in range(len(word))}
    states = {prefix: state for state, prefix in enumerate(sorted(prefixes, key=_short_first))}
    shares = np.zeros(len(states))
    for word, worth in bonuses.items():
        for end in range(len(word)):
            share = round(1024 * worth * end / len(word)) / 1024
            shares[states[word[:end]]] = max(shares[states[word[:end]]], share)

    fails, earned = np.zeros(len(states), np.int64), np.zeros(len(states))
    for prefix, state in list(states.items())[1:]:
        suffixes = (prefix[start:] for start in range(1, len(prefix) + 1))
        fails[state] = next(states[suffix] for suffix in suffixes if suffix in states)
        earned[state] = bonuses.get(prefix, 0.0) + earned[fails[state]]
        shares[state] = max(shares[state], shares[fails[state]])

    arcs = [(states[prefix[:-1]], prefix[-1]) for prefix in states if prefix]
    keys = key_pairs(arcs)
    return build_automaton(
        keys=keys,
        weights=shares[1:] - shares[keys[:, 0]] + earned[1:],
        nexts=np.arange(1, len(states)),
        fails=(fails, shares[fails] - shares),
        final=-shares,
    )


def _short_first(word: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    return len(word), word


def _bonuses(words: Sequence[Sequence[int]], bonus: Any) -> dict[tuple[int, ...], float]:
    """Bonus of each different word."""
    requirement = f"be a finite number, or one for each of {len(words)} words"
    worth = checks.host_array("hot_words", "bonus", bonus, requirement, np.float64)
    if worth.shape not in ((), (len(words),)) or not np.all(np.abs(worth) < LARGEST):
        checks.fail("hot_words", "bonus", requirement, bonus)
    bonuses: dict[tuple[int, ...], float] = {}
    for word, own in zip(words, np.broadcast_to(worth, (len(words),)), strict=True):
        requirement = "be lists of token ids, from 0 on"
        if not isinstance(word, str) and np.ndim(word) == 0:
            remedy = "One word alone is a list in a list."
            checks.fail("hot_words", "words", requirement, word, remedy)
        if any(isinstance(token, str) for token in word):
            checks.fail("hot_words", "words", requirement, repr(word), "Map strings to ids.")
        ids = tuple(checks.static_int("hot_words", "a token of words", token) for token in word)
        if not ids or min(ids) < 0 or max(ids) > MOST:
            checks.fail("hot_words", "words", requirement, list(word))
        bonuses[ids] = bonuses.get(ids, 0.0) + float(own)
    return bonuses
