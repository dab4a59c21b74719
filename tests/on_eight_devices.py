"""Batches and vocabularies on several devices: the same numbers, and what the devices exchange.

Run by test_sharding.py, on eight devices that are the CPU in truth.
"""

import functools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import assert_equal, batch, exchanged, mean_and_gradient, mesh, step
from jax import P
from jax.export import export
from jax.sharding import NamedSharding
from scripts import EXAMPLES

import jaxctc
from jaxctc import ctc_loss


class TestBatches:
    @pytest.mark.parametrize(
        ("classes", "labels", "examples", "axes"),
        [
            (40, 48, 8, {"batch": 4, "vocab": 2}),
            (40, 6, 8, {"batch": 8}),
            (40, 6, 32, {"batch": 8}),
            (5, 6, 32, {"batch": 8}),
            (4000, 6, 8, {"batch": 4, "vocab": 2}),
        ],
        ids=str,
    )
    def test_devices_exchange_the_mean_and_nothing_else(self, classes, labels, examples, axes, rng):
        """Fewer classes than labels, and more, with either innermost (`choose_layout`);
        along "vocab", all devices have the same."""
        arguments = batch(rng, classes, labels, examples)
        spread = jax.device_put(arguments, NamedSharding(mesh(**axes), P("batch")))
        compiled = step.lower(*spread).compile()
        assert set(exchanged(compiled)) == {("all-reduce", ())}
        assert_equal(compiled(*spread), step(*arguments))

    def test_two_axes_of_batch_stay_where_they_are(self, rng):
        """Kernels know one axis of batch: the other is mapped over, and not folded into it."""
        arguments = jax.tree.map(
            lambda part: part.reshape(8, 4, *part.shape[1:]), batch(rng, 40, examples=32)
        )

        @jax.jit
        def step(logits, *rest):
            mean = jax.value_and_grad(lambda logits: jnp.mean(ctc_loss(logits, *rest)))
            return mean(logits), jaxctc.posteriors(logits, *rest)

        places = NamedSharding(mesh(outer=4, inner=2), P("outer", "inner"))
        spread = jax.device_put(arguments, places)
        compiled = step.lower(*spread).compile()
        assert set(exchanged(compiled)) == {("all-reduce", ())}
        assert_equal(compiled(*spread), step(*arguments))

    @pytest.mark.filterwarnings("ignore:jaxctc. implementation:UserWarning")
    def test_two_axes_of_batch_stay_where_there_is_no_kernel(self, rng):
        """A program for several platforms runs as plain operations here; nothing is exchanged."""
        arguments = jax.tree.map(
            lambda part: part.reshape(8, 4, *part.shape[1:]), batch(rng, 40, examples=32)
        )
        places = NamedSharding(mesh(outer=4, inner=2), P("outer", "inner"))
        spread = jax.device_put(arguments, places)
        weights = jax.device_put(np.ones((8, 4), np.float32), places)

        def program(implementation):
            return functools.partial(loss_and_gradient, implementation=implementation)

        given = weights, *spread
        exported = export(jax.jit(program("pallas")), platforms=["cpu", "tpu"])(*given)
        compiled = jax.jit(exported.call).lower(*given).compile()
        assert exchanged(compiled) == []
        assert_equal(compiled(*given), program("xla")(np.ones((8, 4), np.float32), *arguments))

    @pytest.mark.parametrize("check_vma", [True, False])
    def test_the_kernel_of_a_tpu_runs_on_every_device(self, check_vma, rng, monkeypatch):
        """Emulated, within `jax.shard_map`: the same numbers, and nothing is exchanged."""
        monkeypatch.setenv("JAXCTC_PALLAS_INTERPRET", "tpu")
        logits, *rest = batch(rng, 5, examples=16)
        weights = np.ones(16, np.float32)
        function = functools.partial(loss_and_gradient, implementation="pallas")
        spread = jax.shard_map(
            function,
            mesh=mesh(batch=8),
            in_specs=P("batch"),
            out_specs=P("batch"),
            check_vma=check_vma,
        )
        compiled = jax.jit(spread).lower(weights, logits, *rest).compile()
        assert exchanged(compiled) == []
        ours, theirs = compiled(weights, logits, *rest), loss_and_gradient(weights, logits, *rest)
        chex.assert_trees_all_close(ours, theirs, rtol=1e-6, atol=1e-6)

    def test_alignments_and_word_errors(self, rng):
        """Nothing to sum up here."""

        @jax.jit
        def evaluate(logits, *rest):
            best = jaxctc.forced_align(logits, *rest, wildcard_id=5)
            tokens = best.frame_labels, best.frame_labels < 0, *rest[1:]
            return best, jaxctc.edit_distance(*tokens, separator=1)

        arguments = batch(rng, 5)
        there = jax.device_put(arguments, NamedSharding(mesh(batch=8), P("batch")))
        compiled = evaluate.lower(*there).compile()
        assert exchanged(compiled) == []
        assert_equal(compiled(*there), evaluate(*arguments))


