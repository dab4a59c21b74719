"""Every message, read as a user would: which call, which argument, what came, what to do.

Those that a user meets first are in test_newcomers_mistakes.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxctc import (
    cer,
    collapse,
    ctc_loss,
    ctc_loss_with_forward_probs,
    edit_distance,
    greedy_decode,
    is_feasible,
    label_paddings_from,
    lengths_to_paddings,
    paddings_to_lengths,
    required_frames,
    validate,
)

LOGITS, LABELS = jnp.zeros((4, 9, 5)), jnp.ones((4, 3), jnp.int32)


def loss(logits=LOGITS, logit_paddings=None, labels=LABELS, label_paddings=None, **options):
    return ctc_loss(logits, logit_paddings, labels, label_paddings, **options)


MESSAGES = {
    "labels of another batch": (
        lambda: loss(labels=LABELS[:3]),
        "ctc_loss: labels must have shape [*B, N] with *B = (4,), as in logits (4, 9, 5); "
        "got (3, 3).",
    ),
    "scalar labels": (
        lambda: loss(labels=jnp.int32(1)),
        "ctc_loss: labels must have shape [*B, N]; got ().",
    ),
    "label paddings of another shape": (
        lambda: loss(label_paddings=jnp.zeros((4, 9))),
        "ctc_loss: label_paddings must have shape (4, 3); got (4, 9). "
        "One value per position: 0 = in use, 1 = padded.",
    ),
    "blank too far back": (
        lambda: ctc_loss_with_forward_probs(LOGITS, None, LABELS, None, blank_id=-6),
        "ctc_loss_with_forward_probs: blank_id must be a class id in [-5, 5); got -6. "
        "There are K = 5 classes, the blank included.",
    ),
    "a log 0 of more than one number, with rows": (
        lambda: ctc_loss_with_forward_probs(LOGITS, None, LABELS, None, log_epsilon=jnp.zeros(4)),
        "ctc_loss_with_forward_probs: log_epsilon must be one real number; "
        "got an array of float32[4].",
    ),
    "float blank": (
        lambda: loss(blank_id=0.0),  # pyright: ignore[reportArgumentType]
        "ctc_loss: blank_id must be a static integer; got 0.0 of type float. "
        "Under jit, mark it static (static_argnames) or close over it.",
    ),
    "no classes": (
        lambda: loss(jnp.zeros((4, 9, 0))),
        "ctc_loss: blank_id must be a class id in [0, 0); got 0. "
        "There are K = 0 classes, the blank included.",
    ),
    "is_feasible": (
        lambda: is_feasible(LOGITS, None, LABELS[:3], None),
        "is_feasible: labels must have shape [*B, N] with *B = (4,), as in logits (4, 9, 5); "
        "got (3, 3).",
    ),
    "validate": (
        lambda: validate(LOGITS[0, 0], None, LABELS[0], None),
        "validate: logits must have shape [*B, T, K]; got (5,). One example has shape [T, K].",
    ),
    "greedy_decode": (
        lambda: greedy_decode(LOGITS, jnp.zeros((4, 5))),
        "greedy_decode: logit_paddings must have shape (4, 9); got (4, 5). "
        "One value per position: 0 = in use, 1 = padded.",
    ),
    "collapse": (
        lambda: collapse(LOGITS),  # pyright: ignore[reportArgumentType]
        "collapse: frame_labels must be integers; got an array of float32[4, 9, 5]. "
        "Class ids are integers: see jnp.argmax for one-hot rows, astype for the rest.",
    ),
    "collapse, the last class for a blank": (
        lambda: collapse(LABELS, blank_id=-1),
        "collapse: blank_id must be an id in [0, 2147483647); got -1. "
        "How many classes there are is not known here, so none can be counted from the last.",
    ),
    "collapse, no class": (
        lambda: collapse(LABELS, blank_id=2**40),
        "collapse: blank_id must be an id in [0, 2147483647); got 1099511627776. "
        "How many classes there are is not known here, so none can be counted from the last.",
    ),
    "edit_distance": (
        lambda: edit_distance(LABELS, None, LABELS[:2], None),
        "edit_distance: ref must have shape [*B, M] with *B = (4,), as in hyp (4, 3); got (2, 3).",
    ),
    "cer": (
        lambda: cer(LABELS, jnp.array([3, 3, 2, 1]), LABELS, None),
        "cer: hyp_paddings must have shape (4, 3); got (4,). "
        "For lengths, pass lengths_to_paddings(lengths, 3).",
    ),
    "lengths_to_paddings, array size": (
        lambda: lengths_to_paddings(jnp.array([1]), np.array([1, 2])),  # pyright: ignore[reportArgumentType]
        "lengths_to_paddings: max_length must be a static integer; got an array of int64[2]. "
        "Under jit, mark it static (static_argnames) or close over it.",
    ),
    "paddings_to_lengths": (
        lambda: paddings_to_lengths(1.0),
        "paddings_to_lengths: paddings must have shape [*B, L]; got ().",
    ),
    "label_paddings_from": (
        lambda: label_paddings_from(LABELS, padding="zero"),  # pyright: ignore[reportArgumentType]
        "label_paddings_from: padding must be \"negative\" or a class id; got 'zero'.",
    ),
    "required_frames": (
        lambda: required_frames(LABELS, LABELS[0]),
        "required_frames: label_paddings must have shape (4, 3); got (3,). "
        "One value per position: 0 = in use, 1 = padded.",
    ),
}


@pytest.mark.parametrize("mistake", MESSAGES)
def test_message(mistake):
    call, message = MESSAGES[mistake]
    with pytest.raises(ValueError, match=r": .* must ") as error:
        call()
    assert str(error.value) == message


def test_mistakes_are_found_while_tracing():
    """Nothing has run yet when the error comes."""
    with pytest.raises(ValueError, match="ctc_loss: labels must"):
        jax.eval_shape(
            functools.partial(ctc_loss, logit_paddings=None, label_paddings=None),
            logits=jax.ShapeDtypeStruct((4, 9, 5), jnp.float32),
            labels=jax.ShapeDtypeStruct((3, 3), jnp.int32),
        )
