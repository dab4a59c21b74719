import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import BATCHES, CASES, IDS, NARROW, alone, batch_of
from every_pair import at_all_frames, every_pair, every_topology, padded
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_close

from jaxctc import ctc_loss, ctc_loss_with_forward_probs

OPTIONS = ("blank_id", "logits_normalized", "max_approx", "zero_infinity")


@functools.partial(jax.jit, static_argnames=OPTIONS)
def compiled_loss_and_gradient(logits, logit_paddings, labels, label_paddings, **options):
    """Of each example on its own: a sum would mix a NaN into the neighbours."""
    loss, pullback = jax.vjp(
        lambda logits: ctc_loss(logits, logit_paddings, labels, label_paddings, **options), logits
    )
    return loss, *pullback(jnp.ones_like(loss))


compiled_loss = jax.jit(ctc_loss, static_argnames=OPTIONS)
compiled_forward_probs = jax.jit(
    ctc_loss_with_forward_probs, static_argnames=("blank_id", "logits_normalized")
)


# Results in NumPy: every slice of a JAX array is an operation of its own, which compiles.
def loss_and_gradient(*arguments, **options):
    return jax.device_get(compiled_loss_and_gradient(*arguments, **options))


def loss_of(*arguments, **options):
    return jax.device_get(compiled_loss(*arguments, **options))


def forward_probs(*arguments, **options):
    return jax.device_get(compiled_forward_probs(*arguments, **options))


@every_topology
class TestEveryPath:
    """All T ≤ 5, K ≤ 3 and every label sequence, against the enumeration of all paths."""

    @pytest.mark.smoke
    def test_loss_and_gradient(self, classes, blank):
        every = every_pair(classes, blank)
        loss, gradient = loss_and_gradient(*every.arguments, blank_id=blank)
        loss, gradient = loss[: len(every.labels)], gradient[: len(every.labels), :, :classes]
        assert_close(loss, [truth.loss for truth in every.truths])
        expected = [
            (np.exp(log_probs) - truth.occupancies) * np.isfinite(truth.loss)
            for log_probs, truth in zip(every.log_probs, every.truths, strict=True)
        ]
        assert_close(gradient, at_all_frames(expected))

    def test_best_path(self, classes, blank):
        every = every_pair(classes, blank)
        loss, gradient = loss_and_gradient(*every.arguments, blank_id=blank, max_approx=True)
        loss, gradient = loss[: len(every.labels)], gradient[: len(every.labels), :, :classes]
        assert_close(loss, [truth.best_loss for truth in every.truths])
        expected = []
        for log_probs, truth in zip(every.log_probs, every.truths, strict=True):
            paths = [np.eye(classes)[list(path)] for path in truth.best_paths]
            assert len(paths) <= 1, "random scores do not tie"
            expected.append(np.exp(log_probs) - paths[0] if paths else 0 * log_probs)
        assert_close(gradient, at_all_frames(expected))

    def test_forward_probs(self, classes, blank):
        every = every_pair(classes, blank)
        loss, in_blank, in_label = forward_probs(*every.arguments, blank_id=blank)
        np.testing.assert_array_equal(loss, loss_of(*every.arguments, blank_id=blank))
        for row, (log_probs, labels) in enumerate(zip(every.log_probs, every.labels, strict=True)):
            true_blank, true_label = oracles.forward_rows(log_probs, labels, blank)
            frames, count = len(log_probs), len(labels)
            assert_close(in_blank[:frames, row, : count + 1], true_blank)
            assert_close(in_label[:frames, row, :count], true_label)
            assert np.all(np.isneginf(in_blank[:, row, count + 1 :]))
            assert np.all(np.isneginf(in_label[:, row, count:]))