def loss_and_gradient(weights, logits, *rest, **options):
    """Losses, and the gradient of their weighted sum."""
    losses, pullback = jax.vjp(lambda logits: ctc_loss(logits, *rest, **options), logits)
    return losses, *pullback(weights)


def slopes(weights, logits, *rest, **options):
    """How losses and gradient change as all scores grow by half."""

    def along(logits):
        return loss_and_gradient(weights, logits, *rest, **options)

    return jax.jvp(along, (logits,), (0.5 * logits,))[1]


OF_EXAMPLES, OF_CLASSES = P("batch"), P("batch", None, "vocab")


OF_LOSS = {"in_specs": (OF_CLASSES, *(OF_EXAMPLES,) * 3), "out_specs": OF_EXAMPLES}
OF_BOTH = {
    "in_specs": (OF_EXAMPLES, *OF_LOSS["in_specs"]),
    "out_specs": (OF_EXAMPLES, OF_CLASSES),
}


def spread(function, specs=OF_BOTH, **options):
    """With the classes on four devices, and two such groups for the examples."""
    function = functools.partial(function, **{"vocab_axis_name": "vocab"} | options)
    return jax.shard_map(function, mesh=mesh(batch=2, vocab=4), **specs)


def refused(specs=OF_LOSS, **options):
    arguments = jnp.zeros((8, 12, 40)), None, jnp.ones((8, 6), jnp.int32), None
    return lambda: jax.eval_shape(spread(ctc_loss, specs, **options), *arguments)


NO_AXIS = (
    "ctc_loss: vocab_axis_name must name an axis of the enclosing jax.shard_map that the classes "
    "are spread over; got 'vocab'. The last entry of their in_specs names it, and check_vma stays "
    "True."
)
ERRORS = {
    "outside shard_map": (
        lambda: ctc_loss(jnp.zeros((2, 3)), None, jnp.array([1]), None, vocab_axis_name="vocab"),
        NO_AXIS,
    ),
    "within vmap": (
        lambda: jax.vmap(
            functools.partial(ctc_loss, vocab_axis_name="vocab"),
            in_axes=(2, None, None, None),
            axis_name="vocab",
        )(jnp.zeros((2, 3, 4)), None, jnp.array([1]), None),
        NO_AXIS,
    ),
    "classes in one place": (refused(OF_LOSS | {"in_specs": OF_EXAMPLES}), NO_AXIS),
    "unchecked": (refused(OF_LOSS | {"check_vma": False}), NO_AXIS),
    "another axis": (
        refused(vocab_axis_name="classes"),
        NO_AXIS.replace("'vocab'", "'classes'"),
    ),
    "wildcard": (
        refused(wildcard_id=40),
        "ctc_loss: wildcard_id must be None with vocab_axis_name; got 40. A wildcard takes what "
        "all classes have together: they must lie in one place.",
    ),
    "blank": (
        refused(blank_id=40),
        "ctc_loss: blank_id must be a class id in [-40, 40); got 40. There are K = 40 classes, "
        "the blank included.",
    ),
    "priors of all classes": (
        refused(label_priors=jnp.zeros(40)),
        "ctc_loss: label_priors must have shape (10,) or (4, 10), [*B, K]; got (40,).",
    ),
}


