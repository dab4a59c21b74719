"""Against PyTorch itself, in both precisions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxctc.adapters.torch import CTCLoss, ctc_loss

torch = pytest.importorskip("torch", reason="needs the extra `compare`")

FRAMES, SIZE, CLASSES, PLACES = 12, 5, 4, 4
INPUT_LENGTHS, TARGET_LENGTHS = np.array([12, 9, 7, 12, 0]), np.array([4, 2, 0, 1, 0])
BLANKS = [0, CLASSES - 1]
STATIC = ("blank", "reduction", "zero_infinity")
REDUCTIONS = ["mean", "sum", "none"]


def batch_of(rng, blank=0, dtype="float32"):
    """Feasible pairs; one has no labels, and one has no frames either."""
    scores = rng.normal(size=(FRAMES, SIZE, CLASSES)) * 2
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    targets = rng.integers(1, CLASSES, size=(SIZE, PLACES)) - (blank != 0)
    return log_probs.astype(dtype), targets, INPUT_LENGTHS, TARGET_LENGTHS


def concatenated(targets, lengths):
    return np.concatenate([row[:length] for row, length in zip(targets, lengths, strict=True)])


@functools.partial(jax.jit, static_argnames=STATIC)
def ours(log_probs, *rest, **options):
    loss, pullback = jax.vjp(lambda log_probs: ctc_loss(log_probs, *rest, **options), log_probs)
    return loss, *pullback(jnp.ones_like(loss))


def theirs(log_probs, targets, input_lengths, target_lengths, *, softmax=False, **options):
    scores = torch.tensor(np.array(log_probs), requires_grad=True)
    loss = torch.nn.functional.ctc_loss(
        scores.log_softmax(-1) if softmax else scores,
        torch.tensor(np.array(targets)),
        torch.tensor(np.array(input_lengths)),
        torch.tensor(np.array(target_lengths)),
        **options,
    )
    loss.sum().backward()
    return loss.detach().numpy(), scores.grad.numpy()


def their_surplus(log_probs, input_lengths):
    """What torch adds to the derivative by log_probs, of each loss: exp(log_probs), if in use."""
    in_use = np.arange(len(log_probs))[:, None] < input_lengths
    return np.exp(log_probs) * in_use[..., None]


def assert_same(arguments, rtol, **options):
    """Loss and gradient, the latter by reduction "none"."""
    loss, gradient = ours(*arguments, **options)
    expected, slopes = theirs(*arguments, **options)
    np.testing.assert_allclose(loss, expected, rtol=rtol, atol=rtol)
    slopes = slopes - their_surplus(arguments[0], arguments[2])
    np.testing.assert_allclose(gradient, slopes, atol=10 * rtol)
    return loss, gradient


@pytest.mark.parametrize("blank", BLANKS)
def test_float32(rng, blank):
    loss, gradient = assert_same(batch_of(rng, blank), 1e-5, blank=blank, reduction="none")
    np.testing.assert_array_equal(loss[-1], 0)
    in_use = np.arange(FRAMES)[:, None] < INPUT_LENGTHS
    np.testing.assert_allclose(gradient.sum(axis=-1), -in_use.astype(np.float32), atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_float64(rng):
    arguments = batch_of(rng, dtype="float64")
    loss, gradient = assert_same(arguments, 1e-12, reduction="none")
    assert loss.dtype == gradient.dtype == jnp.float64


def test_scores_that_are_no_log_probabilities(rng):
    """They are taken as they are, as in torch."""
    scores, *rest = batch_of(rng)
    scores = scores + np.float32(0.5)
    loss, _ = ours(scores, *rest, reduction="none")
    np.testing.assert_allclose(loss, theirs(scores, *rest, reduction="none")[0], rtol=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_and_the_gradient_through_a_log_softmax(rng, reduction):
    logits, targets, *lengths = batch_of(rng)
    options = {"input_lengths": lengths[0], "target_lengths": lengths[1], "reduction": reduction}

    @jax.jit
    def behind_a_softmax(logits):
        def cost(logits):
            return ctc_loss(jax.nn.log_softmax(logits), targets, **options)

        loss, pullback = jax.vjp(cost, logits)
        return loss, *pullback(jnp.ones_like(loss))

    loss, gradient = behind_a_softmax(logits)
    expected, slopes = theirs(logits, targets, softmax=True, **options)
    assert loss.shape == expected.shape
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slopes, atol=1e-5)


def test_concatenated_targets(rng):
    log_probs, targets, *lengths = batch_of(rng)
    row = concatenated(targets, lengths[1])
    loss, gradient = ours(log_probs, row, *lengths, reduction="none")
    np.testing.assert_allclose(
        loss, theirs(log_probs, row, *lengths, reduction="none")[0], rtol=1e-5
    )
    padded, slopes = ours(log_probs, targets, *lengths, reduction="none")
    np.testing.assert_allclose(loss, padded, rtol=1e-6)
    np.testing.assert_allclose(gradient, slopes, atol=1e-6)


def test_concatenated_targets_become_as_wide_as_the_longest_if_known(rng):
    log_probs, targets, *lengths = batch_of(rng)
    row = concatenated(targets, lengths[1])
    narrow, wide = f"i32[{SIZE},{PLACES}]", f"i32[{SIZE},{row.size}]"
    assert wide in str(jax.make_jaxpr(ctc_loss)(log_probs, row, *lengths))
    for known in (lengths, [length.tolist() for length in lengths], [tuple(x) for x in lengths]):
        jaxpr = str(
            jax.make_jaxpr(lambda *args, known=known: ctc_loss(*args, *known))(log_probs, row)
        )
        assert narrow in jaxpr
        assert wide not in jaxpr
    np.testing.assert_allclose(
        jax.jit(lambda *args: ctc_loss(*args, *lengths))(log_probs, row),
        theirs(log_probs, row, *lengths)[0],
        rtol=1e-5,
    )


def test_nothing_concatenated(rng):
    log_probs, *_ = batch_of(rng)
    none, lengths = np.zeros(0, np.int64), np.zeros(SIZE, np.int64)
    arguments = log_probs, none, INPUT_LENGTHS, lengths
    expected, _ = theirs(*arguments, reduction="sum")
    total = jax.jit(ctc_loss, static_argnames=STATIC)(*arguments, reduction="sum")
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_lengths_that_only_jax_knows_and_that_do_not_fit(rng):
    """They cannot raise: all of the array counts, and labels that are not there are no class."""
    log_probs, targets, *lengths = batch_of(rng)
    full = np.full(SIZE, FRAMES), np.full(SIZE, PLACES)
    loss, _ = ours(log_probs, targets, *full, reduction="none")
    more, _ = ours(log_probs, targets, full[0] + 1, full[1] + 1, reduction="none")
    np.testing.assert_array_equal(more, loss)
    row = concatenated(targets, lengths[1])
    longer = lengths[1] + np.array([0, 0, 0, 1, 0])
    loss, gradient = ours(log_probs, row, lengths[0], longer, reduction="none")
    np.testing.assert_array_equal(np.isinf(loss), np.arange(SIZE) == 3)
    np.testing.assert_array_equal(gradient[:, 3], 0)


def test_no_alignment(rng):
    """Infinite without a gradient, or nothing at all; torch has NaN for the gradient."""
    log_probs, targets, *_ = batch_of(rng)
    targets[0] = targets[0, 0]
    lengths = np.array([6, 3, 0, 12, 12]), np.array([4, 4, 1, 3, 3])
    infeasible = np.array([True, True, True, False, False])
    arguments = log_probs, targets, *lengths
    loss, gradient = ours(*arguments, reduction="none")
    expected, slopes = theirs(*arguments, reduction="none")
    np.testing.assert_array_equal(np.isinf(loss), infeasible)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(gradient[:, infeasible], 0)
    assert np.isnan(slopes[:, 0]).any()

    loss, gradient = ours(*arguments, zero_infinity=True)
    expected, slopes = theirs(*arguments, zero_infinity=True)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(gradient[:, infeasible], 0)
    np.testing.assert_array_equal(slopes[:, infeasible], 0)


def test_a_blank_among_the_labels_has_no_alignment(rng):
    log_probs, targets, *lengths = batch_of(rng)
    targets[0, 1] = 0
    loss, gradient = ours(log_probs, targets, *lengths, reduction="none")
    np.testing.assert_array_equal(np.isinf(loss), np.arange(SIZE) == 0)
    np.testing.assert_array_equal(gradient[:, 0], 0)
    assert np.isfinite(theirs(log_probs, targets, *lengths, reduction="none")[0]).all()


one_example = jax.jit(ctc_loss, static_argnames=STATIC)
FORMS = [
    (False, 12, 3, "mean"),
    (True, (12,), (3,), "mean"),
    (False, [12], np.array([3]), "none"),
    (True, np.int32(12), np.array(3), "sum"),
]


@pytest.mark.parametrize(("as_a_batch", "input_length", "target_length", "reduction"), FORMS)
def test_one_example(rng, as_a_batch, input_length, target_length, reduction):
    log_probs, targets, *_ = batch_of(rng)
    log_probs, targets = log_probs[:, 0], targets[0, :3]
    if as_a_batch:
        targets = targets[None]
    arguments = log_probs, targets, input_length, target_length
    loss = one_example(*arguments, reduction=reduction)
    assert loss.shape == ()
    np.testing.assert_allclose(loss, theirs(*arguments, reduction=reduction)[0], rtol=1e-5)


def test_lists(rng):
    arguments = batch_of(rng)
    lists = [argument.tolist() for argument in arguments]
    found = jax.jit(lambda: ctc_loss(*lists))()
    np.testing.assert_allclose(found, ours(*arguments)[0], rtol=1e-6)


def test_a_batch_is_one_by_one(rng):
    log_probs, targets, *lengths = batch_of(rng)
    one = functools.partial(ctc_loss, reduction="none")
    each = jax.jit(jax.vmap(one, in_axes=(1, 0, 0, 0)))(log_probs, targets, *lengths)
    batch, _ = ours(log_probs, targets, *lengths, reduction="none")
    np.testing.assert_allclose(each, batch, rtol=1e-6)


SCORES, ROWS = jnp.zeros((FRAMES, 2, CLASSES)), jnp.ones((2, PLACES), jnp.int32)
GOOD = {
    "log_probs": SCORES,
    "targets": ROWS,
    "input_lengths": [12, 12],
    "target_lengths": [4, 4],
}
ONE = {"log_probs": SCORES[:, 0], "targets": ROWS[0], "input_lengths": 12, "target_lengths": 4}
CONCATENATED = GOOD | {"targets": ROWS[0], "target_lengths": [1, 3]}
ERRORS = {
    "rank": (GOOD, {"log_probs": jnp.zeros(3)}, r"log_probs must have shape \(T, N, C\) or"),
    "rank of targets": (GOOD, {"targets": ROWS[None]}, r"targets must .* N = 2, as .* \(1, 2, 4\)"),
    "another batch": (GOOD, {"targets": ROWS[:1]}, r"targets must .* got \(1, 4\)"),
    "two rows for one": (ONE, {"targets": ROWS}, r"targets must have shape \(S,\); got \(2, 4\)"),
    "real targets": (
        GOOD,
        {"targets": jnp.ones((2, 4))},
        "targets must be integers; got an array of float32",
    ),
    "complex": (
        GOOD,
        {"log_probs": SCORES.astype(jnp.complex64)},
        "log_probs must be real numbers",
    ),
    "one length": (GOOD, {"input_lengths": [12]}, r"input_lengths must .*\(2,\), .* int32\[1\]"),
    "two lengths": (ONE, {"target_lengths": [4, 4]}, r"target_lengths must be integers of shape"),
    "real lengths": (GOOD, {"target_lengths": [4.0, 4.0]}, r"float32\[2\]\. Pass counts, by as"),
    "too long": (GOOD, {"input_lengths": (12, 13)}, r"input_lengths must lie in \[0, 12\]; got"),
    "too many": (GOOD, {"target_lengths": np.array([4, 5])}, r"target_lengths must lie in \[0, 4"),
    "the batch first": (
        GOOD | {"input_lengths": np.array([12, 12])},
        {"log_probs": np.zeros((2, 12, 4), np.float32)},
        r"log_probs must have shape \(T, N, C\) with N = 2, .*; got \(2, 12, 4\)\. If the batch",
    ),
    "negative": (GOOD, {"target_lengths": [-1, 4]}, r"target_lengths must lie in \[0, 4\]; got"),
    "row too short": (CONCATENATED, {"target_lengths": [2, 3]}, "add up to .* targets, 4; got 5"),
    "row too long": (CONCATENATED, {"target_lengths": [1, 2]}, "add up to .* targets, 4; got 3"),
    "blank": (GOOD, {"blank": 4}, r"blank must be a class id in \[-4, 4\); got 4"),
    "reduction": (GOOD, {"reduction": "batchmean"}, "reduction must be .*; got 'batchmean'"),
}


@pytest.mark.parametrize(("good", "bad", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(good, bad, message):
    with pytest.raises(ValueError, match=f"^adapters.torch.ctc_loss: .*{message}"):
        jax.eval_shape(lambda: ctc_loss(**good | bad))
    assert jax.eval_shape(lambda: ctc_loss(**good)).shape == ()


def test_the_class_is_the_function(rng):
    """With torch's own arguments, by position too."""
    arguments = batch_of(rng, CLASSES - 1)
    pairs = [
        (CTCLoss(CLASSES - 1, "sum"), torch.nn.CTCLoss(CLASSES - 1, "sum")),
        (CTCLoss(zero_infinity=True), torch.nn.CTCLoss(zero_infinity=True)),
    ]
    for mine, module in pairs:
        expected = module(*map(torch.tensor, arguments))
        np.testing.assert_allclose(mine(*arguments), expected.numpy(), rtol=1e-5)


def test_a_negative_blank_counts_from_the_last_class(rng):
    arguments = batch_of(rng, CLASSES - 1)
    last, _ = ours(*arguments, blank=CLASSES - 1, reduction="none")
    np.testing.assert_array_equal(ours(*arguments, blank=-1, reduction="none")[0], last)