@pytest.mark.usefixtures("x64")
def test_float64_in_float64_out():
    logits = np.random.default_rng(1).normal(size=(6, 4)) * 3
    log_probs = oracles.log_softmax(logits)
    for labels in [(), (1,), (1, 1), (3, 2, 3), (1, 1, 1)]:
        ids, paddings = padded([labels], 3)
        loss, gradient = loss_and_gradient(logits, None, ids[0], paddings[0])
        truth = oracles.enumerate_paths(log_probs, labels)
        assert loss.dtype == gradient.dtype == jnp.float64
        assert_close(loss, truth.loss)
        assert_close(gradient, np.exp(log_probs) - truth.occupancies)


@functools.cache
def all_in_a_batch(blank_id):
    return loss_and_gradient(*batch_of(BATCHES[blank_id]), blank_id=blank_id)


@pytest.mark.parametrize("case", CASES, ids=IDS)
class TestContract:
    """Each awkward input, alone: value and gradient."""

    def test_loss(self, case):
        loss, _ = loss_and_gradient(*alone(case), blank_id=case.blank_id)
        if case.kind == "nan":
            assert np.isnan(loss)
        else:
            assert_close(loss, case.truth().loss)
            assert np.isinf(loss) == (case.kind == "infeasible")
            assert loss >= 0

    def test_gradient(self, case):
        _, gradient = loss_and_gradient(*alone(case), blank_id=case.blank_id)
        frames, classes = case.logits.shape
        np.testing.assert_array_equal(gradient[frames:], 0)
        gradient = gradient[:frames, :classes]
        padding, frames = gradient[~case.frames_in_use], gradient[case.frames_in_use]
        np.testing.assert_array_equal(padding, 0)
        if case.kind == "nan":
            assert np.isnan(frames).all()
        elif case.kind == "infeasible":
            np.testing.assert_array_equal(frames, 0)
        else:
            softmax = np.exp(oracles.log_softmax(case.logits[case.frames_in_use]))
            assert_close(frames, softmax - case.truth().occupancies)

    def test_alone_as_in_a_batch(self, case):
        cases = BATCHES[case.blank_id]
        together = all_in_a_batch(case.blank_id)
        frames, classes = case.logits.shape
        loss, gradient = (part[cases.index(case)] for part in together)
        own_loss, slope = loss_and_gradient(*alone(case), blank_id=case.blank_id)
        assert_close(loss, np.asarray(own_loss))
        assert_close(gradient[:frames, :classes], np.asarray(slope[:frames, :classes]))
        np.testing.assert_array_equal(gradient[frames:], 0)


def without_nan(cases):
    """The others, some of them twice: as many, so that nothing compiles again."""
    others = [case for case in cases if case.kind != "nan"]
    return (others * 2)[: len(cases)]


@pytest.mark.parametrize(("blank_id", "cases"), BATCHES.items(), ids=map(str, BATCHES))
class TestContractInABatch:
    @pytest.mark.smoke
    def test_normalized(self, blank_id, cases):
        """Scores as they are: no softmax, and only the columns of the labels count."""
        loss, gradient = loss_and_gradient(
            *batch_of(cases), blank_id=blank_id, logits_normalized=True
        )
        for row, case in enumerate(cases):
            frames, classes = case.logits.shape
            needed = {*case.labels[case.labels_in_use].tolist(), case.blank}
            needed = sorted(k for k in needed if 0 <= k < classes)
            slope = gradient[row, :frames, :classes]
            np.testing.assert_array_equal(slope[~case.frames_in_use], 0, err_msg=case.name)
            if not (case.logits[case.frames_in_use][:, needed] < np.inf).all():
                assert np.isnan(loss[row]), case.name
                continue
            truth = case.truth(logits_normalized=True)
            assert_close(loss[row], truth.loss, err_msg=case.name)
            occupancies = -slope[case.frames_in_use]
            assert_close(occupancies, truth.occupancies, err_msg=case.name)

    def test_narrow_floats(self, blank_id, cases):
        """Computed in float32 from the rounded logits; only the gradient is rounded again."""
        for dtype in NARROW if blank_id == 0 else NARROW[:1]:
            logits, *rest = batch_of(cases)
            logits = jnp.asarray(logits).astype(dtype)
            loss, gradient = loss_and_gradient(logits, *rest, blank_id=blank_id)
            wide = loss_and_gradient(logits.astype(jnp.float32), *rest, blank_id=blank_id)
            assert (loss.dtype, gradient.dtype) == (jnp.float32, dtype)
            assert_close(loss, np.asarray(wide[0]))
            rtol = 2 * float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(gradient.astype(jnp.float32), wide[1], rtol=rtol, atol=1e-6)
            np.testing.assert_array_equal(np.asarray(gradient)[wide[1] == 0], 0)

    def test_no_nan_on_the_way(self, blank_id, cases):
        arguments = batch_of(without_nan(cases))
        with jax.debug_nans(True):
            loss_and_gradient(*arguments, blank_id=blank_id)
            forward_probs(*arguments, blank_id=blank_id)


