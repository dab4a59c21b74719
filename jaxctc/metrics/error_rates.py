"""How far a hypothesis is from its reference: edit distance, error counts, error rates.

Everything here is an array function of token ids: no strings, no host, any batch. What is
compared are *units*: tokens, or with a separator the words between separators.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc._core import checks
from jaxctc._core.explicit_axes import everywhere, over_explicit_axes, over_explicit_axes_to
from jaxctc.metrics import levenshtein
from jaxctc.metrics.levenshtein import TokenSequence


class ErrorCounts(NamedTuple):
    """Errors of hypotheses against their references, as integers that can be added up.

    `a + b` adds the counts, `sum` reduces a batch, `lax.psum` the devices; only then does `rate`
    divide, so that the rate of a corpus is its errors over its length and not a mean of rates.
    """

    substitutions: Int[Array, "*B"]
    """Units replaced by another."""
    insertions: Int[Array, "*B"]
    """Units of the hypothesis that the reference lacks."""
    deletions: Int[Array, "*B"]
    """Units of the reference that the hypothesis lacks."""
    reference_length: Int[Array, "*B"]
    """Units of the reference: tokens or, with a separator, words."""

    @property
    def errors(self) -> Int[Array, "*B"]:
        """Substitutions, insertions and deletions together: the edit distance."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def correct(self) -> Int[Array, "*B"]:
        """Units of the reference that the hypothesis has, in their place."""
        return self.reference_length - self.substitutions - self.deletions

    @property
    def rate(self) -> Float[Array, "*B"]:
        """Errors per reference unit; for an empty reference the number of errors."""
        return _rate(self.errors, self.reference_length)

    @classmethod
    def zero(cls) -> "ErrorCounts":
        """No errors in nothing: where a scan over batches starts."""
        return cls(*(jnp.zeros((), jnp.int32) for _ in cls._fields))

    def sum(self) -> "ErrorCounts":
        """The counts of the whole batch."""
        return ErrorCounts(*(jnp.sum(count, dtype=jnp.int32) for count in self))

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":  # pyright: ignore[reportIncompatibleMethodOverride]  # counts, not tuples
        """Adds count to count."""
        return ErrorCounts(*(a + b for a, b in zip(self, other, strict=True)))


class ErrorRate(NamedTuple):
    """A rate and the two integers it is made of."""

    rate: Float[Array, ""]
    """Errors per reference unit."""
    errors: Int[Array, ""]
    """Substitutions, insertions and deletions over the whole batch."""
    reference_length: Int[Array, ""]
    """Reference units over the whole batch."""


@over_explicit_axes
def edit_distance(
    hyp: Int[ArrayLike, "*B L"],
    hyp_paddings: Shaped[ArrayLike, "*B L"] | None,
    ref: Int[ArrayLike, "*B M"],
    ref_paddings: Shaped[ArrayLike, "*B M"] | None,
    *,
    separator: int | None = None,
    class_map: Int[ArrayLike, "K"] | Sequence[int] | None = None,
    ignored_ids: Int[ArrayLike, "I"] | Sequence[int] | None = None,
) -> Int[Array, "*B"]:
    """Fewest substitutions, insertions and deletions that turn one sequence into the other.

    Args:
      hyp: token ids, any integers; those that differ by a multiple of 2^32 (2^64 under x64)
        are one.
      hyp_paddings: nonzero where padded, anywhere; None pads nothing.
      ref: token ids to compare with.
      ref_paddings: likewise.
      separator: static id of the token between words; then the distance counts words, each a
        run of tokens without it, and two words are equal if all their tokens are. Separators
        themselves are never compared; there are no empty words. None compares tokens.
      class_map: classes to compare in place of the ids 0 to K-1; a negative class drops its
        tokens. Other ids stand for themselves.
      ignored_ids: ids to drop. These and `separator` mean ids as they come, before `class_map`.

    Returns:
      Distances as int32, in tokens or words; the other's length if one side is empty.

    Raises:
      ValueError: if ids are not integers or the shapes disagree.

    Example:
      >>> kitten = jnp.array([ord(letter) for letter in "kitten"])
      >>> sitting = jnp.array([ord(letter) for letter in "sitting"])
      >>> int(edit_distance(kitten, None, sitting, None))
      3
      >>> int(edit_distance(kitten, None, sitting, None, ignored_ids=[ord("g")]))
      2

    References:
      Myers 1999, "A fast bit-vector algorithm for approximate string matching based on dynamic
      programming", section 3; Hyyrö 2003, "A bit-vector algorithm for computing Levenshtein and
      Damerau edit distances", section 3, for words of bits in a row.
    """
    options = Units(separator, class_map, ignored_ids)
    sides = units("edit_distance", hyp, hyp_paddings, ref, ref_paddings, options)
    return levenshtein.distance(*sides, by_words=separator is not None)