class TestVocabularies:
    def test_best_path_of_log_probabilities(self, rng):
        arguments = np.linspace(1, 2, 8, dtype=np.float32), *batch(rng, 40)
        arguments[3][2, 0] = 39  # the last class
        options = {"max_approx": True, "logits_normalized": True}
        ours = jax.jit(spread(loss_and_gradient, **options))(*arguments)
        assert_equal(ours, jax.jit(functools.partial(loss_and_gradient, **options))(*arguments))

    def test_every_awkward_case(self):
        """A class per device, and fewer classes than labels."""
        batch = cases.BATCHES[0]
        arguments = cases.batch_of(batch + batch[: len(batch) % 2])
        weights = np.ones(len(arguments[0]), np.float32)
        ours = jax.jit(spread(loss_and_gradient))(weights, *arguments)
        assert_equal(ours, jax.jit(loss_and_gradient)(weights, *arguments))

    def test_second_derivatives(self, rng):
        arguments = np.linspace(1, 2, 8, dtype=np.float32), *batch(rng, 40)
        assert_equal(jax.jit(spread(slopes))(*arguments), jax.jit(slopes)(*arguments))

    def test_priors_are_spread_like_logits(self, rng):
        """With the blank on the last device."""

        def loss_and_gradients(priors, logits, *rest, vocab_axis_name=None):
            def losses(priors, logits):
                return ctc_loss(
                    logits,
                    *rest,
                    blank_id=-1,
                    label_loop=False,
                    label_priors=priors,
                    prior_scale=0.5,
                    vocab_axis_name=vocab_axis_name,
                )

            found, pullback = jax.vjp(losses, priors, logits)
            return found, pullback(jnp.ones_like(found))

        arguments = np.log(rng.dirichlet(np.ones(40))).astype(np.float32), *batch(rng, 40)
        specs = {
            "in_specs": (P("vocab"), *OF_LOSS["in_specs"]),
            "out_specs": (OF_EXAMPLES, (P("vocab"), OF_CLASSES)),
        }
        ours = spread(loss_and_gradients, specs)
        assert_equal(jax.jit(ours)(*arguments), jax.jit(loss_and_gradients)(*arguments))

    def test_a_bias_and_its_gradient_are_the_same_everywhere(self, rng):
        def loss_and_gradients(bias, logits, *rest, vocab_axis_name=None):
            def losses(bias, logits):
                options = {"label_bias": bias, "vocab_axis_name": vocab_axis_name}
                return ctc_loss(logits, *rest, **options)

            found, pullback = jax.vjp(losses, bias, logits)
            return found, pullback(jnp.ones_like(found))

        arguments = batch(rng, 40)
        bias = rng.normal(size=(8, 12, 6)).astype(np.float32)
        bias[:, 3, 0] = -np.inf
        specs = {
            "in_specs": (OF_EXAMPLES, *OF_LOSS["in_specs"]),
            "out_specs": (OF_EXAMPLES, (OF_EXAMPLES, OF_CLASSES)),
        }
        ours = spread(loss_and_gradients, specs)
        assert_equal(jax.jit(ours)(bias, *arguments), jax.jit(loss_and_gradients)(bias, *arguments))

    def test_what_devices_exchange_does_not_grow_with_the_classes(self, rng):
        """In every frame N + 1 scores, a maximum and two sums; the mean is the user's."""
        losses = spread(ctc_loss, OF_LOSS)
        arguments = batch(rng, 4000)
        of_classes = NamedSharding(mesh(batch=2, vocab=4), OF_CLASSES)
        there = jax.device_put(arguments[0], of_classes), *arguments[1:]
        compiled = jax.jit(mean_and_gradient(losses)).lower(*there).compile()
        loss, gradient = compiled(*there)
        assert_equal((loss, gradient), step(*arguments)[:2])
        assert gradient.sharding.is_equivalent_to(of_classes, gradient.ndim)
        shapes = [(), (4, 12), (4, 12), (4, 12), (4, 12, 6 + 1)]
        assert sorted(exchanged(compiled)) == [("all-reduce", shape) for shape in shapes]

    @pytest.mark.parametrize("mistake", ERRORS)
    def test_errors(self, mistake):
        call, message = ERRORS[mistake]
        with pytest.raises(ValueError, match=r": .* must ") as error:
            call()
        assert str(error.value) == message