def with_the_blank_last(logits, no_frame, labels, no_label):
    """Every class one lower, the first one last; what is no class stays what it is."""
    classes = logits.shape[-1]
    is_class = (labels >= 0) & (labels < classes)
    return (
        np.roll(logits, -1, axis=-1),
        no_frame,
        np.where(is_class, (labels - 1) % classes, labels),
        no_label,
    )


def test_the_blank_may_be_the_last_class():
    arguments = batch_of(BATCHES[0])
    loss, gradient = loss_and_gradient(*arguments, log_epsilon=-jnp.inf)
    arguments = with_the_blank_last(*arguments)
    other, slope = loss_and_gradient(*arguments, log_epsilon=-jnp.inf, blank_id=-1)
    assert_close(other, loss)
    assert_close(slope, np.roll(gradient, -1, axis=-1))


@pytest.mark.parametrize("blank_id", [0, -1])
def test_infeasible_values(blank_id):
    arguments = batch_of(BATCHES[0])
    if blank_id:
        arguments = with_the_blank_last(*arguments)
    where = np.array([case.kind == "infeasible" for case in BATCHES[0]])
    loss, gradient = loss_and_gradient(*arguments, log_epsilon=-jnp.inf, blank_id=blank_id)
    for value, options in [(0, {"zero_infinity": True}), (1e5, {"log_epsilon": -1e5})]:
        other, slope = loss_and_gradient(*arguments, **options, blank_id=blank_id)
        np.testing.assert_array_equal(other, np.where(where, np.float32(value), loss))
        np.testing.assert_array_equal(slope, gradient)


def test_a_broken_example_leaves_its_neighbours_alone():
    together = loss_and_gradient(*batch_of(BATCHES[0]), log_epsilon=-jnp.inf)
    broken = np.array([case.kind == "nan" for case in BATCHES[0]])
    assert broken.any()
    assert np.isnan(together[0][broken]).all()
    others = [case for case in BATCHES[0] if case.kind != "nan"]
    rest = loss_and_gradient(*batch_of(without_nan(BATCHES[0])), log_epsilon=-jnp.inf)
    for part, own in zip(together, rest, strict=True):
        assert not np.isnan(part[~broken]).any()
        np.testing.assert_array_equal(part[~broken], own[: len(others)])


def test_same_inputs_same_bits():
    arguments = batch_of(without_nan(BATCHES[0]))
    twice = [loss_and_gradient(*arguments, log_epsilon=-jnp.inf) for _ in range(2)]
    for first, second in zip(*twice, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("batch", [(), (0,), (2, 0), (2, 1, 3)], ids=str)
def test_any_number_of_batch_axes(batch, rng):
    logits = rng.normal(size=(*batch, 7, 5)).astype(np.float32)
    labels = rng.integers(1, 5, size=(*batch, 3))
    loss, gradient = loss_and_gradient(logits, None, labels, None)
    _, in_blank, in_label = jax.eval_shape(compiled_forward_probs, logits, None, labels, None)
    assert (loss.shape, gradient.shape) == (batch, logits.shape)
    assert (in_blank.shape, in_label.shape) == ((7, *batch, 4), (7, *batch, 3))
    for index in np.ndindex(*batch):
        assert_close(loss[index], loss_of(logits[index], None, labels[index], None))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int32, np.float32, jnp.bfloat16])
