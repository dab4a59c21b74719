"""Under every switch of JAX that users throw: the values of every day, and nothing raised.

Strict promotion of dtypes and ranks is on in the whole suite, and x64 has tests of its own in
test_public_api.py, whose calls these are.
"""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_public_api as public

import jaxctc

# In the fast lane: a loss, a search and a count. An eager call of any other takes seconds, too.
FAST = {"ctc_loss", "error_counts", "forced_align", "prefix_beam_search"}
# Results that are -inf by definition: of what is impossible, and of empty slots of a beam.
INFINITE = {
    "backward_log_probs",
    "beam_init",
    "beam_step",
    "ctc_loss_with_forward_probs",
    "forward_log_probs",
    "insertion_scores",
    "prefix_scores_init",
    "prefix_scores_select",
    "substitution_scores",
}
TRACED = set(public.FUNCTIONS) - public.ON_THE_HOST


def functions(names):
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
            for name in sorted(names)
        ],
    )


def arguments_of(name, *, typed_key=False):
    """On the device; static ones as they are."""
    static = public.STATIC.get(name, ())
    return tuple(
        jax.random.wrap_key_data(argument)
        if typed_key and argument is public.KEY
        else argument
        if place in static
        else jax.tree.map(jnp.array, argument)
        for place, argument in enumerate(public.CALLS[name])
    )


def gradient_of_loss(logits):
    return jax.grad(lambda logits: jaxctc.ctc_loss(logits, *public.CTC[1:]).sum())(logits)


@contextlib.contextmanager
def checks_of_jax(*, infs=True):
    """`jax_debug_nans`, `jax_debug_infs` and `jax_enable_checks` at once."""
    with jax.debug_nans(True), jax.debug_infs(infs), jax.enable_checks(True):
        yield


@functions(TRACED)
def test_checks_of_jax_find_nothing(name):
    """In eager calls, where they look at every operation outside of what is compiled."""
    expected = public.result_of(name)
    with checks_of_jax(infs=name not in INFINITE):
        found = public.call_of(name)(*public.CALLS[name])
    public.assert_same(found, expected)


def test_checks_of_jax_find_nothing_in_the_gradient():
    expected = jax.jit(gradient_of_loss)(public.LOGITS)
    with checks_of_jax():
        public.assert_same(gradient_of_loss(public.LOGITS), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"wildcard_id": 4},
        {"label_priors": np.log(np.full(4, 0.25, np.float32))},
        {"max_approx": True},
        {"label_loop": False, "zero_infinity": True},
        {"logits_normalized": True},
    ],
    ids=str,
)
def test_no_option_is_infinite_on_the_way(options):
    """Labels that fit, with every option that takes operations before the recursion."""
    labels = np.array([[1, 2, 3], [3, 1, 2]])
    with checks_of_jax():
        losses = jaxctc.ctc_loss(public.LOGITS, None, labels, None, **options)
    assert np.isfinite(losses).all()


def test_an_infinity_that_is_due_is_found():
    """Labels that do not fit: the switch stops there, so that the tests above can fail."""
    arguments = jnp.zeros((1, 2)), None, jnp.array([1, 1]), None
    with jax.debug_infs(True), pytest.raises(FloatingPointError, match="inf"):
        jaxctc.ctc_loss(*arguments)


@pytest.mark.parametrize("name", ["purpose_loss", "sample_alignments"])
def test_new_keys_alone(name):
    """Where raw keys are errors, typed ones draw what raw ones do elsewhere."""
    with jax.legacy_prng_key("error"):
        found = jax.jit(public.call_of(name)).eval_shape(*arguments_of(name, typed_key=True))
        with pytest.raises(ValueError, match="Legacy uint32 key"):
            jax.jit(public.call_of(name)).eval_shape(*arguments_of(name))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        found, public.jitted(name).eval_shape(*public.CALLS[name])
    )


@functions(TRACED)
def test_no_transfer_while_a_compiled_program_is_called(name):
    """Arrays on the device, compiled and called under the strictest guard."""
    arguments = arguments_of(name)
    function = jax.jit(public.call_of(name), static_argnums=public.STATIC.get(name, ()))
    with jax.transfer_guard("disallow"):
        found = jax.block_until_ready(function(*arguments))
    public.assert_same(found, public.result_of(name))


@functions(TRACED)
def test_nothing_leaks_from_tracing(name):
    """What is traced once leaves no tracer behind, in a default, a cache or a closure."""
    with jax.checking_leaks():
        jax.jit(public.call_of(name), static_argnums=public.STATIC.get(name, ())).eval_shape(
            *public.CALLS[name]
        )


def test_nothing_leaks_from_the_gradient():
    with jax.checking_leaks():
        jax.jit(gradient_of_loss).eval_shape(public.LOGITS)


def test_donated_buffers():
    """The gradient takes the place of the logits; an eager call keeps its hands off them."""
    expected = jax.jit(gradient_of_loss)(public.LOGITS)
    given = jnp.array(public.LOGITS)
    donated = jax.jit(gradient_of_loss, donate_argnums=0)(given)
    assert given.is_deleted()
    np.testing.assert_array_equal(donated, expected)
    kept = jnp.array(public.LOGITS)
    jaxctc.ctc_loss(kept, *public.CTC[1:])
    assert not kept.is_deleted()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(public.WITH_LOOPS))
def test_calls_after_the_caches_are_cleared(name):
    """Compiled anew, with the same bits."""
    before = jax.device_get(public.call_of(name)(*public.CALLS[name]))
    jax.clear_caches()
    chex.assert_trees_all_equal(jax.device_get(public.call_of(name)(*public.CALLS[name])), before)


@contextlib.contextmanager
def without_jit():
    """`jax.disable_jit`, with promotion as users have it: JAX's own loops promote there."""
    with jax.disable_jit(), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
def test_random_alignments_are_compiled_without_jit(compilations):
    """Operation by operation, their generator would compile something new at every frame."""
    with without_jit():
        arguments = public.KEY, np.zeros((24, 3), np.float32), None, np.array([1, 2]), None
        jaxctc.sample_alignments(*arguments, num_samples=2)
    assert 0 < len(compilations) < 24


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(public.WITH_LOOPS))
def test_without_jit(name):
    """Frame by frame, in Python: the same values."""
    expected = public.result_of(name)
    with without_jit():
        found = public.call_of(name)(*public.CALLS[name])
    public.assert_same(found, expected)
