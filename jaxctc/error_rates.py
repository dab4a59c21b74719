"""How far a hypothesis is from its reference: edit distance, error counts, error rate.

Everything here is an array function of token ids: no strings, no host, any batch.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Shaped

from jaxctc import _checks
from jaxctc.padding import pack_left, paddings_to_lengths


class ErrorCounts(NamedTuple):
    """Errors of hypotheses against their references, as integers that can be added up.

    `a + b` adds the counts, `sum` reduces a batch; only then does `rate` divide, so that the
    rate of a corpus is its errors over its length and not a mean of rates.
    """

    substitutions: Int[Array, "*B"]
    """Tokens replaced by another."""
    insertions: Int[Array, "*B"]
    """Tokens of the hypothesis that the reference lacks."""
    deletions: Int[Array, "*B"]
    """Tokens of the reference that the hypothesis lacks."""
    reference_length: Int[Array, "*B"]
    """Tokens of the reference."""

    @property
    def errors(self) -> Int[Array, "*B"]:
        """Substitutions, insertions and deletions together: the edit distance."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> Float[Array, "*B"]:
        """Errors per reference token; for an empty reference the number of errors."""
        return _rate(self.errors, self.reference_length)

    def sum(self) -> "ErrorCounts":
        """The counts of the whole batch."""
        return ErrorCounts(*(jnp.sum(count, dtype=jnp.int32) for count in self))

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":  # pyright: ignore[reportIncompatibleMethodOverride]  # counts, not tuples
        """Adds count to count."""
        return ErrorCounts(*(a + b for a, b in zip(self, other, strict=True)))


class ErrorRate(NamedTuple):
    """A rate and the two integers it is made of."""

    rate: Float[Array, ""]
    """Errors per reference token."""
    errors: Int[Array, ""]
    """Substitutions, insertions and deletions over the whole batch."""
    reference_length: Int[Array, ""]
    """Reference tokens over the whole batch."""


def edit_distance(
    hyp: Int[ArrayLike, "*B L"],
    hyp_paddings: Shaped[ArrayLike, "*B L"] | None,
    ref: Int[ArrayLike, "*B M"],
    ref_paddings: Shaped[ArrayLike, "*B M"] | None,
) -> Int[Array, "*B"]:
    """Fewest substitutions, insertions and deletions that turn one sequence into the other.

    Args:
      hyp: token ids, any integers.
      hyp_paddings: nonzero where padded, anywhere; None pads nothing.
      ref: token ids to compare with.
      ref_paddings: likewise.

    Returns:
      Distances as int32, in tokens; the other's length if one side is empty.

    Raises:
      ValueError: if ids are not integers or the shapes disagree.

    Example:
      >>> kitten = jnp.array([ord(letter) for letter in "kitten"])
      >>> sitting = jnp.array([ord(letter) for letter in "sitting"])
      >>> int(edit_distance(kitten, None, sitting, None))
      3

    References:
      Wagner & Fischer 1974, "The string-to-string correction problem".
    """
    pair = _pair("edit_distance", hyp, hyp_paddings, ref, ref_paddings)
    return _cheapest(pair, substitution=1, gap=1)


def error_counts(
    hyp: Int[ArrayLike, "*B L"],
    hyp_paddings: Shaped[ArrayLike, "*B L"] | None,
    ref: Int[ArrayLike, "*B M"],
    ref_paddings: Shaped[ArrayLike, "*B M"] | None,
) -> ErrorCounts:
    """The edit distance, told apart into substitutions, insertions and deletions.

    Several alignments can have the fewest errors; the one counted here has the fewest
    substitutions among them, and so the most correct tokens.

    Args:
      hyp: token ids, any integers.
      hyp_paddings: nonzero where padded, anywhere; None pads nothing.
      ref: token ids to compare with.
      ref_paddings: likewise.

    Returns:
      `ErrorCounts` of int32, one per example.

    Raises:
      ValueError: if ids are not integers, the shapes disagree, or `L + M` exceeds 32767.

    Example:
      >>> counts = error_counts(jnp.array([7, 8, 9]), None, jnp.array([7, 5]), None)
      >>> [int(count) for count in counts], float(counts.rate)
      ([1, 1, 0, 2], 1.0)
    """
    pair = _pair("error_counts", hyp, hyp_paddings, ref, ref_paddings)
    longest = pair.hyp.shape[-1] + pair.ref.shape[-1]
    if longest >= 1 << 15:
        remedy = "For longer sequences edit_distance gives the sum of the three counts."
        _checks.fail("error_counts", "hyp and ref", "have L + M < 32768", longest, remedy)
    # Errors in the high half and substitutions in the low half of one integer: its minimum is
    # the fewest errors first, the fewest substitutions second.
    cost = _cheapest(pair, substitution=(1 << 16) + 1, gap=1 << 16)
    errors, substitutions = cost >> 16, cost & 0xFFFF
    gaps = errors - substitutions  # insertions + deletions
    surplus = paddings_to_lengths(~pair.is_hyp) - pair.ref_length  # insertions - deletions
    return ErrorCounts(substitutions, (gaps + surplus) >> 1, (gaps - surplus) >> 1, pair.ref_length)