def test_paddings_of_any_dtype_are_counted_exactly(dtype):
    """300 labels of which 43 are in use: a bfloat16 sum of paddings makes it 44."""
    logits = np.zeros((100, 3), np.float32)
    labels = np.tile([1, 2], 150)
    no_frame, no_label = np.arange(100) >= 90, np.arange(300) >= 43
    # Eagerly, where what compiles is the same for all.
    loss = ctc_loss(logits, no_frame.astype(dtype), labels, no_label.astype(dtype))
    assert_close(loss, np.asarray(ctc_loss(logits[:90], None, labels[:43], None)))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint32])
@pytest.mark.parametrize("x64", [False, True])
def test_ids_beyond_int32_are_no_other_class(dtype, x64):
    """Nor without x64, where JAX itself would take the lower 32 bits."""
    labels = np.array([2**32 + 1 if dtype != np.uint32 else 2**32 - 1, 2], dtype)
    with jax.enable_x64(x64):
        assert ctc_loss(np.zeros((5, 4), np.float32), None, labels, None) == np.inf


def test_padded_rows_repeat_the_row_before(rng):
    """Frames strewn among padding, and the same packed to the left."""
    logits = rng.normal(size=(2, 6, 4)).astype(np.float32)
    paddings = np.array([[1, 0, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1]])
    logits[1, :3] = logits[0, paddings[0] == 0]
    loss, *both = forward_probs(logits, paddings, np.array([[1, 2]] * 2), None)
    assert loss[0] == loss[1]
    in_blank, in_label = (rows[:, 0] for rows in both)
    np.testing.assert_array_equal(in_blank[0], [0, -np.inf, -np.inf])
    np.testing.assert_array_equal(in_label[0], [-np.inf, -np.inf])
    for rows in both:
        np.testing.assert_array_equal(rows[1:, 0], rows[[0, 1, 1, 2, 2], 1])


def test_log_epsilon_stands_for_log_zero_in_rows_and_may_be_traced():
    arguments = (jnp.zeros((2, 3)), None, jnp.array([1, 2]), None)
    default, marked = (
        forward_probs(*arguments, log_epsilon=epsilon) for epsilon in (-jnp.inf, -1e5)
    )
    for plain, finite in zip(default, marked, strict=True):
        np.testing.assert_array_equal(finite, np.where(np.isneginf(plain), -1e5, plain))
    assert np.isneginf(default.logalpha_blank[0, 1])


def test_rows_of_a_broken_example_are_nan():
    logits = np.zeros((2, 6, 4), np.float32)
    logits[0, 2, 1] = np.nan
    loss, *both = forward_probs(logits, np.zeros((2, 6), int), np.array([[1, 2]] * 2), None)
    assert np.isnan(loss).tolist() == [True, False]
    for rows in both:
        assert np.isnan(rows[:, 0]).all()
        assert not np.isnan(rows[:, 1]).any()


