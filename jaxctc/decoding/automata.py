"""A weighted automaton with failure arcs, as arrays: the form of n-grams and hot words."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int

# States that int32 can number, and numbers whose sums float32 can hold.
MOST, LARGEST = 2**31 - 2, 1e30


def sizes_of(model: object, **arrays: Array) -> str:
    """One line about a model: the lengths of some of its arrays, whose numbers nobody wants to see.

    JAX puts other objects in their places at times, and shows them.
    """
    lengths = {name: (np.shape(array) or ("?",))[-1] for name, array in arrays.items()}
    shown = ", ".join(f"{name}={length}" for name, length in lengths.items())
    return f"{type(model).__name__}({shown})"


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "initial_state",
        "arc_keys",
        "arc_weight",
        "arc_next",
        "bucket_start",
        "fail_state",
        "fail_weight",
        "final_weight",
        "missing_state",
        "missing_weight",
    ],
    meta_fields=["attempts", "probes"],
)
@dataclasses.dataclass(frozen=True)
class Automaton:
    """States, and arcs between them that tokens take; a state without the arc fails to another.

    A state fails until one has an arc for the token, and pays for every failure. Where the last
    one, that which fails to itself, has none, the token leads to `missing_state`. Arcs lie in the
    buckets of a hash table: looking one up takes a fixed number of probes, and is exact.
    """

    initial_state: Int[Array, ""]
    """The state before any token; states are numbers, as tokens are."""
    arc_keys: Int[Array, "arcs 2"]
    """State and token of each arc."""
    arc_weight: Float[Array, " arcs"]
    """What it is worth to take it, in nats."""
    arc_next: Int[Array, " arcs"]
    """Where it leads."""
    bucket_start: Int[Array, " buckets"]
    """First arc of each bucket; there are 2ⁿ."""
    fail_state: Int[Array, " states"]
    """Where each state fails to."""
    fail_weight: Float[Array, " states"]
    """What failing is worth, in nats."""
    final_weight: Float[Array, " states"]
    """What ending in each state is worth, in nats."""
    missing_state: Int[Array, ""]
    """Where a token without any arc leads."""
    missing_weight: Float[Array, ""]
    """What such a token is worth, in nats, beside the failures before it."""
    attempts: int
    """Static: the states of the longest chain of failures."""
    probes: int
    """Static: the arcs of the fullest bucket."""

    def __repr__(self) -> str:
        """One line, without the numbers."""
        return sizes_of(self, states=self.fail_state, arcs=self.arc_weight)

    def score_and_advance(
        self, state: Int[Array, ""], token: Int[ArrayLike, ""]
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Score of the token after `state`, in nats, failures included, and the state after it."""
        chain, spent = [state], [jnp.zeros((), jnp.float32)]
        for _ in range(self.attempts - 1):
            spent.append(spent[-1] + self.fail_weight[chain[-1]])
            chain.append(self.fail_state[chain[-1]])
        states = jnp.stack(chain)
        tokens = jnp.full_like(states, token)
        keys = jnp.stack([states, tokens], axis=-1)
        starts = self.bucket_start[_bucket(keys, self.bucket_start.shape[0])]
        # Probes may run into the next bucket, where no key is the same.
        probes = jnp.arange(self.probes, dtype=jnp.int32)
        places = jnp.minimum(starts[:, None] + probes[None], self.arc_next.shape[0] - 1)
        # Not `all` over pairs: an axis of two, innermost, fills a sixty-fourth of a TPU's lanes.
        of_state, of_token = jnp.unstack(self.arc_keys, axis=-1)
        is_hit = (of_state[places] == states[:, None]) & (of_token[places] == tokens[:, None])
        costs = jnp.broadcast_to(jnp.stack(spent)[:, None], places.shape)

        first = lax.argmax(is_hit.reshape(-1), 0, jnp.int32)
        is_found, place, cost = (part.reshape(-1)[first] for part in (is_hit, places, costs))
        found = cost + self.arc_weight[place]
        score = jnp.where(is_found, found, spent[-1] + self.missing_weight)
        return score, jnp.where(is_found, self.arc_next[place], self.missing_state)

    def final_score(self, state: Int[Array, ""]) -> Float[Array, ""]:
        """What it is worth, in nats, that the hypothesis ends in `state`."""
        return self.final_weight[state]


def key_pairs(pairs: Iterable[tuple[int, int]]) -> Int[np.ndarray, "pairs 2"]:
    """States and tokens of arcs as an array, even if there are none."""
    return np.fromiter(itertools.chain.from_iterable(pairs), np.int64).reshape(-1, 2)


def build_automaton(
    *,
    keys: np.ndarray,
    weights: np.ndarray,
    nexts: np.ndarray,
    fails: tuple[np.ndarray, np.ndarray],
    final: np.ndarray,
    initial: int = 0,
    missing: tuple[int, float] = (0, 0.0),
) -> Automaton:
    """An automaton from its arcs and failures (state and weight of each) in any order."""
    # An arc that nothing takes: no array is empty.
    keys = np.concatenate([keys, [(-1, -1)]]).astype(np.int32)
    weights, nexts = np.append(weights, 0.0), np.append(nexts, 0)
    buckets = 1 << (2 * len(keys)).bit_length()
    bucket = _bucket(keys, buckets)
    order = np.argsort(bucket, kind="stable")
    filled = np.bincount(bucket, minlength=buckets)

    attempts, reached = 1, np.arange(len(final))
    while (fails[0][reached] != reached).any():
        attempts, reached = attempts + 1, fails[0][reached]
    with np.errstate(over="ignore"):  # log-probabilities below float32 are -inf
        return Automaton(
            initial_state=jnp.asarray(initial, jnp.int32),
            arc_keys=jnp.asarray(keys[order]),
            arc_weight=jnp.asarray(weights[order].astype(np.float32)),
            arc_next=jnp.asarray(nexts[order], jnp.int32),
            bucket_start=jnp.asarray(np.cumsum(filled) - filled, jnp.int32),
            fail_state=jnp.asarray(fails[0], jnp.int32),
            fail_weight=jnp.asarray(fails[1].astype(np.float32)),
            final_weight=jnp.asarray(final.astype(np.float32)),
            missing_state=jnp.asarray(missing[0], jnp.int32),
            missing_weight=jnp.asarray(missing[1], jnp.float32),
            attempts=attempts,
            probes=int(filled.max()),
        )


def _bucket(keys, buckets: int):
    """Bucket of each state and token, by the finaliser of MurmurHash3; for NumPy and JAX."""
    state, token = (keys[..., part].astype(np.uint32) for part in (0, 1))
    mixed = state * np.uint32(0x9E3779B1) ^ token
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (1, 16)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(multiplier)
    return (mixed & np.uint32(buckets - 1)).astype(np.int32)