@over_explicit_axes
def error_counts(
    hyp: Int[ArrayLike, "*B L"],
    hyp_paddings: Shaped[ArrayLike, "*B L"] | None,
    ref: Int[ArrayLike, "*B M"],
    ref_paddings: Shaped[ArrayLike, "*B M"] | None,
    *,
    separator: int | None = None,
    class_map: Int[ArrayLike, "K"] | Sequence[int] | None = None,
    ignored_ids: Int[ArrayLike, "I"] | Sequence[int] | None = None,
) -> ErrorCounts:
    """The edit distance, told apart into substitutions, insertions and deletions.

    Several alignments can have the fewest errors. Counted is the one that rapidfuzz finds, and
    with it jiwer: a common ending is matched; in front of it, read from the end, every deletion
    that is part of some best alignment, an insertion where it beats a substitution.

    Args:
      hyp, hyp_paddings, ref, ref_paddings: as of `edit_distance`.
      separator, class_map, ignored_ids: as of `edit_distance`.

    Returns:
      `ErrorCounts` of int32, one per example. It keeps 3/8 of a byte for each pair of tokens.

    Raises:
      ValueError: as `edit_distance`.

    Example:
      >>> counts = error_counts(jnp.array([7, 8, 9]), None, jnp.array([7, 5]), None)
      >>> [int(count) for count in counts], float(counts.rate)
      ([1, 1, 0, 2], 1.0)
    """
    options = Units(separator, class_map, ignored_ids)
    sides = units("error_counts", hyp, hyp_paddings, ref, ref_paddings, options)
    by_words = separator is not None
    distance, partners = levenshtein.distance_and_partners(*sides, by_words=by_words)
    hyp_length, ref_length = (_count(side.lasts) for side in sides)
    paired = _count(partners >= 0)
    insertions, deletions = hyp_length - paired, ref_length - paired
    return ErrorCounts(distance - insertions - deletions, insertions, deletions, ref_length)


@over_explicit_axes_to(everywhere)
def cer(
    hyp: Int[ArrayLike, "*B L"],
    hyp_paddings: Shaped[ArrayLike, "*B L"] | None,
    ref: Int[ArrayLike, "*B M"],
    ref_paddings: Shaped[ArrayLike, "*B M"] | None,
    *,
    class_map: Int[ArrayLike, "K"] | Sequence[int] | None = None,
    ignored_ids: Int[ArrayLike, "I"] | Sequence[int] | None = None,
) -> ErrorRate:
    """Character error rate of a batch: all its errors over all its reference tokens.

    To go on over several batches or devices, add up `error_counts` instead.

    Args:
      hyp, hyp_paddings, ref, ref_paddings: as of `edit_distance`.
      class_map, ignored_ids: as of `edit_distance`.

    Returns:
      `ErrorRate`: the rate as float32, and the two integers whose quotient it is. Against
      empty references alone the rate is the number of errors, 0 for an empty hypothesis.

    Raises:
      ValueError: as `edit_distance`.

    Example:
      >>> hypotheses, references = jnp.array([[1, 2], [3, 3]]), jnp.array([[1, 2], [3, 4]])
      >>> rate, errors, length = cer(hypotheses, None, references, None)
      >>> float(rate), int(errors), int(length)
      (0.25, 1, 4)
    """
    options = Units(None, class_map, ignored_ids)
    return _batch_rate("cer", hyp, hyp_paddings, ref, ref_paddings, options)


@over_explicit_axes_to(everywhere)
def wer(
    hyp: Int[ArrayLike, "*B L"],
    hyp_paddings: Shaped[ArrayLike, "*B L"] | None,
    ref: Int[ArrayLike, "*B M"],
    ref_paddings: Shaped[ArrayLike, "*B M"] | None,
    *,
    separator: int,
    class_map: Int[ArrayLike, "K"] | Sequence[int] | None = None,
    ignored_ids: Int[ArrayLike, "I"] | Sequence[int] | None = None,
) -> ErrorRate:
    """Word error rate of a batch: all its wrong words over all its reference words.

    Args:
      hyp, hyp_paddings, ref, ref_paddings: as of `edit_distance`.
      separator, class_map, ignored_ids: as of `edit_distance`; words are compared exactly,
        token by token, and not by a hash.

    Returns:
      `ErrorRate`, in words, as `cer` returns it in tokens.

    Raises:
      ValueError: as `edit_distance`.

    Example:
      >>> ids = lambda text: jnp.array([ord(letter) for letter in text])
      >>> rate, errors, words = wer(ids("a bc d"), None, ids(" a  bd d"), None, separator=ord(" "))
      >>> round(float(rate), 4), int(errors), int(words)
      (0.3333, 1, 3)
    """
    separator = checks.static_int("wer", "separator", separator)
    options = Units(separator, class_map, ignored_ids)
    return _batch_rate("wer", hyp, hyp_paddings, ref, ref_paddings, options)


# What the rest of the library builds on; not re-exported.