def test_confident_loss_keeps_its_gradient():
    """The clamp at 0 must not cut the gradient off (optax issue 1771)."""
    logits = jnp.array([[0.0, 17.0], [0.0, 17.0]])
    loss, gradient = loss_and_gradient(logits, None, jnp.array([1]), None)
    assert 0 <= loss <= 1e-7
    nearly = jnp.array([[0.0, 9.0], [0.0, 9.0]])
    _, gradient = loss_and_gradient(nearly, None, jnp.array([1]), None)
    log_probs = oracles.log_softmax(nearly)
    truth = np.exp(log_probs) - oracles.enumerate_paths(log_probs, [1]).occupancies
    np.testing.assert_allclose(gradient, truth, atol=1e-7)


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.1, 1, 5, 30]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
)
def test_never_negative(seed, scale, dtype):
    """Logits that spell the labels, each with a large margin."""
    rng = np.random.default_rng(seed)
    path = np.repeat(rng.integers(0, 4, 12), 2)
    logits = (scale * (rng.normal(size=(24, 4)) + 8 * np.eye(4)[path])).astype(dtype)
    labels = oracles.collapse(path) or (1,)
    labels, label_paddings = padded([labels], 24)
    assert loss_of(logits, None, labels[0], label_paddings[0]) >= 0


examples = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@given(rng=examples)
def test_reversing_time_and_labels_changes_nothing(rng):
    logits = rng.normal(size=(12, 5)).astype(np.float32) * 3
    labels = rng.integers(1, 5, size=4)
    there, slope = loss_and_gradient(logits, None, labels, None)
    back, reverse_slope = loss_and_gradient(logits[::-1], None, labels[::-1], None)
    assert_close(there, np.asarray(back))
    assert_close(slope, np.asarray(reverse_slope)[::-1])


@given(rng=examples, blank=st.sampled_from([1, 2, 4]))
def test_renaming_classes_changes_nothing(rng, blank):
    logits = rng.normal(size=(12, 5)).astype(np.float32) * 3
    labels = rng.integers(1, 5, size=4)
    names = np.array([blank, *rng.permutation(np.delete(np.arange(5), blank))])
    renamed = logits[:, np.argsort(names)]
    loss = loss_of(renamed, None, names[labels], None, blank_id=blank)
    assert_close(loss, loss_and_gradient(logits, None, labels, None)[0])


@given(rng=examples)
def test_padding_anywhere_changes_nothing(rng):
    """Frames and labels with rubbish strewn between them, value and gradient."""
    logits = rng.normal(size=(12, 5)).astype(np.float32)
    labels = rng.integers(1, 5, size=4)
    loss, gradient = loss_and_gradient(logits, None, labels, None)
    frames = np.sort(rng.choice(18, 12, replace=False))
    places = np.sort(rng.choice(7, 4, replace=False))
    strewn = np.full((18, 5), np.nan, np.float32)
    strewn[frames] = logits
    ids = rng.integers(-9, 9, size=7)
    ids[places] = labels
    no_frame, no_label = np.ones(18), np.ones(7)
    no_frame[frames] = no_label[places] = 0
    strewn_loss, strewn_gradient = loss_and_gradient(strewn, no_frame, ids, no_label)
    assert_close(strewn_loss, np.asarray(loss))
    assert_close(strewn_gradient[frames], np.asarray(gradient))
    np.testing.assert_array_equal(strewn_gradient[no_frame == 1], 0)


@given(rng=examples)
def test_best_path_is_one_of_the_paths(rng):
    logits = rng.integers(-2, 3, size=(12, 5)).astype(np.float32)  # ties abound
    labels = rng.integers(1, 5, size=4)
    total, _ = loss_and_gradient(logits, None, labels, None)
    best, gradient = loss_and_gradient(logits, None, labels, None, max_approx=True)
    assert best >= total - 1e-5
    path = np.exp(oracles.log_softmax(logits)) - gradient
    np.testing.assert_allclose(np.sort(path, axis=-1), [[0, 0, 0, 0, 1]] * 12, atol=1e-5)
    assert oracles.collapse(path.argmax(axis=-1)) == tuple(labels)


def both_of_a_gap(gap):
    """Loss and gradient where both labels are `gap` nats less likely than the blank."""
    return loss_and_gradient(jnp.full((2, 3), gap).at[:, 0].set(0.0), None, jnp.array([1, 2]), None)