def cer(
    hyp: Int[ArrayLike, "*B L"],
    hyp_paddings: Shaped[ArrayLike, "*B L"] | None,
    ref: Int[ArrayLike, "*B M"],
    ref_paddings: Shaped[ArrayLike, "*B M"] | None,
) -> ErrorRate:
    """Character error rate of a batch: all its errors over all its reference tokens.

    To go on over several batches or devices, add up `error_counts` instead.

    Args:
      hyp: token ids, any integers.
      hyp_paddings: nonzero where padded, anywhere; None pads nothing.
      ref: token ids to compare with.
      ref_paddings: likewise.

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
    pair = _pair("cer", hyp, hyp_paddings, ref, ref_paddings)
    errors = jnp.sum(_cheapest(pair, substitution=1, gap=1), dtype=jnp.int32)
    length = jnp.sum(pair.ref_length, dtype=jnp.int32)
    return ErrorRate(_rate(errors, length), errors, length)


class _Pair(NamedTuple):
    """Two checked sides; the reference packed to the left, the hypothesis as it came."""

    hyp: Int[Array, "*B L"]
    is_hyp: Bool[Array, "*B L"]
    ref: Int[Array, "*B M"]
    ref_length: Int[Array, "*B"]


def _pair(
    function: str,
    hyp: ArrayLike,
    hyp_paddings: ArrayLike | None,
    ref: ArrayLike,
    ref_paddings: ArrayLike | None,
) -> _Pair:
    hyp_ids = _checks.token_ids(function, "hyp", hyp)
    ref_ids = _checks.token_ids(function, "ref", ref)
    batch = hyp_ids.shape[:-1]
    if ref_ids.shape[:-1] != batch:
        requirement = f"have shape [*B, M] with *B = {batch}, as in hyp {hyp_ids.shape}"
        _checks.fail(function, "ref", requirement, ref_ids.shape)
    no_hyp = _checks.paddings(function, "hyp_paddings", hyp_paddings, hyp_ids.shape)
    no_ref = _checks.paddings(function, "ref_paddings", ref_paddings, ref_ids.shape)
    # Compared in a dtype that holds both, chosen by name so that strict promotion allows it.
    common = max(hyp_ids.dtype, ref_ids.dtype, key=lambda dtype: jnp.iinfo(dtype).max)
    ref_packed = pack_left(ref_ids.astype(common), ~no_ref)
    return _Pair(hyp_ids.astype(common), ~no_hyp, ref_packed, paddings_to_lengths(no_ref))


def _cheapest(pair: _Pair, *, substitution: int, gap: int) -> Int[Array, "*B"]:
    """Cost of the cheapest alignment, row by row over the hypothesis.

    `row[j]` is the cost of the hypothesis so far against the first j reference tokens. Running
    along a row, deletions make each entry depend on its left neighbour; with `j * gap` taken
    off, that chain is a running minimum.
    """
    places = jnp.arange(pair.ref.shape[-1] + 1, dtype=jnp.int32) * gap
    slope = jnp.broadcast_to(places, (*pair.ref_length.shape, places.size))

    def step(row, column):
        token, is_token = column
        differs = (pair.ref != token[..., None]).astype(jnp.int32)
        replaced = row[..., :-1] + differs * substitution
        inserted = row + gap
        arrived = jnp.minimum(inserted[..., 1:], replaced)
        arrived = jnp.concatenate([inserted[..., :1], arrived], axis=-1)
        arrived = lax.cummin(arrived - slope, axis=slope.ndim - 1) + slope
        return jnp.where(is_token[..., None], arrived, row), None

    columns = (jnp.moveaxis(pair.hyp, -1, 0), jnp.moveaxis(pair.is_hyp, -1, 0))
    row, _ = lax.scan(step, slope, columns)
    return jnp.take_along_axis(row, pair.ref_length[..., None], axis=-1)[..., 0]


def _rate(errors: Int[Array, "*B"], reference_length: Int[Array, "*B"]) -> Float[Array, "*B"]:
    return errors.astype(jnp.float32) / jnp.maximum(reference_length, 1).astype(jnp.float32)
