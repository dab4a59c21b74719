"""The frame step and the scan over it, for any semiring.

This is the only place of the library that loops over the frames of a lattice. The state after
frame t is alpha_t(s): the weight of all path beginnings over frames 0 … t that are in state s
at frame t, the emission of frame t included (Graves et al. 2006, section 4.1).

A virtual row before the first frame holds weight one in blank 0 and zero elsewhere. One step
from there leads to blank 0 or label 0, which is where every path starts, so the first frame is
a frame like any other, and a pair without frames needs no case of its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxctc.lattice import Lattice
from jaxctc.padding import lengths_to_paddings
from jaxctc.semirings import Semiring


class States(NamedTuple):
    """One weight per state of the lattice."""

    blank: Float[Array, "*B N+1"]
    label: Float[Array, "*B N"]


class Frame(NamedTuple):
    """What one frame contributes."""

    blank_score: Float[Array, "*B"]
    label_score: Float[Array, "*B N"]
    is_frame: Bool[Array, "*B"]


def forward(lattice: Lattice, semiring: Semiring) -> Float[Array, "*B"]:
    """Total weight of all paths, one scan and no stored rows."""
    states, _ = _scan_frames(lattice, semiring, keep_rows=False)
    return _total(states, lattice, semiring)


def forward_rows(lattice: Lattice, semiring: Semiring) -> tuple[Float[Array, "*B"], States]:
    """Total weight of all paths, and the states after every frame, stacked `[T, *B, …]`.

    A padded frame repeats the row before it. States beyond the labels in use are zero.
    """
    states, rows = _scan_frames(lattice, semiring, keep_rows=True)
    assert rows is not None
    labels, count = lattice.can_skip.shape[-1], lattice.label_count
    beyond = States(lengths_to_paddings(count + 1, labels + 1), lengths_to_paddings(count, labels))
    rows = jax.tree.map(
        lambda row, out: jnp.where(out[None], jnp.full_like(row, semiring.zero), row), rows, beyond
    )
    return _total(states, lattice, semiring), rows


def _scan_frames(
    lattice: Lattice, semiring: Semiring, *, keep_rows: bool
) -> tuple[States, States | None]:
    def step(states: States, frame: Frame) -> tuple[States, States | None]:
        states = _advance(states, frame, lattice.can_skip, semiring)
        return states, states if keep_rows else None

    frames = Frame(lattice.blank_scores, lattice.label_scores, lattice.is_frame)
    return lax.scan(step, _before_first_frame(lattice, semiring), frames)


def _before_first_frame(lattice: Lattice, semiring: Semiring) -> States:
    zero = jnp.full(lattice.can_skip.shape, semiring.zero, lattice.label_scores.dtype)
    one = jnp.full((*zero.shape[:-1], 1), semiring.one, zero.dtype)
    return States(blank=jnp.concatenate([one, zero], axis=-1), label=zero)


def _advance(
    states: States, frame: Frame, can_skip: Bool[Array, "*B N"], semiring: Semiring
) -> States:
    """The states one frame later; a padded frame changes nothing."""
    before = _shift_right(states.label, semiring)
    into_blank = semiring.plus(states.blank, before)
    skipped = jnp.where(can_skip, before[..., :-1], jnp.full_like(states.label, semiring.zero))
    into_label = semiring.plus(states.label, states.blank[..., :-1], skipped)
    blank = semiring.times(into_blank, frame.blank_score[..., None])
    label = semiring.times(into_label, frame.label_score)
    is_frame = frame.is_frame[..., None]
    return States(
        jnp.where(is_frame, blank, states.blank), jnp.where(is_frame, label, states.label)
    )


def _shift_right(label: Float[Array, "*B N"], semiring: Semiring) -> Float[Array, "*B N+1"]:
    """The label before each blank. Not by `.at[].set`, which XLA:CPU can miscompile
    (openxla/xla#49176)."""
    edge = jnp.full((*label.shape[:-1], 1), semiring.zero, label.dtype)
    return jnp.concatenate([edge, label], axis=-1)


def _total(states: States, lattice: Lattice, semiring: Semiring) -> Float[Array, "*B"]:
    """A path ends in the last label in use or in the blank behind it."""
    last = lattice.label_count[..., None]
    ends = [states.blank, _shift_right(states.label, semiring)]
    return semiring.plus(*(jnp.take_along_axis(end, last, axis=-1)[..., 0] for end in ends))
