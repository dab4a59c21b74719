"""Edit distance and one optimal alignment, 32 entries of the reference at a time.

Let `D[i, j]` be the distance between the first i units of the reference and the first j of the
hypothesis. Entries one row apart differ by -1, 0 or 1, so a column of D is two bits per row: does
it rise from the row above, does it fall (Myers 1999)? A column follows from the one before by a
handful of operations on whole words of 32 rows, and by a chain along the rows which is the carry
of an addition. What leaves a word at its last row enters the next one (Hyyrö 2003); here each
word works one column later than the word above it, so that all words of all examples take every
step together.

Units are tokens, or words spelled with several. Rows belong to tokens all the same: the row of a
unit is that of its last token. All other rows, those of padding among them, are *void*: nothing
changes across them, and in the additions they let every carry pass.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Int, UInt32

from jaxctc._core.sharding import varying_like

_ROWS = 32
_NO, _ONE, _TWO = np.uint32(0), np.uint32(1), np.uint32(2)
_FIRST, _SECOND = np.int32(0), np.int32(1)


class TokenSequence(NamedTuple):
    """A sequence of units. Where every unit is one token, the three masks are equal."""

    tokens: Int[Array, "*B L"]
    used: Bool[Array, "*B L"]
    """True for the tokens that spell units."""
    firsts: Bool[Array, "*B L"]
    """True for the first token of each unit."""
    lasts: Bool[Array, "*B L"]
    """True for the last token of each unit."""


class _Reference(NamedTuple):
    """W words of 32 rows for each of X examples; words lead, so that examples fill the lanes."""

    tokens: Int[Array, "32 W X"]
    unused: UInt32[Array, "W X"]
    firsts: UInt32[Array, "W X"]
    rows: UInt32[Array, "W X"]
    """The last tokens of units: the rows of D."""


class _Column(NamedTuple):
    """The carry of the scan over columns; each word of rows stands at a column of its own."""

    rises: UInt32[Array, "W X"]
    """Rows with D one more than in the row above."""
    falls: UInt32[Array, "W X"]
    """Rows with D one less."""
    spelled: UInt32[Array, "W X"]
    """Tokens up to which a reference unit agrees with the hypothesis unit so far."""
    passed: UInt32[Array, "1+W X"]
    """What enters each word from the one above: bit 0 says that D increased from the column
    before, bit 1 that it decreased, bit 2 is for `spelled`."""


class _Trace(NamedTuple):
    """What a walk back needs to know: at each step, the column that each word stood at."""

    risen: UInt32[Array, "steps W X"]
    """Where the column before rises."""
    fallen: UInt32[Array, "steps W X"]
    """Where the column before falls."""
    equal: UInt32[Array, "steps W X"]
    """Where the units of row and column are the same."""


@functools.partial(jax.jit, static_argnames="by_words")
def distance(hyp: TokenSequence, ref: TokenSequence, *, by_words: bool) -> Int[Array, "*B"]:
    """Fewest substitutions, insertions and deletions of units."""
    column, _ = _columns(_flat(hyp), _packed(_flat(ref)), by_words=by_words, keep=False)
    return _last_entry(column, _flat(hyp)).reshape(hyp.tokens.shape[:-1])


@functools.partial(jax.jit, static_argnames="by_words")
def distance_and_partners(
    hyp: TokenSequence, ref: TokenSequence, *, by_words: bool
) -> tuple[Int[Array, "*B"], Int[Array, "*B L"]]:
    """The distance, and an alignment that has it.

    The alignment gives each unit's last token of `hyp` the position of the last token of its
    partner in `ref`, and -1 to inserted units and all other tokens. Read from the end: a common
    ending is matched; in front of it, deletions come wherever one is optimal, an insertion where
    it is better than a substitution.
    """
    flat, reference = _flat(hyp), _packed(_flat(ref))
    column, trace = _columns(flat, reference, by_words=by_words, keep=True)
    partners = _walk_back(_Trace(*trace), column.rises, reference.rows, flat.lasts.T)
    batch = hyp.tokens.shape[:-1]
    return _last_entry(column, flat).reshape(batch), partners.T.reshape(hyp.tokens.shape)


def _flat(side: TokenSequence) -> TokenSequence:
    size = math.prod(side.tokens.shape[:-1])
    return TokenSequence(*(part.reshape(size, part.shape[-1]) for part in side))


def _packed(ref: TokenSequence) -> _Reference:
    """Rows of the reference as bits; row 0 is the lowest bit of word 0."""
    examples, rows = ref.tokens.shape
    words = max(1, -(-rows // _ROWS))

    def in_words(part):
        part = _pad(part, 1, 0, words * _ROWS - rows)
        return jnp.transpose(part.reshape(examples, words, _ROWS), (2, 1, 0))

    used, firsts, lasts = (_bits(in_words(part)) for part in ref[1:])
    return _Reference(in_words(ref.tokens), ~used, firsts, lasts)


def _bits(flags: Bool[Array, "32 W X"]) -> UInt32[Array, "W X"]:
    place = (_ONE << np.arange(_ROWS, dtype=np.uint32))[:, None, None]
    # A reduction, and not an expression of 32 terms: XLA on CPU keeps it in vector registers.
    return jnp.sum(jnp.where(flags, place, _NO), axis=0, dtype=jnp.uint32)


def _last_entry(column: _Column, hyp: TokenSequence) -> Int[Array, "X"]:
    """D in the last row: what the last column has in row 0, and all that it rises and falls."""
    steps = lax.population_count(column.rises).astype(jnp.int32)
    steps -= lax.population_count(column.falls).astype(jnp.int32)
    return jnp.sum(hyp.lasts, axis=-1, dtype=jnp.int32) + jnp.sum(steps, axis=0, dtype=jnp.int32)


def _columns(
    hyp: TokenSequence, ref: _Reference, *, by_words: bool, keep: bool
) -> tuple[_Column, tuple[UInt32[Array, "steps W X"], ...]]:
    """Goes through all columns of D; the last of them and, with `keep`, the fields of a trace."""
    words, examples = ref.rows.shape
    length, late = hyp.tokens.shape[-1], words - 1  # the last word is `late` steps late
    # In reversed order, what the words read at one step lies in one piece.
    tokens, used, firsts, lasts = (
        _pad(part.T[::-1], 0, late, words)
        for part in (hyp.tokens, *(-part.astype(jnp.uint32) for part in hyp[1:]))
    )

    def step(column, at):
        def window(part):
            return lax.dynamic_slice(part, (at, _FIRST), (words, examples))

        # Every pass over these words reads them again: let the comparison not be one of them.
        equal = lax.optimization_barrier(_bits(ref.tokens == window(tokens)[None]))
        if by_words:
            spelled, leaving = _spell(column, ref, equal, window(firsts))
            equal = spelled & ref.rows
            spelled = _select(window(used), spelled, column.spelled)
        else:
            spelled, leaving, equal = column.spelled, _NO, equal & ref.rows
        rises, falls, changes = _next_column(column, ref, equal)
        passed = lax.dynamic_update_slice(column.passed, changes | leaving, (_SECOND, _FIRST))
        is_column = window(lasts)
        rises = _select(is_column, rises, column.rises)
        falls = _select(is_column, falls, column.falls)
        # Kept are the old values: XLA on CPU would compute new ones twice, for two results.
        kept = (column.rises, column.falls, equal) if keep else ()
        return _Column(rises, falls, spelled, passed), kept

    none = jnp.zeros_like(ref.rows)
    above = jnp.ones_like(none[:1])  # row 0 of D increases with every column
    start = _Column(ref.rows, none, none, jnp.concatenate([above, none]))
    start = varying_like(start, tokens, used, ref.tokens)
    places = jnp.arange(length + late - 1, -1, -1, dtype=jnp.int32)
    return lax.scan(step, start, places)


def _next_column(
    column: _Column, ref: _Reference, equal: UInt32[Array, "W X"]
) -> tuple[UInt32[Array, "W X"], UInt32[Array, "W X"], UInt32[Array, "W X"]]:
    """Where the next column rises and falls, and what it passes on to the word below."""
    increased, decreased = column.passed[:-1] & _ONE, column.passed[:-1] >> _ONE & _ONE
    void = ~ref.rows
    # D decreases along a row if the entry above on the diagonal can be kept and this row rose.
    decreases_above, decreased = _carry(equal & column.rises, column.rises | void, decreased)
    kept = equal | column.falls | decreases_above
    increases = (column.falls | ~(kept | column.rises)) & ref.rows
    increases_above, increased = _carry(increases, void, increased)
    rises = (decreases_above | ~(kept | increases_above)) & ref.rows
    falls = kept & increases_above & ref.rows
    return rises, falls, increased | decreased << _ONE


def _spell(
    column: _Column,
    ref: _Reference,
    equal: UInt32[Array, "W X"],
    is_first: UInt32[Array, "W X"],
) -> tuple[UInt32[Array, "W X"], UInt32[Array, "W X"]]:
    """Extends every agreement of the two sequences by one token; what leaves a word, in bit 2."""
    entering = column.passed[:-1] >> _TWO
    follows, leaving = _carry(column.spelled, ref.unused, entering)
    agrees = _select(is_first, ref.firsts, follows & ~ref.firsts)
    return equal & agrees & ~ref.unused, leaving << _TWO


def _carry(
    source: UInt32[Array, "W X"], passing: UInt32[Array, "W X"], entering: UInt32[Array, "W X"]
) -> tuple[UInt32[Array, "W X"], UInt32[Array, "W X"]]:
    """For every bit, whether a carry comes to it from a lower source, over passing bits alone.

    Sources are or are not passing. The second result is what leaves each word.
    """
    through = source | passing
    total = source + through + entering
    return total ^ source ^ through, (source | through & ~total) >> np.uint32(_ROWS - 1)


def _select(mask: UInt32[Array, "W X"], new, old):
    """`jnp.where` for masks of whole words; on CPU these selects vectorise better."""
    return old ^ ((old ^ new) & mask)


def _pad(part, axis: int, before: int, after: int):
    """Zeros before and after one of two axes; `jnp.pad` would bring 64-bit zeros under x64."""
    room = [(0, 0, 0), (0, 0, 0)]
    room[axis] = (before, after, 0)
    return lax.pad(part, jnp.zeros((), part.dtype), room)


def _walk_back(
    trace: _Trace,
    rises: UInt32[Array, "W X"],
    rows: UInt32[Array, "W X"],
    is_column: Bool[Array, "L X"],
) -> Int[Array, "L X"]:
    """From the last entry of D to the first; for each column the row that it is matched with."""
    words, examples = rows.shape
    if is_column.shape[0] == 0:
        return jnp.zeros((0, examples), jnp.int32)
    in_line = [part.reshape(len(part) * words, examples) for part in trace]

    def step(carry, column):
        rises, left, in_ending = carry
        at, is_column = column
        risen, fallen, equal = (_column_of(part, at, words) for part in in_line)
        within = rows & _lowest(left, words)
        last, is_equal = _highest(within, equal)
        stop, is_insertion = _highest(within & ~rises, fallen)
        in_ending_still = in_ending & is_equal
        is_pair = in_ending_still | (stop > 0) & ~is_insertion
        row = jnp.where(in_ending_still, last, stop)
        left = jnp.where(is_column, row - is_pair.astype(jnp.int32), left)
        in_ending = jnp.where(is_column, in_ending_still, in_ending)
        partner = jnp.where(is_column & is_pair, row, jnp.zeros_like(row)) - 1
        return (risen, left, in_ending), partner

    rows_left = jnp.full(examples, words * _ROWS, jnp.int32)
    start = varying_like((rises, rows_left, jnp.ones(examples, bool)), rises, is_column)
    places = jnp.arange(is_column.shape[0], dtype=jnp.int32)
    return lax.scan(step, start, (places, is_column), reverse=True)[1]


def _column_of(part: UInt32[Array, "steps_W X"], at, words: int) -> UInt32[Array, "W X"]:
    """One column, of which word w was w steps late."""
    examples = part.shape[-1]
    window = lax.dynamic_slice(part, (at * np.int32(words), _FIRST), (words * words, examples))
    return lax.slice(window, (0, 0), window.shape, (words + 1, 1))


def _lowest(count: Int[Array, "X"], words: int) -> UInt32[Array, "W X"]:
    """Words of which the lowest `count` bits are set."""
    here = count[None] - np.arange(0, words * _ROWS, _ROWS, dtype=np.int32)[:, None]
    some = (_ONE << jnp.clip(here, _FIRST, np.int32(_ROWS - 1)).astype(jnp.uint32)) - _ONE
    return jnp.where(here >= _ROWS, ~_NO, some)


def _highest(
    bits: UInt32[Array, "W X"], flags: UInt32[Array, "W X"]
) -> tuple[Int[Array, "X"], Bool[Array, "X"]]:
    """One more than the place of the highest bit, 0 if there is none; and the flag at it."""
    place = np.uint32(_ROWS - 1) - jnp.minimum(lax.clz(bits), np.uint32(_ROWS - 1))
    offset = np.arange(1, bits.shape[0] * _ROWS, _ROWS, dtype=np.uint32)[:, None]
    found = ((place + offset) << _ONE) | (flags >> place & _ONE)
    best = jnp.max(jnp.where(bits == _NO, _NO, found), axis=0)
    return (best >> _ONE).astype(jnp.int32), (best & _ONE) == _ONE
