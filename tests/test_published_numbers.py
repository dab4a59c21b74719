"""Numbers that other projects have published for their CTC, in one place."""

import jax
import numpy as np
import pytest

from jaxctc import ctc_loss

PUBLISHED = [
    # Graves' own, in TensorFlow, warp-ctc and gtn: probabilities, labels, blank, loss.
    (
        "graves A",
        np.log([
            [0.633766, 0.221185, 0.0917319, 0.0129757, 0.0142857, 0.0260553],
            [0.111121, 0.588392, 0.278779, 0.0055756, 0.00569609, 0.010436],
            [0.0357786, 0.633813, 0.321418, 0.00249248, 0.00272882, 0.0037688],
            [0.0663296, 0.643849, 0.280111, 0.00283995, 0.0035545, 0.00331533],
            [0.458235, 0.396634, 0.123377, 0.00648837, 0.00903441, 0.00623107],
        ]),
        [0, 1, 2, 1, 0], 5, 3.34211,
    ),
    (
        "graves B",
        np.log([
            [0.30176, 0.28562, 0.0831517, 0.0862751, 0.0816851, 0.161508],
            [0.24082, 0.397533, 0.0557226, 0.0546814, 0.0557528, 0.19549],
            [0.230246, 0.450868, 0.0389607, 0.038309, 0.0391602, 0.202456],
            [0.280884, 0.429522, 0.0326593, 0.0339046, 0.0326856, 0.190345],
            [0.423286, 0.315517, 0.0338439, 0.0393744, 0.0339315, 0.154046],
        ]),
        [0, 1, 1, 0], 5, 5.42262,
    ),
    ("warp-ctc, one frame", np.zeros((1, 5)), [1], 0, 1.6094379425049),
    ("warp-ctc, repeat", np.arange(1.0, 16).reshape(3, 5), [3, 3], 0, 7.355742931366),
    (
        "warp-ctc, negative",
        np.array([np.arange(-5.0, 0), np.arange(-10.0, -5), np.arange(-15.0, -10)]),
        [2, 3], 0, 4.938850402832,
    ),
    ("gtn, certain", np.array([[0, -np.inf], [-np.inf, 0], [0, -np.inf]]), [0, 0], 1, 0.0),
    ("gtn, uniform", np.zeros((3, 4)), [1, 2], 3, 2.5494452),
    ("optax issue 1771", np.array([[0.0, 17], [0, 17]]), [1], 0, 1.713908e-15),
]  # fmt: skip


loss_of = jax.jit(ctc_loss, static_argnames="blank_id")


@pytest.mark.parametrize(
    ("logits", "labels", "blank", "loss"),
    [row[1:] for row in PUBLISHED],
    ids=[row[0] for row in PUBLISHED],
)
def test_loss(logits, labels, blank, loss):
    ours = loss_of(logits.astype(np.float32), None, np.array(labels), None, blank_id=blank)
    np.testing.assert_allclose(ours, loss, rtol=2e-6, atol=1e-7)


slope_of = jax.jit(jax.grad(ctc_loss), static_argnames="blank_id")


def test_gradient():
    """Two entries of the tables in TensorFlow's ctc_loss_op_test, and its two NaN frames."""
    for (_, logits, labels, blank, _), place, expected in zip(
        PUBLISHED[:2], [(0, 0), (2, 5)], [-0.366234, -0.797544], strict=True
    ):
        logits = np.concatenate([logits, np.full((2, 6), np.nan)]).astype(np.float32)
        no_frame, no_label = np.array([0, 0, 0, 0, 0, 1, 1]), np.arange(5) >= len(labels)
        labels = np.pad(labels, (0, 5 - len(labels)))
        gradient = slope_of(logits, no_frame, labels, no_label, blank_id=blank)
        np.testing.assert_allclose(gradient[place], expected, atol=1e-6)
        np.testing.assert_array_equal(gradient[5:], 0)
