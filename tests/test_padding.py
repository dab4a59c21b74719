import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import CASES, IDS
from every_pair import every_sequence, padded
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import checkify

from jaxctc import (
    is_feasible,
    label_paddings_from,
    lengths_to_paddings,
    paddings_to_lengths,
    required_frames,
    validate,
)
from jaxctc._core.checks import saturated
from jaxctc.padding import pack_left


@given(st.lists(st.integers(0, 9), max_size=4))
def test_lengths_and_paddings_are_inverse(lengths):
    lengths = np.array(lengths, np.int32)
    paddings = lengths_to_paddings(lengths, 9)
    assert paddings.shape == (*lengths.shape, 9)
    assert paddings.dtype == bool
    np.testing.assert_array_equal(paddings_to_lengths(paddings), lengths)


def test_lengths_to_paddings_takes_any_batch_and_any_length():
    assert lengths_to_paddings(2, 3).tolist() == [False, False, True]
    assert lengths_to_paddings(jnp.array(7), 2).tolist() == [False, False]
    assert lengths_to_paddings(jnp.array(-1), 2).tolist() == [True, True]
    assert lengths_to_paddings(jnp.zeros((2, 0), jnp.int32), 3).shape == (2, 0, 3)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float16, jnp.bfloat16])
def test_counting_does_not_round(dtype):
    paddings = jnp.asarray(np.arange(5000) >= 4001).astype(dtype)
    assert paddings_to_lengths(paddings) == 4001