def test_the_largest_loss_that_float32_knows():
    """Exponents end at 2^30 bits, 7.4e8 nats: exact below, impossible beyond."""
    loss, _ = both_of_a_gap(-3e8)
    np.testing.assert_allclose(loss, 6e8, rtol=1e-6)
    loss, gradient = both_of_a_gap(-3e7)
    np.testing.assert_allclose(loss, 6e7, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[1, -1, 0], [1, 0, -1]], atol=1e-6)
    loss, gradient = both_of_a_gap(-4e8)
    assert loss == np.inf
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.smoke
def test_the_gradient_of_the_largest_loss():
    _, gradient = both_of_a_gap(-3e8)
    np.testing.assert_allclose(gradient, [[1, -1, 0], [1, 0, -1]], atol=1e-6)


def long_input(kind, frames, places):
    """As benchmarks/accuracy.py makes them, with 32 classes."""
    rng = np.random.default_rng([len(kind), frames])
    labels = rng.integers(1, 32, places)
    logits = rng.normal(size=(frames, 32)).astype(np.float32)
    path = np.zeros(frames, int)
    path[np.sort(rng.choice(frames // 2, places, replace=False)) * 2] = labels
    scale, margin = {"random": (1, 0), "wild": (20, 0), "peaked": (1, 8), "sure": (1, 12)}[kind]
    logits *= np.float32(scale)
    logits[np.arange(frames), path] += margin
    return logits, None, labels.astype(np.int32), None


@pytest.mark.parametrize(
    ("frames", "places"),
    [
        (100, 20),
        pytest.param(1000, 150, marks=pytest.mark.smoke),
        pytest.param(5000, 700, marks=pytest.mark.slow),
        pytest.param(20000, 4000, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", ["random", "wild", "peaked", "sure"])
def test_long_inputs_against_float64(kind, frames, places):
    """Where float32 gradients of other libraries are off by 1e-3 to 1e-1."""
    logits, _, labels, _ = long_input(kind, frames, places)
    # Short ones are padded to the length of the next, which compiles once.
    size, most = max(frames, 1000), max(places, 150)
    logits = np.pad(logits, ((0, size - frames), (0, 0)))
    labels = np.pad(labels, (0, most - places))
    rest = np.arange(size) >= frames, labels, np.arange(most) >= places
    loss, gradient = loss_and_gradient(logits, *rest)
    with jax.enable_x64(True):
        truth, slope = loss_and_gradient(logits.astype(np.float64), *rest)
    absolute = 1e-7 * np.sqrt(frames) if kind == "sure" else 0
    np.testing.assert_allclose(loss, truth, rtol=4e-7 if kind != "sure" else 0, atol=absolute)
    # Roundings of the frames add up like √T: 1.1e-5 of 20000 peaked ones.
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-5 * max(1, (frames / 5000) ** 0.5))


def test_gradient_against_finite_differences():
    """The oracle's own formula, softmax minus occupancy, checked by the loss alone."""
    logits = np.random.default_rng(2).normal(size=(4, 3))

    def enumerated(logits):
        return oracles.enumerate_paths(oracles.log_softmax(logits), (1, 2)).loss

    truth = np.zeros_like(logits)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-6
        truth[place] = (enumerated(logits + step) - enumerated(logits - step)) / 2e-6
    _, gradient = loss_and_gradient(logits.astype(np.float32), None, np.array([1, 2]), None)
    np.testing.assert_allclose(gradient, truth, atol=1e-6)


def test_gradient_of_log_probabilities_is_minus_the_occupancy():
    """Rows sum to -1, where torch's sum to 0 (pytorch issue 52241)."""
    _, gradient = loss_and_gradient(*batch_of(BATCHES[0]), blank_id=0, logits_normalized=True)
    for slope, case in zip(gradient, BATCHES[0], strict=True):
        frames = slope[: len(case.logits)][case.frames_in_use]
        if case.kind == "finite" and len(frames):
            np.testing.assert_allclose(frames.sum(axis=-1), -1, rtol=1e-5, err_msg=case.name)
