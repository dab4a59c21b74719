"""What type checkers say to those who use the package; .ci/run also has them look at the wheel.

Nothing here runs. An `ignore` that silences no error is an error itself.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
from typing import assert_type

import jax
import jax.numpy as jnp

import jaxctc


def of_a_model(logits: jax.Array, labels: jax.Array) -> None:
    assert_type(jaxctc.ctc_loss(logits, None, labels, None), jax.Array)
    assert_type(jaxctc.greedy_decode(logits, None).lengths, jax.Array)
    assert_type(jaxctc.cer(labels, None, labels, None).rate, jax.Array)
    assert_type(jaxctc.lengths_to_paddings(jnp.array([2]), 3), jax.Array)

    jaxctc.ctc_loss(logits, None, labels, None, blank=0)  # pyright: ignore[reportCallIssue]
    jaxctc.ctc_loss(logits, None, labels, None, 0)  # pyright: ignore[reportCallIssue]
    jaxctc.ctc_loss(logits, labels)  # pyright: ignore[reportCallIssue]
    jaxctc.ctc_loss("logits", None, labels, None)  # pyright: ignore[reportArgumentType]
    jaxctc.ctc_loss(logits, None, labels, None, blank_id="0")  # pyright: ignore[reportArgumentType]
    jaxctc.ctcloss(logits, None, labels, None)  # pyright: ignore[reportAttributeAccessIssue]
