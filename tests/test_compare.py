"""Against the libraries people come from, where the extra `compare` has installed them."""

import functools
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxctc import cer, ctc_loss, edit_distance, error_counts, greedy_decode, wer

SHAPE = (3, 20, 7, 5)  # B, T, K, N


@pytest.fixture
def batch(rng):
    """Feasible pairs of different lengths, right-padded; no library here takes any other."""
    size, frames, classes, places = SHAPE
    logits = rng.normal(size=(size, frames, classes)).astype(np.float32) * 2
    labels = rng.integers(1, classes, size=(size, places))
    return logits, np.array([20, 15, 13]), labels, np.array([5, 3, 0])


def ours(batch, **options):
    logits, logit_lengths, labels, label_lengths = batch
    rest = (
        np.arange(logits.shape[1]) >= logit_lengths[:, None],
        labels,
        np.arange(labels.shape[1]) >= label_lengths[:, None],
    )
    return tuple(map(np.asarray, loss_and_gradient(logits, *rest, **options)))


@functools.partial(jax.jit, static_argnames="blank_id")
def loss_and_gradient(logits, *rest, blank_id=0):
    loss, pullback = jax.vjp(lambda logits: ctc_loss(logits, *rest, blank_id=blank_id), logits)
    return loss, *pullback(jnp.ones_like(loss))


@pytest.mark.parametrize("blank_id", [0, pytest.param(6, marks=pytest.mark.slow)])
def test_optax(batch, blank_id):
    logits, logit_lengths, labels, label_lengths = batch
    labels = labels - (blank_id != 0)
    rest = (
        (np.arange(logits.shape[1]) >= logit_lengths[:, None]).astype(np.float32),
        labels,
        (np.arange(labels.shape[1]) >= label_lengths[:, None]).astype(np.float32),
    )

    def theirs(logits):
        # optax promotes dtypes and ranks on its own.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return optax.ctc_loss(logits, *rest, blank_id=blank_id)

    loss, pullback = jax.vjp(jax.jit(theirs), logits)
    our_loss, our_gradient = ours((logits, logit_lengths, labels, label_lengths), blank_id=blank_id)
    np.testing.assert_allclose(our_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(our_gradient, pullback(jnp.ones_like(loss))[0], atol=1e-5)


@pytest.mark.parametrize("blank_id", [0, 6])
def test_torch(batch, blank_id):
    torch = pytest.importorskip("torch", reason="needs the extra `compare`")
    logits, logit_lengths, labels, label_lengths = batch
    labels = labels - (blank_id != 0)
    scores = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.ctc_loss(
        scores.log_softmax(-1).transpose(0, 1),
        torch.tensor(labels),
        torch.tensor(logit_lengths),
        torch.tensor(label_lengths),
        blank=blank_id,
        reduction="none",
    )
    loss.sum().backward()
    our_loss, our_gradient = ours((logits, logit_lengths, labels, label_lengths), blank_id=blank_id)
    np.testing.assert_allclose(our_loss, loss.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(our_gradient, scores.grad.numpy(), atol=1e-5)


@pytest.fixture
def keras():
    os.environ["KERAS_BACKEND"] = "jax"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras", reason="needs the extra `compare`")


def test_keras_loss(keras, batch):
    logits, logit_lengths, labels, label_lengths = batch
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = keras.ops.ctc_loss(labels, logits, label_lengths, logit_lengths, mask_index=0)
    np.testing.assert_allclose(ours(batch)[0], theirs, rtol=1e-5)


def test_keras_greedy_decode(keras, batch):
    logits, logit_lengths, *_ = batch
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        decoded, _ = keras.ops.ctc_decode(
            logits, logit_lengths, strategy="greedy", merge_repeated=True, mask_index=0
        )
    best = greedy_decode(logits, np.arange(logits.shape[1]) >= logit_lengths[:, None])
    np.testing.assert_array_equal(best.labels[:, : decoded.shape[-1]], decoded[0])


def random_texts(rng, count, length, letters="abc d"):
    """Pairs of related texts, from nothing up to `length` letters, and what holds them as ids."""
    texts = []
    for size in rng.integers(0, length + 1, count):
        text = rng.choice(list(letters), size)
        kept = rng.random(size) < rng.choice([0.3, 0.9, 1.0])
        changed = np.where(rng.random(size) < rng.choice([0, 0.2]), "c", text)[kept]
        texts.append(("".join(changed), "".join(text)))
    ids = np.zeros((2, count, length), np.int32)
    for row, pair in enumerate(texts):
        for side, text in enumerate(pair):
            ids[side, row, : len(text)] = [ord(letter) for letter in text]
    return texts, (ids[0], ids[0] == 0, ids[1], ids[1] == 0)


def test_rapidfuzz(rng):
    """2 000 pairs of up to 500 tokens: the distances and all three counts are the same."""
    distance = pytest.importorskip("rapidfuzz.distance").Levenshtein
    distances_of, counts_of = jax.jit(edit_distance), jax.jit(error_counts)
    for _ in range(2):
        texts, arguments = random_texts(rng, 1000, 500)
        counts = counts_of(*arguments)
        operations = [distance.editops(ref, hyp) for hyp, ref in texts]
        for count, tag in zip(counts[:3], ("replace", "insert", "delete"), strict=True):
            theirs = [sum(step.tag == tag for step in steps) for steps in operations]
            np.testing.assert_array_equal(count, theirs)
        np.testing.assert_array_equal(distances_of(*arguments), counts.errors)
        np.testing.assert_array_equal(counts.errors, [len(steps) for steps in operations])


def test_jiwer(rng):
    """Word counts of a corpus, its rate, and those of characters."""
    jiwer = pytest.importorskip("jiwer")
    texts, arguments = random_texts(rng, 300, 60, "ab  ")
    hyps, refs = (list(side) for side in zip(*texts, strict=True))
    words = error_counts(*arguments, separator=ord(" ")).sum()
    theirs = jiwer.process_words(refs, hyps)
    assert [int(count) for count in words[:3]] == [
        theirs.substitutions, theirs.insertions, theirs.deletions
    ]  # fmt: skip
    assert int(words.correct) == theirs.hits
    np.testing.assert_allclose(wer(*arguments, separator=ord(" ")).rate, theirs.wer, rtol=1e-6)
    whole = jiwer.ReduceToListOfListOfChars()  # by default, it strips the texts first
    theirs = jiwer.cer(refs, hyps, reference_transform=whole, hypothesis_transform=whole)
    np.testing.assert_allclose(cer(*arguments).rate, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("hyp", "ref"), [("", ""), ("a b", ""), ("", "a"), ("X X Y Y", "X"), ("X Z", "X Y X")]
)
def test_jiwer_of_empty_references(hyp, ref):
    jiwer = pytest.importorskip("jiwer")
    ids = [np.array([ord(letter) for letter in text], np.int32) for text in (hyp, ref)]
    rate = wer(ids[0], None, ids[1], None, separator=ord(" ")).rate
    assert float(rate) == pytest.approx(jiwer.wer(ref, hyp))
