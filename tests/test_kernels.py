"""All implementations of the loss, held to the same truth; and who is chosen for what.

The reference is the recursion as it is written down. A kernel that joins `IMPLEMENTATIONS` meets
everything here without another line. On a CPU the Pallas kernels are emulated.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from cases import BATCHES, CASES, IDS, batch_of
from every_pair import at_all_frames, every_pair, every_topology
from oracles import assert_close

import jaxctc
from benchmarks.accuracy import KINDS, SIZES, problem
from jaxctc._core import kernels
from jaxctc._core.derivatives import negative_log_likelihood
from jaxctc._core.emissions import build_lattice, prepare_inputs
from jaxctc._core.kernels import IMPLEMENTATIONS, dispatch, reference, xla_blocked
from jaxctc._core.occupancies import solve

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
PALLAS = [f"pallas for a {name}" for name in dispatch.KERNELS]
"""Programs are compiled for each of them: JAX's caches know nothing of the environment."""
ALL = [*(name for name in IMPLEMENTATIONS if name != "pallas"), *PALLAS]
every_implementation = pytest.mark.parametrize("implementation", ALL)


@pytest.fixture(autouse=True)
def _run_here(monkeypatch, request):
    """Emulates a kernel on a CPU; on a device its own one runs."""
    named = getattr(request.node, "callspec", None)
    implementation, _, name = (
        (named.params if named else {}).get("implementation", "").partition(" for a ")
    )
    monkeypatch.setenv(dispatch.INTERPRET, name or "tpu")
    if implementation == "pallas" and jax.default_backend() not in ("cpu", name):
        pytest.skip("the kernel of another platform")


def marked(case):
    """One example that is infeasible for lack of frames is among the minute's worth of tests."""
    return pytest.param(case, marks=[pytest.mark.smoke] * (case.name == "one frame too few"))


def prepared(implementation, arguments, **options):
    options = {"blank_id": 0, "logits_normalized": False, **options}
    config, inputs = prepare_inputs("test", *arguments, **options)
    return config._replace(implementation=implementation.partition(" for a ")[0]), inputs


def loss_and_gradient(implementation, arguments, **options):
    """Of each example on its own: a sum would mix a NaN into the neighbours."""
    logits, *rest = arguments
    return jax.device_get(_loss_and_gradient(implementation, logits, rest, tuple(options.items())))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _loss_and_gradient(implementation, logits, rest, options):
    def loss(logits):
        config, inputs = prepared(implementation, (logits, *rest), **dict(options))
        return negative_log_likelihood(config, False, inputs)

    values, pullback = jax.vjp(loss, logits)
    return values, *pullback(jnp.ones_like(values))


@functools.partial(jax.jit, static_argnums=(0, 2))
def occupancies(implementation, arguments, options=()):
    config, inputs = prepared(implementation, arguments, **dict(options))
    return solve(build_lattice(inputs, config).problem, config)[1]


@every_implementation
class TestEveryImplementation:
    @every_topology
    def test_every_path(self, implementation, classes, blank):
        """All T ≤ 5, K ≤ 3 and every label sequence, against the enumeration of all paths."""
        every = every_pair(classes, blank)
        loss, gradient = loss_and_gradient(implementation, every.arguments, blank_id=blank)
        loss, gradient = loss[: len(every.labels)], gradient[: len(every.labels), :, :classes]
        assert_close(loss, [truth.loss for truth in every.truths])
        expected = [
            (np.exp(log_probs) - truth.occupancies) * np.isfinite(truth.loss)
            for log_probs, truth in zip(every.log_probs, every.truths, strict=True)
        ]
        assert_close(gradient, at_all_frames(expected))

    @pytest.mark.parametrize("case", [*map(marked, CASES)], ids=IDS)
    def test_contract(self, implementation, case):
        loss, gradient = all_cases(implementation, case.blank_id)
        index = BATCHES[case.blank_id].index(case)
        frames, classes = case.logits.shape
        loss, gradient = loss[index], gradient[index]
        np.testing.assert_array_equal(gradient[frames:], 0)
        gradient = gradient[:frames, :classes][case.frames_in_use]
        if case.kind == "nan":
            assert np.isnan(loss)
            assert np.isnan(gradient).all()
            return
        assert_close(loss, case.truth().loss)
        if case.kind == "infeasible":
            np.testing.assert_array_equal(gradient, 0)
        else:
            softmax = np.exp(oracles.log_softmax(case.logits[case.frames_in_use]))
            assert_close(gradient, softmax - case.truth().occupancies)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("frames", "labels"), [SIZES[0], slow(*SIZES[1])])
    def test_accuracy(self, implementation, kind, frames, labels):
        given = problem(kind, frames, labels)
        loss, gradient = loss_and_gradient(implementation, (given.logits, None, given.labels, None))
        with jax.enable_x64(True):
            arguments = given.logits.astype(np.float64), None, given.labels, None
            truth, slope = loss_and_gradient("reference", arguments)
        np.testing.assert_allclose(loss, truth, rtol=2e-7, atol=1e-6)
        np.testing.assert_allclose(gradient, slope, atol=8e-6)