EVERY_EXAMPLE = {
    "ctc_loss": lambda logits, *rest: ctc_loss(logits, *rest),
    "max_approx": lambda logits, *rest: ctc_loss(logits, *rest, max_approx=True),
    "gradient": lambda logits, *rest: jax.grad(lambda x: jnp.sum(ctc_loss(x, *rest)))(logits),
    "ctc_loss_from_hidden": lambda hidden, *rest: jax.grad(
        lambda hidden, kernel: jnp.sum(jaxctc.ctc_loss_from_hidden(hidden, kernel, None, *rest))
    )(hidden, jnp.ones((5, 7))),
    "forward_log_probs": lambda logits, *rest: jnp.moveaxis(
        jaxctc.forward_log_probs(logits, *rest).blank, 0, 1
    ),
    "posteriors": lambda logits, *rest: jaxctc.posteriors(logits, *rest, wildcard_id=5),
    "alignment_entropy": jaxctc.alignment_entropy,
    "sample_alignments": lambda *arguments: jaxctc.sample_alignments(
        jax.random.key(0), *arguments, num_samples=2
    ),
    "forced_align": lambda *arguments: jaxctc.forced_align(*arguments, wildcard_id=5),
    "greedy_decode": lambda logits, padded, *_: jaxctc.greedy_decode(logits, padded),
    "prefix_beam_search": lambda logits, padded, *_: jaxctc.prefix_beam_search(
        logits,
        padded,
        times=True,
        hot_words=jaxctc.hot_words([[1, 2]], 2.0),
        lexicon=jaxctc.build_lexicon(["ab"], jaxctc.Vocabulary(list("-|abc"), separator="|")),
    ),
    "prefix_beam_search, mapped": lambda logits, padded, *_: jax.vmap(jaxctc.prefix_beam_search)(
        logits, padded
    ),
    "error_counts": lambda logits, padded, *rest: jaxctc.error_counts(*rest, *rest, separator=1),
}


class TestWithinShardMap:
    @pytest.mark.parametrize("name", EVERY_EXAMPLE)
    def test_everything_can_be_traced(self, name, rng):
        """What loops carry varies over the devices from the start."""
        everywhere = jax.shard_map(
            EVERY_EXAMPLE[name], mesh=mesh(batch=8), in_specs=P("batch"), out_specs=P("batch")
        )
        jax.eval_shape(everywhere, *batch(rng, 5))

    def test_beams_exchange_nothing(self, rng):
        """As they would under `jit`, where XLA does not split `top_k`."""
        arguments = batch(rng, 5)[:2]
        everywhere = jax.shard_map(
            jaxctc.prefix_beam_search,
            mesh=mesh(batch=8),
            in_specs=P("batch"),
            out_specs=P("batch"),
        )
        compiled = jax.jit(everywhere).lower(*arguments).compile()
        assert exchanged(compiled) == []
        assert_equal(compiled(*arguments), jax.jit(jaxctc.prefix_beam_search)(*arguments))

    def test_an_evaluation_adds_its_counts_up_and_exchanges_nothing_else(self, monkeypatch):
        """The example: a network, its losses, beams and alignments, for lines on every device."""
        monkeypatch.syspath_prepend(EXAMPLES)
        needs = "needs the extra `examples`"
        evaluate_vmap = pytest.importorskip("evaluate_vmap", reason=needs)
        scans, rng = evaluate_vmap.load_scans("test"), np.random.default_rng(0)
        lines = evaluate_vmap.for_all_devices(evaluate_vmap.make_lines(scans, 13, rng))
        reader = evaluate_vmap.Reader(layers=1, rngs=evaluate_vmap.nnx.Rngs(0))
        judge_all = evaluate_vmap.judge_all.lower(reader, lines, batch_size=2, beam_width=3)
        reductions = exchanged(judge_all.compile())
        assert 1 <= len(reductions) <= len(jaxctc.ErrorCounts._fields)
        assert set(reductions) == {("all-reduce", ())}