class Units(NamedTuple):
    """What is compared, as the arguments of the same names say."""

    separator: int | None
    class_map: ArrayLike | Sequence[int] | None
    ignored_ids: ArrayLike | Sequence[int] | None


def units(
    function: str,
    hyp: ArrayLike,
    hyp_paddings: ArrayLike | None,
    ref: ArrayLike,
    ref_paddings: ArrayLike | None,
    options: Units,
) -> tuple[TokenSequence, TokenSequence]:
    """Both sides, checked, in one integer type."""
    hyp_ids = checks.token_ids(function, "hyp", hyp)
    ref_ids = checks.token_ids(function, "ref", ref)
    batch = hyp_ids.shape[:-1]
    if ref_ids.shape[:-1] != batch:
        requirement = f"have shape [*B, M] with *B = {batch}, as in hyp {hyp_ids.shape}"
        checks.fail(function, "ref", requirement, ref_ids.shape)
    no_hyp = checks.paddings(function, "hyp_paddings", hyp_paddings, hyp_ids.shape)
    no_ref = checks.paddings(function, "ref_paddings", ref_paddings, ref_ids.shape)
    wide = max(hyp_ids.dtype.itemsize, ref_ids.dtype.itemsize) > 4
    hyp_ids, ref_ids = (ids.astype(jnp.int64 if wide else jnp.int32) for ids in (hyp_ids, ref_ids))
    return _side(function, hyp_ids, ~no_hyp, options), _side(function, ref_ids, ~no_ref, options)


def _side(
    function: str, ids: Int[Array, "*B L"], used: Bool[Array, "*B L"], options: Units
) -> TokenSequence:
    classes = ids
    if options.ignored_ids is not None:
        ignored = _id_list(function, "ignored_ids", options.ignored_ids, ids)
        used &= ~jnp.isin(ids, ignored)
    if options.class_map is not None:
        table = _id_list(function, "class_map", options.class_map, ids)
        mapped = (ids >= 0) & (ids < table.size)
        classes = jnp.where(mapped, table.at[ids].get(mode="clip"), ids)
        used &= ~(mapped & (classes < 0))
    if options.separator is None:
        return TokenSequence(classes, used, used, used)
    separator = checks.static_int(function, "separator", options.separator)
    return _words(classes, used, ids == jnp.asarray(separator, ids.dtype))


def _id_list(
    function: str, argument: str, values: ArrayLike | Sequence[int], ids: Int[Array, "*B L"]
) -> Int[Array, "I"]:
    array = checks.token_ids(function, argument, checks.as_array(function, argument, values))
    if array.ndim != 1:
        checks.fail(function, argument, "have one axis", array.shape)
    return array.astype(ids.dtype)


def _words(
    tokens: Int[Array, "*B L"], used: Bool[Array, "*B L"], separates: Bool[Array, "*B L"]
) -> TokenSequence:
    """Units that are runs of tokens in use, whatever is dropped between them."""
    spells, separates = used & ~separates, used & separates
    lasts = jnp.flip(_begins(jnp.flip(spells, -1), jnp.flip(separates, -1)), -1)
    return TokenSequence(tokens, spells, _begins(spells, separates), lasts)


def _begins(spells: Bool[Array, "*B L"], separates: Bool[Array, "*B L"]) -> Bool[Array, "*B L"]:
    """True for a token that spells unless, of all that is not dropped, another one precedes it."""
    places = jnp.arange(2, 2 * spells.shape[-1] + 2, 2, dtype=jnp.int32)
    places = jnp.broadcast_to(places, spells.shape) + spells.astype(jnp.int32)  # odd if it spells
    places = jnp.where(spells | separates, places, jnp.zeros_like(places))
    before = jnp.concatenate([jnp.zeros_like(places[..., :1]), places[..., :-1]], axis=-1)
    return spells & (lax.cummax(before, axis=before.ndim - 1) & 1 == 0)


def _batch_rate(
    function: str,
    hyp: ArrayLike,
    hyp_paddings: ArrayLike | None,
    ref: ArrayLike,
    ref_paddings: ArrayLike | None,
    options: Units,
) -> ErrorRate:
    sides = units(function, hyp, hyp_paddings, ref, ref_paddings, options)
    distance = levenshtein.distance(*sides, by_words=options.separator is not None)
    errors = jnp.sum(distance, dtype=jnp.int32)
    length = jnp.sum(sides[1].lasts, dtype=jnp.int32)
    return ErrorRate(_rate(errors, length), errors, length)


def _count(flags: Bool[Array, "*B L"]) -> Int[Array, "*B"]:
    return jnp.sum(flags, axis=-1, dtype=jnp.int32)


def _rate(errors: Int[Array, "*B"], reference_length: Int[Array, "*B"]) -> Float[Array, "*B"]:
    return errors.astype(jnp.float32) / jnp.maximum(reference_length, 1).astype(jnp.float32)
