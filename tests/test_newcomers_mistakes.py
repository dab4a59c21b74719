"""What happens when … : the likely mistakes of a first hour, each with what comes of it.

Shapes, dtypes and options are checked while tracing (`ERRORS`). What only data can show has a
defined loss, and a message from `validate` (`SEEN_IN_THE_DATA`). Some are no mistakes (`HARMLESS`),
and two nobody can see, because they are legal (`LEGAL`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxctc import (
    cer,
    ctc_loss,
    error_counts,
    greedy_decode,
    lengths_to_paddings,
    pad_to_bucket,
    prefix_beam_search,
    required_frames,
    validate,
)

B, T, K, N = 4, 9, 5, 3
LOGITS = np.random.default_rng(0).normal(size=(B, T, K)).astype(np.float32)
LABELS = np.array([[1, 2, 3], [3, 1, 3], [1, 4, 2], [2, 2, 1]], np.int32)
NO_FRAME, NO_LABEL = np.zeros((B, T), bool), np.zeros((B, N), bool)
RAGGED = [[1, 2], [1], [1, 2, 3], [2]]


def call(
    function,
    logits: Any = LOGITS,
    logit_paddings: Any = NO_FRAME,
    labels: Any = LABELS,
    label_paddings: Any = NO_LABEL,
    **options,
):
    return function(logits, logit_paddings, labels, label_paddings, **options)


loss = functools.partial(call, ctc_loss)


def traced(option, value):
    """A static option as an argument of the compiled function."""
    return jax.jit(lambda value: loss(**{option: value}))(value)


NOT_AN_ARRAY = (
    "Pad rows of different lengths and say so in the paddings; "
    "jaxctc.Vocabulary maps strings to ids."
)
NOT_STATIC = "Under jit, mark it static (static_argnames) or close over it."
NOT_IDS = "Class ids are integers: see jnp.argmax for one-hot rows, astype for the rest."
LABELS_MUST = "ctc_loss: labels must have shape [*B, N] with *B = (4,), as in logits (4, 9, 5)"
ERRORS = {
    # Paddings
    "lengths for paddings": (
        lambda: loss(logit_paddings=[9, 9, 8, 7]),
        "ctc_loss: logit_paddings must have shape (4, 9); got (4,). "
        "For lengths, pass lengths_to_paddings(lengths, 9).",
    ),
    "lengths for the paddings of labels": (
        lambda: loss(label_paddings=[3, 3, 2, 1]),
        "ctc_loss: label_paddings must have shape (4, 3); got (4,). "
        "For lengths, pass lengths_to_paddings(lengths, 3).",
    ),
    "time-major paddings": (
        lambda: loss(logit_paddings=NO_FRAME.T),
        "ctc_loss: logit_paddings must have shape (4, 9); got (9, 4). "
        "The batch comes first, in all arguments: see jnp.swapaxes.",
    ),
    "paddings from in front of a stride": (
        lambda: loss(logit_paddings=np.zeros((B, 3 * T))),
        "ctc_loss: logit_paddings must have shape (4, 9); got (4, 27). "
        "If the model keeps one frame in 3, pass logit_paddings[..., ::3].",
    ),
    "paddings from in front of a stride, and a rest": (
        lambda: greedy_decode(LOGITS[0], np.zeros(2 * T - 1)),
        "greedy_decode: logit_paddings must have shape (9,); got (17,). "
        "If the model keeps one frame in 2, pass logit_paddings[..., ::2].",
    ),
    "paddings of more frames, which no stride leaves": (
        lambda: loss(logit_paddings=np.zeros((B, 2 * T + 1))),
        "ctc_loss: logit_paddings must have shape (4, 9); got (4, 19). "
        "One value per position: 0 = in use, 1 = padded.",
    ),
    "complex paddings": (
        lambda: loss(logit_paddings=NO_FRAME.astype(np.complex64)),
        "ctc_loss: logit_paddings must be booleans or real numbers, nonzero = padded; "
        "got an array of complex64[4, 9].",
    ),
    "lengths with a fraction, after a stride": (
        lambda: lengths_to_paddings(np.array([9, 8]) / 2, 4),
        "lengths_to_paddings: lengths must be integers; got float32. "
        "Whole frames remain of a stride: see // instead of /.",
    ),
    "lengths from in front of a stride": (
        lambda: lengths_to_paddings(np.array([9, 8]), 4),
        "lengths_to_paddings: lengths must lie in [0, 4]; got [9, 8]. "
        "They count the frames that the model keeps, or the labels in use.",
    ),
    "the largest length, traced": (
        lambda: jax.jit(lambda lengths: lengths_to_paddings(lengths, lengths.max()))(LABELS[0]),
        "lengths_to_paddings: max_length must be a static integer; got an array of int32[]. "
        f"{NOT_STATIC}",
    ),
    # Labels
    "one-hot labels": (
        lambda: loss(labels=np.eye(K, dtype=np.int32)[LABELS]),
        f"{LABELS_MUST}; got (4, 3, 5). "
        "Labels are class ids, not one-hot rows: see jnp.argmax(labels, axis=-1).",
    ),
    "one-hot labels, float": (
        lambda: loss(labels=np.eye(K, dtype=np.float32)[LABELS]),
        f"ctc_loss: labels must be integers; got an array of float32[4, 3, 5]. {NOT_IDS}",
    ),
    "float labels": (
        lambda: loss(labels=LABELS.astype(np.float32)),
        f"ctc_loss: labels must be integers; got an array of float32[4, 3]. {NOT_IDS}",
    ),
    "boolean labels": (
        lambda: loss(labels=LABELS > 0),
        f"ctc_loss: labels must be integers; got an array of bool[4, 3]. {NOT_IDS}",
    ),
    "ragged labels": (
        lambda: loss(labels=RAGGED),
        f"ctc_loss: labels must be one array of numbers; got a list of 4. {NOT_AN_ARRAY}",
    ),
    "strings": (
        lambda: loss(labels=["abc", "cab", "adb", "bba"]),
        f"ctc_loss: labels must be one array of numbers; got a list of 4. {NOT_AN_ARRAY}",
    ),
    "NumPy strings": (
        lambda: loss(labels=np.full((B, N), "a")),
        f"ctc_loss: labels must be one array of numbers; got an array of <U1[4, 3]. {NOT_AN_ARRAY}",
    ),
    "strings to compare": (
        lambda: cer("abc", None, "abd", None),  # pyright: ignore[reportArgumentType]
        f"cer: hyp must be one array of numbers; got 'abc' of type str. {NOT_AN_ARRAY}",
    ),
    "hypotheses for their labels": (
        lambda: error_counts(greedy_decode(LOGITS, None), None, LABELS, None),  # pyright: ignore[reportArgumentType]
        "error_counts: hyp must be one array of numbers; got a Hypotheses of 6. "
        "Pass a field of it, such as .labels.",
    ),
    "an id of 64 bits": (
        lambda: loss(labels=[[1, 2, 2**40]] * B),
        "ctc_loss: labels must hold integers of 32 bits; got a list of 4. "
        "64 bits come with jax_enable_x64.",
    ),
    "no labels": (
        lambda: loss(labels=None),
        f"ctc_loss: labels must be one array of numbers; got None of type NoneType. {NOT_AN_ARRAY}",
    ),
    "labels of one example": (
        lambda: loss(labels=LABELS[0]),
        f"{LABELS_MUST}; got (3,). Labels that all examples share are "
        "jnp.broadcast_to(labels, (4, 3)); for concatenated ones see jaxctc.adapters.torch.",
    ),
    "labels [N, B]": (
        lambda: loss(labels=LABELS.T),
        f"{LABELS_MUST}; got (3, 4). If labels are [N, B], pass jnp.swapaxes(labels, 0, 1).",
    ),
    "vmap over logits alone": (
        lambda: jax.vmap(ctc_loss, in_axes=(0, None, None, None))(LOGITS, None, LABELS, None),
        "ctc_loss: labels must have shape [*B, N] with *B = (), as in logits (9, 5); got (4, 3). "
        "logits have fewer batch axes; jax.vmap has to map over both (in_axes).",
    ),
    # Logits
    "time-major logits": (
        lambda: loss(np.swapaxes(LOGITS, 0, 1)),
        "ctc_loss: labels must have shape [*B, N] with *B = (9,), as in logits (9, 4, 5); "
        "got (4, 3). If logits are time-major [T, B, K], pass jnp.swapaxes(logits, 0, 1).",
    ),
    "time-major logits to decode": (
        lambda: greedy_decode(np.swapaxes(LOGITS, 0, 1), NO_FRAME),
        "greedy_decode: logit_paddings must have shape (9, 4); got (4, 9). "
        "The batch comes first, in all arguments: see jnp.swapaxes.",
    ),
    "logits of one frame": (
        lambda: loss(LOGITS[0, 0]),
        "ctc_loss: logits must have shape [*B, T, K]; got (5,). One example has shape [T, K].",
    ),
    "ragged logits": (
        lambda: loss([LOGITS[0], LOGITS[1, :7]]),
        f"ctc_loss: logits must be one array of numbers; got a list of 2. {NOT_AN_ARRAY}",
    ),
    "a masked array": (
        lambda: loss(np.ma.masked_array(LOGITS, mask=LOGITS > 0)),
        "ctc_loss: logits must be one array of numbers; "
        "got a masked array of float32[4, 9, 5]. "
        "Pass its .filled(0). Paddings, like its mask, are True where padded.",
    ),
    "frames to pad, traced": (
        lambda: jax.jit(lambda frames: pad_to_bucket([frames], [[1]], [(9, 3)]))(LOGITS[0]),
        "pad_to_bucket: frames of example 0 must be an array of NumPy; "
        "got a traced array of float32[9, 5]. It is for the host: call it outside of jit.",
    ),
    "complex logits": (
        lambda: loss(LOGITS.astype(np.complex64)),
        "ctc_loss: logits must be real numbers; got an array of complex64[4, 9, 5]. "
        "A model gives one score for each frame and class.",
    ),
    "boolean logits": (
        lambda: loss(LOGITS > 0),
        "ctc_loss: logits must be real numbers; got an array of bool[4, 9, 5]. "
        "A model gives one score for each frame and class.",
    ),
    # The order of arguments
    "logits and labels swapped": (
        lambda: loss(LABELS, None, LOGITS, None),
        "ctc_loss: logits must be scores, and labels class ids; "
        "got an array of int32[4, 3] and an array of float32[4, 9, 5]. Are the two swapped?",
    ),
    "labels second, lengths behind": (
        lambda: loss(LOGITS, LABELS, np.array([9, 9, 8, 7]), np.array([3, 3, 2, 1])),
        f"{LABELS_MUST}; got (4,). "
        "One number per example looks like lengths: are the arguments in their order?",
    ),
    "labels second, paddings behind": (
        lambda: loss(LOGITS, LABELS, NO_FRAME, NO_LABEL),
        f"ctc_loss: labels must be integers; got an array of bool[4, 9]. {NOT_IDS}",
    ),
    # Options
    "blank = K": (
        lambda: loss(blank_id=K),
        "ctc_loss: blank_id must be a class id in [-5, 5); got 5. "
        "There are K = 5 classes, the blank included.",
    ),
    "True for the blank": (
        lambda: loss(blank_id=True),
        "ctc_loss: blank_id must be a static integer; got True of type bool. " + NOT_STATIC,
    ),
    "blank traced": (
        lambda: traced("blank_id", 0),
        f"ctc_loss: blank_id must be a static integer; got an array of int32[]. {NOT_STATIC}",
    ),
    "beam width traced": (
        lambda: jax.jit(prefix_beam_search)(LOGITS, None, beam_width=4),
        "prefix_beam_search: beam_width must be a static integer; got an array of int32[]. "
        f"{NOT_STATIC}",
    ),
    "log-probabilities? traced": (
        lambda: traced("logits_normalized", True),
        "ctc_loss: logits_normalized must be True or False, and static; got an array of bool[]. "
        f"{NOT_STATIC}",
    ),
    "zero_infinity traced": (
        lambda: traced("zero_infinity", True),
        "ctc_loss: zero_infinity must be True or False, and static; got an array of bool[]. "
        f"{NOT_STATIC}",
    ),
    "a word for log 0": (
        lambda: loss(log_epsilon="-inf"),
        "ctc_loss: log_epsilon must be one real number; got '-inf' of type str.",
    ),
    "log 0 for each example": (
        lambda: loss(log_epsilon=[-1e5] * B),
        "ctc_loss: log_epsilon must be one real number; got a list of 4.",
    ),
    "a word for a flag": (
        lambda: required_frames(LABELS, label_loop="no"),  # pyright: ignore[reportArgumentType]
        "required_frames: label_loop must be True or False, and static; got 'no' of type str. "
        f"{NOT_STATIC}",
    ),
    "the blank as wildcard": (
        lambda: loss(wildcard_id=0),
        "ctc_loss: wildcard_id must be an id in [0, 2147483647), and not the blank 0; got 0. "
        "The number of classes is a good one.",
    ),
}
# Python itself answers, naming the call and the argument; so do type checkers, before.
PYTHONS_ERRORS = {
    "misspelt keyword": (lambda: loss(blank=0), "ctc_loss.* unexpected keyword argument 'blank'"),
    "a mean asked for": (lambda: loss(reduction="mean"), "ctc_loss.* argument 'reduction'"),
    "options by position": (
        lambda: ctc_loss(LOGITS, None, LABELS, None, 0),  # pyright: ignore[reportCallIssue]
        "ctc_loss.* takes 4 positional arguments but 5 were given",
    ),
    "paddings left out": (
        lambda: ctc_loss(LOGITS, LABELS),  # pyright: ignore[reportCallIssue]
        "ctc_loss.* missing 2 required positional arguments: 'labels' and 'label_paddings'",
    ),
}

FIT = "validate: labels of example {} must fit into its frames; got {} frames for labels that "
REPEATS = " Repeated labels need a blank between them: see required_frames."
KNOWN = "validate: labels of example {} must be class ids in [0, 5) other than the blank 0; got {} "
UNKNOWN = (
    "If this entry is padding, say so in label_paddings (see label_paddings_from); if not, the "
    "model needs a class for it, beside the blank; a wildcard is named by wildcard_id."
)
DOUBT = " Its first entry is padded: are {} a mask, or lengths? Nonzero is padding."
LENGTHS = np.array([9, 8, 7, 5])
MASK = np.arange(T) < LENGTHS[:, None]
LABEL_MASK = np.arange(N) < np.array([3, 3, 2, 1])[:, None]
ZERO_PADDED = np.where(LABEL_MASK, LABELS, 0)
# Arguments, for which examples the loss is inf, and what `validate` says.
SEEN_IN_THE_DATA = {
    "paddings of frames inverted": (
        {"logit_paddings": MASK},
        [True, True, True, False],
        FIT.format(0, 0) + "require 3." + REPEATS + DOUBT.format("logit_paddings"),
    ),
    "paddings of labels inverted": (
        {"labels": ZERO_PADDED, "label_paddings": LABEL_MASK},
        [False, False, True, True],
        KNOWN.format(2, 0) + f"at position 2. {UNKNOWN}" + DOUBT.format("label_paddings"),
    ),
    "lengths in the shape of paddings": (
        {"logit_paddings": np.repeat(LENGTHS[:, None], T, axis=1)},
        [True] * B,
        FIT.format(0, 0) + "require 3." + REPEATS + DOUBT.format("logit_paddings"),
    ),
    "a mask of frames, all in use": (
        {"logit_paddings": np.ones((B, T), bool)},
        [True] * B,
        FIT.format(0, 0) + "require 3." + REPEATS + DOUBT.format("logit_paddings"),
    ),
    "negative sentinels without paddings": (
        {"labels": np.where(LABEL_MASK, LABELS, -1)},
        [False, False, True, True],
        KNOWN.format(2, -1) + f"at position 2. {UNKNOWN}",
    ),
    "the blank among the labels": (
        {"labels": ZERO_PADDED},
        [False, False, True, True],
        KNOWN.format(2, 0) + f"at position 2. {UNKNOWN}",
    ),
    "a label id ≥ K": (
        {"labels": LABELS + 1},
        [False, False, True, False],
        KNOWN.format(2, 5) + f"at position 1. {UNKNOWN}",
    ),
    "fewer frames than labels": (
        {"logit_paddings": np.broadcast_to(np.arange(T) >= 3, (B, T))},
        [False, False, False, True],
        FIT.format(3, 3) + "require 4." + REPEATS,
    ),
}

# The same loss as without.
HARMLESS = {
    "lists of lists": {"logits": LOGITS.tolist(), "labels": LABELS.tolist()},
    "no paddings": {"logit_paddings": None, "label_paddings": None},
    "paddings of another dtype": {"label_paddings": np.zeros((B, N), np.float16)},
    "labels of another width": {"labels": LABELS.astype(np.uint8)},
    "log-probabilities without logits_normalized": {"logits": np.log(jax.nn.softmax(LOGITS))},
    "integer logits": {"logits": LOGITS.astype(int)},
    "narrow logits": {"logits": LOGITS.astype(jnp.bfloat16)},
    "NumPy's own booleans and integers": {"zero_infinity": np.True_, "blank_id": np.int64(0)},
}
# Nobody can tell that this was not meant: `validate` passes it.
PROBABILITIES = np.asarray(jax.nn.softmax(LOGITS))
LEGAL = {
    # Their logarithms are what was meant; the loss moves less than it should.
    "probabilities for logits": {"logits": PROBABILITIES},
    # Nothing in use costs nothing.
    "masks, everything in use": {"logit_paddings": ~NO_FRAME, "label_paddings": ~NO_LABEL},
}


@pytest.mark.parametrize("mistake", ERRORS)
def test_error(mistake):
    call, message = ERRORS[mistake]
    with pytest.raises(ValueError, match=r": .* must ") as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize("mistake", PYTHONS_ERRORS)
def test_error_of_python(mistake):
    call, message = PYTHONS_ERRORS[mistake]
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("mistake", SEEN_IN_THE_DATA)
def test_seen_in_the_data(mistake):
    arguments, is_infinite, message = SEEN_IN_THE_DATA[mistake]
    np.testing.assert_array_equal(np.isinf(loss(**arguments)), is_infinite)
    with pytest.raises(ValueError, match=r"^validate: ") as error:
        call(validate, **arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("mistake", HARMLESS)
def test_harmless(mistake):
    given = HARMLESS[mistake]
    logits = np.asarray(given.get("logits", LOGITS), np.float32)
    np.testing.assert_allclose(loss(**given), loss(logits), rtol=1e-6)


@pytest.mark.parametrize("mistake", LEGAL)
def test_legal(mistake):
    call(validate, **LEGAL[mistake])
    losses = loss(**LEGAL[mistake])
    if mistake == "probabilities for logits":
        assert (losses != loss(np.log(PROBABILITIES))).all()
    else:
        np.testing.assert_array_equal(losses, 0)


def test_an_empty_batch():
    """It has losses, none, and nothing that `validate` could object to."""
    arguments = LOGITS[:0], None, LABELS[:0], None
    assert loss(*arguments).shape == (0,)
    call(validate, *arguments)