def test_label_paddings_from_sentinels():
    labels = jnp.array([[3, -1, -100], [0, 2, 5]])
    np.testing.assert_array_equal(label_paddings_from(labels), [[0, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(label_paddings_from(labels, padding=0), [[0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(label_paddings_from(labels, padding=-100), [[0, 0, 1], [0] * 3])


def beyond_int32(dtype):
    """Ids that end in the 32 bits of 2 and of -1, or 31 for uint32, which has no more."""
    return np.array([2**31 + 2, 2**32 - 1] if dtype == np.uint32 else [2**32 + 2, 2**33 - 1], dtype)


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("x64", [False, True])
def test_large_ids_are_no_padding_and_large_lengths_no_small_ones(dtype, x64):
    with jax.enable_x64(x64):
        large = beyond_int32(dtype)
        assert not label_paddings_from(large).any()
        assert not label_paddings_from(large, padding=-1).any()
        assert not lengths_to_paddings(jnp.asarray(saturated(large)), 3).any()
        with pytest.raises(ValueError, match=r"lengths must lie in \[0, 3\]"):
            lengths_to_paddings(large, 3)


@pytest.mark.usefixtures("x64")
def test_label_paddings_of_64_bits():
    labels = np.array([1, -(2**40), 3, -100])
    assert label_paddings_from(labels).tolist() == [False, True, False, True]
    assert label_paddings_from(labels, padding=3).tolist() == [False, False, True, False]


def greedy_requirement(labels):
    """One frame a label, and one more wherever it repeats the last one."""
    return sum(1 + (i > 0 and labels[i - 1] == label) for i, label in enumerate(labels))


required_of = jax.jit(required_frames)


@pytest.mark.smoke
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=8, max_size=8))
def test_required_frames(entries):
    labels = np.array([label for label, _ in entries], np.int32)
    paddings = np.array([padded for _, padded in entries], bool)
    assert required_of(labels, paddings) == greedy_requirement(labels[~paddings].tolist())
    assert required_of(labels[:0], None) == 0


WILDCARD = 3
# All sequences of up to three labels, two and a wildcard, right-padded.
WITH_WILDCARDS = list(every_sequence(WILDCARD + 1, 0, 3))


@pytest.mark.parametrize("label_loop", [True, False])
def test_wildcards_require_nothing(label_loop):
    """The fewest frames over which there is an alignment, of all that the oracle finds."""
    labels, label_paddings = padded(WITH_WILDCARDS, 3)
    options = {"label_loop": label_loop, "wildcard_id": WILDCARD}
    required = required_frames(labels, label_paddings, **options)
    uniform = np.log(np.full((5, 3), 1 / 3))
    for frames in range(6):
        logits = np.zeros((len(labels), frames, 3), np.float32)
        feasible = is_feasible(logits, None, labels, label_paddings, **options)
        for row, sequence in enumerate(WITH_WILDCARDS):
            found = oracles.alignments(
                uniform[:frames], sequence, wildcard=WILDCARD, label_loop=label_loop
            )
            assert feasible[row] == bool(found) == (required[row] <= frames), (sequence, frames)


def test_validate_with_wildcards():
    """They are no class, and one of them does not spare equal neighbours the frame between."""
    logits, labels = jnp.zeros((1, 3, 3)), jnp.array([[1, WILDCARD, 1]])
    validate(logits, None, labels, None, wildcard_id=WILDCARD)
    with pytest.raises(ValueError, match="got 3 at position 1"):
        validate(logits, None, labels, None)
    with pytest.raises(ValueError, match="got 2 frames for labels that require 3"):
        validate(logits[:, :2], None, labels, None, wildcard_id=WILDCARD)
    with pytest.raises(ValueError, match=r"required_frames: wildcard_id must be .*; got -1"):
        required_frames(labels, wildcard_id=-1)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_is_feasible(case):
    """It knows all that shapes and ids tell; the three cases with -inf it cannot see."""
    feasible = is_feasible(*case.arguments, blank_id=case.blank_id)
    seen = case._replace(logits=np.zeros_like(case.logits))
    assert feasible == (seen.truth().loss < np.inf)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_validate(case):
    hidden = np.isneginf(case.logits).any()
    if case.kind == "finite" or (case.kind == "infeasible" and hidden):
        validate(*case.arguments, blank_id=case.blank_id)
        return
    with pytest.raises(ValueError, match=r"^validate: (labels|logits) must .*; got "):
        validate(*case.arguments, blank_id=case.blank_id)


UNKNOWN = (
    "If this entry is padding, say so in label_paddings (see label_paddings_from); if not, the "
    "model needs a class for it, beside the blank; a wildcard is named by wildcard_id."
)
FAULTS = {
    "blank": (
        lambda logits, labels: (logits, labels.at[1, 0].set(0)),
        "labels of example 1 must be class ids in [0, 4) other than the blank 0; "
        f"got 0 at position 0. {UNKNOWN}",
    ),
    "no class": (
        lambda logits, labels: (logits, labels.at[0, 1].set(4)),
        "labels of example 0 must be class ids in [0, 4) other than the blank 0; "
        f"got 4 at position 1. {UNKNOWN}",
    ),
    "too few frames": (
        lambda logits, labels: (logits[:, :2], labels.at[1].set(3)),
        "labels of example 1 must fit into its frames; got 2 frames for labels that require 3. "
        "Repeated labels need a blank between them: see required_frames.",
    ),
    "NaN": (
        lambda logits, labels: (logits.at[1, 2, 3].set(jnp.nan), labels),
        "logits of example 1 must be finite or -inf in the frames in use; "
        "got nan at frame 2, class 3. The loss of this example is NaN.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_validate_names_example_and_cause(fault):
    spoil, message = FAULTS[fault]
    logits, labels = spoil(jnp.zeros((2, 3, 4)), jnp.array([[1, 2], [3, 1]]))
    with pytest.raises(ValueError, match=r"^validate: ") as error:
        validate(logits, None, labels, None)
    assert str(error.value) == f"validate: {message}"


@pytest.mark.parametrize("fault", FAULTS)
def test_validate_under_jit(fault):
    """The same message, by way of checkify."""
    spoil, message = FAULTS[fault]
    checked = jax.jit(checkify.checkify(lambda *pair: validate(pair[0], None, pair[1], None)))
    logits, labels = jnp.zeros((2, 3, 4)), jnp.array([[1, 2], [3, 1]])
    error, _ = checked(logits, labels)
    assert error.get() is None
    error, _ = checked(*spoil(logits, labels))
    assert error.get().startswith(f"validate: {message}")


def test_validate_names_examples_of_any_batch():
    logits, labels = jnp.zeros((2, 3, 5, 4)), jnp.ones((2, 3, 1), jnp.int32)
    with pytest.raises(ValueError, match=r"labels of example 1, 2 must"):
        validate(logits, None, labels.at[1, 2].set(9), None)
    with pytest.raises(ValueError, match=r"validate: labels must"):
        validate(logits[0, 0], None, jnp.array([0]), None)


@given(
    st.sampled_from([0, 1, 9]).flatmap(
        lambda size: st.lists(
            st.tuples(st.integers(-9, 9), st.booleans()), min_size=size, max_size=size
        )
    )
)
def test_pack_left(entries):
    values = np.array([value for value, _ in entries], np.int32)
    keep = np.array([kept for _, kept in entries], bool)
    expected = np.full(len(values), 77)
    expected[: keep.sum()] = values[keep]
    np.testing.assert_array_equal(pack_left(jnp.asarray(values), jnp.asarray(keep), 77), expected)
