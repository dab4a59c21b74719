"""Against torchaudio itself where it is, and against its definition: the best of all paths."""

import itertools

import jax
import numpy as np
import pytest

from jaxctc.adapters.torchaudio import TokenSpan, forced_align, merge_tokens

FRAMES, CLASSES = 6, 4


def batch_of(rng, size=3):
    scores = 2 * rng.normal(size=(size, FRAMES, CLASSES))
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return log_probs.astype(np.float32), np.array([[1, 2, 2], [3, 1, 0], [2, 0, 0]])[:size]


def best_path(log_probs, labels, blank):
    """By trying all of them."""

    def spells(path):
        return [k for k, _ in itertools.groupby(path) if k != blank] == labels

    paths = itertools.product(range(CLASSES), repeat=len(log_probs))
    rows = np.arange(len(log_probs))
    return max(filter(spells, paths), key=lambda path: log_probs[rows, path].sum())


@pytest.mark.parametrize("blank", [0, 3])
def test_the_best_of_all_paths(blank, rng):
    log_probs, targets = batch_of(rng)
    targets = (targets + blank) % CLASSES
    lengths, sizes = np.array([6, 5, 3]), np.array([3, 2, 1])
    paths, scores = forced_align(log_probs, targets, lengths, sizes, blank)
    for row, (length, size) in enumerate(zip(lengths, sizes, strict=True)):
        expected = best_path(log_probs[row, :length], targets[row, :size].tolist(), blank)
        np.testing.assert_array_equal(paths[row], [*expected, *[blank] * (FRAMES - length)])
        rest = np.zeros(FRAMES - length)
        expected = [*log_probs[row, np.arange(length), expected], *rest]
        np.testing.assert_allclose(scores[row], expected, rtol=1e-6)
    assert len(merge_tokens(paths[2], scores[2], blank)) == 1


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_dtypes(dtype, rng):
    log_probs, targets = batch_of(rng, 1)
    paths, scores = forced_align(log_probs.astype(np.float16), targets.astype(dtype))
    assert (paths.dtype, scores.dtype, paths.shape) == (dtype, np.float16, (1, FRAMES))


def test_within_jit_what_cannot_be_aligned_has_no_path(rng):
    log_probs, targets = batch_of(rng)
    lengths = np.array([2, 6, 6])
    paths, scores = jax.jit(forced_align)(log_probs, targets, lengths, np.array([3, 2, 1]))
    np.testing.assert_array_equal(paths[0, :2], -1)
    np.testing.assert_array_equal(scores[0], [-np.inf, -np.inf, 0, 0, 0, 0])
    assert (paths[1:] >= 0).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": [[1, 0]]}, r"targets\[0\] must not hold the blank, 0; got \[1, 0\]"),
        ({"targets": [[1, 4]]}, r"targets\[0\] must lie in \[0, 4\)"),
        ({"targets": [[1, -1]]}, r"targets\[0\] must lie in \[0, 4\)"),
        ({"targets": [[1, 1, 1, 1]]}, r"log_probs\[0\] must have at least the 7 frames that"),
        ({"targets": [[1], [2]]}, r"targets must have shape \(B, L\) with B = 1"),
        ({"targets": [[1.0]]}, "targets must be integers"),
        (
            {"log_probs": np.zeros((6, 4))},
            r"log_probs must have shape \(B, T, C\); got \(6, 4\)\. Of one",
        ),
        ({"blank": 4}, "blank must be a class id"),
    ],
    ids=str,
)
def test_refused(changed, message, rng):
    log_probs, _ = batch_of(rng, 1)
    with pytest.raises(ValueError, match=message):
        forced_align(**{"log_probs": log_probs, "targets": [[1]], **changed})


def test_merge_tokens():
    tokens, scores = np.array([2, 2, 0, 2, 1, 0, -1]), -np.arange(7.0)
    spans = [TokenSpan(2, 0, 2, -0.5), TokenSpan(2, 3, 4, -3.0), TokenSpan(1, 4, 5, -4.0)]
    assert merge_tokens(tokens, scores) == spans
    assert [len(span) for span in spans] == [2, 1, 1]
    assert merge_tokens(tokens[:0], scores[:0]) == []
    with pytest.raises(ValueError, match=r"tokens must have shape \(T,\); got \(1, 7\)"):
        merge_tokens(tokens[None], scores)
    with pytest.raises(ValueError, match="scores must have a number for each of 7 tokens; got 6"):
        merge_tokens(tokens, scores[1:])


def test_beside_torchaudio(rng):
    torch = pytest.importorskip("torch", reason="needs the extra `compare`")
    functional = pytest.importorskip(
        "torchaudio.functional", reason="needs torchaudio, which no extra has"
    )
    for _ in range(10):
        log_probs, targets = batch_of(rng, 1)
        theirs = functional.forced_align(torch.tensor(log_probs), torch.tensor(targets))
        ours = forced_align(log_probs, targets)
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)
        expected = functional.merge_tokens(theirs[0][0], theirs[1][0])
        for mine, other in zip(merge_tokens(ours[0][0], ours[1][0]), expected, strict=True):
            assert (mine.token, mine.start, mine.end) == (other.token, other.start, other.end)
            np.testing.assert_allclose(mine.score, other.score, rtol=1e-6)