@pytest.mark.parametrize(
    "implementation",
    [slow(name) if name == PALLAS[1] else name for name in ALL if name != "reference"],
)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"label_loop": False}, id="no-loop"),
        pytest.param({"wildcard_id": 5, "wildcard_penalty": 0.3}, id="wildcard"),
        pytest.param({"logits_normalized": True}, id="normalized"),
        pytest.param({"label_priors": (-0.9, -1.2, -2.3, -2.3, -2.3)}, id="priors"),
    ],
)
@pytest.mark.parametrize(
    "batch", [(), slow((3,)), (17,), slow((2, 3))], ids=lambda batch: f"{len(batch)} axes"
)
def test_options_and_batches_against_the_reference(implementation, options, batch, rng):
    """For many examples with few labels, too, which lie otherwise."""
    if implementation in PALLAS and "wildcard_id" in options:
        pytest.skip("refused, see `test_pallas_tpu` and `test_pallas_gpu`")
    classes = 6 if "wildcard_id" in options else 5
    arguments = (
        rng.normal(size=(*batch, 21, 5)).astype(np.float32),
        rng.random((*batch, 21)) < 0.2,
        rng.integers(1, classes, (*batch, 6)),
        rng.random((*batch, 6)) < 0.3,
    )
    loss, gradient = loss_and_gradient(implementation, arguments, **options)
    truth, slope = loss_and_gradient("reference", arguments, **options)
    assert np.isfinite(truth).any()
    np.testing.assert_allclose(loss, truth, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(gradient, slope, atol=3e-6)
    if "wildcard_id" not in options:
        return  # the gradient says it all
    ours, theirs = (
        occupancies(name, arguments, tuple(options.items()))
        for name in (implementation, "reference")
    )
    for part, true in zip(ours, theirs, strict=True):
        assert (part is None) == (true is None)
        if part is not None:
            np.testing.assert_allclose(part, true, atol=3e-6)


@functools.cache
def all_cases(implementation, blank_id):
    return loss_and_gradient(implementation, batch_of(BATCHES[blank_id]), blank_id=blank_id)


def problem_of(dtype):
    arguments = np.zeros((2, 3, 4), dtype), None, np.ones((2, 1), np.int32), None
    config, inputs = prepared("xla", arguments)
    return build_lattice(inputs, config).problem


def test_the_blocked_schedule_runs_unless_it_cannot():
    chosen = functools.partial(kernels.resolve, label_loop=True)
    assert chosen(None, problem_of(np.float32)) is xla_blocked
    assert chosen("xla", problem_of(np.float32)) is xla_blocked
    assert chosen("reference", problem_of(np.float32)) is reference
    with jax.enable_x64(True):
        assert chosen("xla", problem_of(np.float64)) is reference


def test_a_profile_shows_which_one_ran():
    arguments = jnp.zeros((3, 2)), None, jnp.array([1]), None
    text = jax.jit(jaxctc.ctc_loss).lower(*arguments).as_text(debug_info=True)
    assert "ctc_xla_blocked" in text
    loss = functools.partial(jaxctc.ctc_loss, implementation="pallas")
    text = jax.jit(loss).lower(*arguments).as_text(debug_info=True)
    assert "ctc_pallas_tpu" in text


HIDDEN = (jnp.zeros((3, 2)), jnp.eye(2), None, None, jnp.array([1]), None)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (jaxctc.ctc_loss, (jnp.zeros((3, 2)), None, jnp.array([1]), None)),
        (jaxctc.posteriors, (jnp.zeros((3, 2)), None, jnp.array([1]), None)),
        (jaxctc.ctc_loss_from_hidden, HIDDEN),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
class TestImplementation:
    def test_named(self, function, arguments):
        unnamed, named = function(*arguments), function(*arguments, implementation="xla")
        jax.tree.map(np.testing.assert_array_equal, unnamed, named)

    def test_pallas(self, function, arguments):
        ours = function(*arguments, implementation="pallas")
        chex.assert_trees_all_close(ours, function(*arguments), atol=1e-6)

    def test_pallas_refuses_what_it_cannot_do(self, function, arguments, x64):
        in_float64 = [
            part.astype(jnp.float64) if part is not None and part.dtype == jnp.float32 else part
            for part in arguments
        ]
        message = (
            f'{function.__name__}: implementation must be None or "xla" here; got pallas. '
            "The TPU kernel computes in float32, not in float64."
        )
        with pytest.raises(ValueError, match=message):
            function(*in_float64, implementation="pallas")

    def test_unknown(self, function, arguments):
        message = 'implementation must be None, "xla" or "pallas"; got 3'
        with pytest.raises(ValueError, match=message):
            function(*arguments, implementation=3)
