"""What is in the pictures: positions, names and values, read from the axes."""

import builtins
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc

matplotlib = pytest.importorskip("matplotlib", reason="needs the extra `plot`")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot", reason="needs the extra `plot`")

PATH = np.array([0, 1, 1, 0, 2, 3, 3])
LABELS = np.array([1, 2, 3, 0])
NO_LABEL = np.array([0, 0, 0, 1])
NAMES = ["–", "a", "b", "c"]
LOGITS = 5.0 * np.eye(4, dtype=np.float32)[PATH]


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.fixture(scope="module")
def aligned():
    arguments = LOGITS, None, LABELS, NO_LABEL
    return jaxctc.forced_align(*arguments), jaxctc.posteriors(*arguments)


def row_names(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_posteriors_of_labels(ax, aligned):
    """A row for the blank and each label in use; padded frames are left out."""
    no_frame = np.array([0, 0, 0, 0, 0, 0, 1])
    drawn = jaxctc.plot_posteriors(aligned[1], no_frame, LABELS, NO_LABEL, names=NAMES, ax=ax)
    assert drawn is ax
    (image,) = ax.images
    found = aligned[1]
    truth = np.column_stack([found.blank, found.label[:, :3]])[:6].T
    np.testing.assert_allclose(image.get_array(), truth, rtol=1e-6)
    assert row_names(ax) == ["blank", "a", "b", "c"]
    assert tuple(image.get_extent()) == (-0.5, 5.5, 3.5, -0.5)
    assert ax.get_xlabel() == "frame"


def test_posteriors_of_classes_in_seconds(ax):
    shares = jax.nn.softmax(LOGITS)
    jaxctc.plot_posteriors(shares, names=NAMES, ax=ax, frame_seconds=0.5, offset=3.0)
    np.testing.assert_allclose(ax.images[0].get_array(), shares.T)
    assert tuple(ax.images[0].get_extent()) == (3.0, 6.5, 3.5, -0.5)
    assert (ax.get_xlabel(), row_names(ax)) == ("seconds", NAMES)


def test_many_classes_have_some_names(ax):
    jaxctc.plot_posteriors(np.zeros((3, 500)), ax=ax)
    assert row_names(ax)[:2] == ["0", "9"]


def test_alignment(ax, aligned):
    """The path, in seconds, over the posteriors; labels in use, and the words below."""
    words = [jaxctc.Span("ab", 0.25, 1.25), jaxctc.Span("c", 1.25, 1.75)]
    drawn = jaxctc.plot_alignment(
        aligned[0],
        LABELS,
        NO_LABEL,
        posteriors=aligned[1],
        words=words,
        names=NAMES,
        ax=ax,
        frame_seconds=0.25,
    )
    assert drawn is ax
    (path,) = ax.lines
    assert path.get_ydata().tolist() == PATH.tolist()
    np.testing.assert_allclose(path.get_xdata(), 0.25 * (np.arange(7) + 0.5))
    assert ax.get_xlim() == (0, 1.75)
    assert row_names(ax) == ["blank", "a", "b", "c"]
    assert [(t.get_text(), t.get_position()[0]) for t in ax.texts] == [("ab", 0.75), ("c", 1.5)]
    boxes = [c.get_paths()[0].get_extents() for c in ax.collections]
    assert [(box.x0, box.x1) for box in boxes] == [(0.25, 1.25), (1.25, 1.75)]
    assert min(box.y0 for box in boxes) == 3.5  # the last row ends there
    np.testing.assert_allclose(ax.images[0].get_array()[0], aligned[1].blank)


@pytest.mark.parametrize("shape", [(70,), (14, 5)], ids=["waveform", "features"])
def test_what_was_heard_is_above(ax, aligned, shape):
    """Over the same time, the frames of each label in colour, its name above."""
    signal = np.linspace(0, 1, np.prod(shape)).reshape(shape)
    jaxctc.plot_alignment(aligned[0], LABELS, NO_LABEL, signal=signal, names=NAMES, ax=ax)
    (above,) = ax.child_axes
    assert above.get_xlim() == ax.get_xlim() == (-0.5, 6.5)
    if len(shape) == 1:
        line = above.lines[0].get_xdata()
        np.testing.assert_allclose([line[0], line[-1]], [-0.45, 6.45])
    else:
        np.testing.assert_allclose(above.images[0].get_array(), signal.T)
        assert tuple(above.images[0].get_extent()) == (-0.5, 6.5, 4.5, -0.5)
    names = [(text.get_text(), text.xy[0]) for text in above.texts]
    assert names == [("a", 1.5), ("b", 4.0), ("c", 5.5)]


def test_words_in_frames(ax, aligned):
    words = jaxctc.word_spans(aligned[0], LABELS, NO_LABEL, separator=2)
    spans = jaxctc.timed_spans(words, ["a", "c"], frame_seconds=1)
    jaxctc.plot_alignment(aligned[0], LABELS, NO_LABEL, words=spans, ax=ax)
    boxes = [c.get_paths()[0].get_extents() for c in ax.collections]
    assert [(box.x0, box.x1) for box in boxes] == [(0.5, 2.5), (4.5, 6.5)]


def test_what_cannot_be_aligned_has_no_path(ax):
    nothing = jaxctc.forced_align(LOGITS[:2], None, LABELS[:3], None)
    jaxctc.plot_alignment(nothing, LABELS[:3], ax=ax)
    assert ax.lines[0].get_ydata().tolist() == [0, 0]


def test_error_rates(ax):
    """A batch is added up; the parts of a bar end at its rate."""
    hyp, ref = np.array([[1, 2, 3], [1, 1, 2]]), np.array([[1, 2, 2], [1, 2, -1]])
    counts = jaxctc.error_counts(hyp, None, ref, None)
    some = jaxctc.ErrorCounts(*map(jnp.asarray, (2, 1, 3, 10)))
    assert jaxctc.plot_error_rates({"some": some, "batch": counts}, ax=ax) is ax
    assert [text.get_text().strip() for text in ax.texts] == [
        "60.0 %",
        f"{100 * float(counts.sum().rate):.1f} %",
    ]
    widths = [[bar.get_width() for bar in bars] for bars in ax.containers]
    np.testing.assert_allclose([part[0] for part in widths], [20, 10, 30])
    assert row_names(ax) == ["some", "batch"]
    assert ax.yaxis_inverted()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["substitutions", "insertions", "deletions"]


def test_the_current_axes_are_the_default(ax):
    plt.sca(ax)
    assert jaxctc.plot_posteriors(np.eye(3)) is ax


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    known = builtins.__import__

    def without(name, *arguments):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return known(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"plot_posteriors: Matplotlib must be.*jaxctc\[plot\]"):
        jaxctc.plot_posteriors(np.eye(3))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda a, p, ax: jaxctc.plot_posteriors(np.eye(3)[None], ax=ax), "Take one example of a"),
        (
            lambda a, p, ax: jaxctc.plot_posteriors(np.eye(3), np.zeros(1), ax=ax),
            r"have shape \(3,\)",
        ),
        (lambda a, p, ax: jaxctc.plot_posteriors(p, None, LABELS[:1], ax=ax), "as posteriors; got"),
        (lambda a, p, ax: jaxctc.plot_posteriors(np.eye(3), frame_seconds=0, ax=ax), "positive"),
        (lambda a, p, ax: jaxctc.plot_alignment(a, LABELS[None], ax=ax), r"have shape \[N\]"),
        (lambda a, p, ax: jaxctc.plot_alignment(a, LABELS[:2], ax=ax), "as in alignment; got"),
        (
            lambda a, p, ax: jaxctc.plot_alignment(a, LABELS, signal=LABELS[None, None], ax=ax),
            "signal must",
        ),
        (lambda a, p, ax: jaxctc.plot_error_rates({}, ax=ax), "have one bar or more; got none"),
        (
            lambda a, p, ax: jaxctc.plot_error_rates({"a": cast(Any, 0.5)}, ax=ax),
            "map names to ErrorCounts",
        ),
    ],
)
def test_errors(ax, aligned, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(*aligned, ax)
