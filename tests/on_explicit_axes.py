"""Arrays on a mesh of explicit axes: what takes them, where results are, and what refuses them.

Run by test_sharding.py, on eight devices that are the CPU in truth.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import assert_equal, batch, exchanged, mean_and_gradient, mesh, step
from jax import P
from jax.sharding import AxisType, NamedSharding

import jaxctc
from jaxctc import ctc_loss
from jaxctc.adapters import frame_objectives, keras, optax, torch, torchaudio


def against_their_reverse(logits, logit_paddings, labels, label_paddings):
    del logits, logit_paddings
    return labels, label_paddings, jnp.flip(labels, -1), None


def of_targets_in_a_row(logits, logit_paddings, labels, label_paddings):
    """Three targets of each example, whatever they say here."""
    del labels, label_paddings
    frames = jaxctc.paddings_to_lengths(logit_paddings)
    three = jnp.minimum(frames, 3)
    targets = jnp.array([1, 2, 3] * 8)
    return torch.ctc_loss(jnp.moveaxis(logits, 1, 0), targets, frames, three, reduction="none")


LIKE_THE_EXAMPLES = {
    "ctc_loss": ctc_loss,
    "adapters.optax.ctc_loss": optax.ctc_loss,
    "label_bias": lambda logits, *rest: ctc_loss(
        logits, *rest, label_bias=jnp.repeat(logits[..., :1], 6, axis=-1)
    ),
    "gradient": jax.grad(lambda *given: jnp.sum(ctc_loss(*given))),
    "second derivative": lambda logits, *rest: jax.jvp(
        jax.grad(lambda logits: jnp.sum(ctc_loss(logits, *rest))), (logits,), (logits,)
    )[1],
    "mapped over": jax.vmap(ctc_loss),
    "mapped over, its gradient": jax.grad(lambda *given: jnp.sum(jax.vmap(ctc_loss)(*given))),
    "ctc_loss_from_hidden": lambda hidden, *rest: jaxctc.ctc_loss_from_hidden(
        hidden, jnp.ones((5, 7)), None, *rest
    ),
    "posteriors": jaxctc.posteriors,
    "expected_durations": jaxctc.expected_durations,
    "alignment_entropy": jaxctc.alignment_entropy,
    "sample_alignments": lambda *given: jaxctc.sample_alignments(
        jax.random.key(0), *given, num_samples=3
    ),
    "substitution_scores": jaxctc.substitution_scores,
    "insertion_scores": jaxctc.insertion_scores,
    "forced_align": jaxctc.forced_align,
    "adapters.torchaudio.forced_align": lambda logits, _, labels, __: torchaudio.forced_align(
        jax.nn.log_softmax(logits), labels[:, :2], target_lengths=jnp.full(8, 2)
    ),
    "word_spans": lambda *given: jaxctc.word_spans(
        jaxctc.forced_align(*given), *given[2:], separator=1
    ),
    "greedy_decode": lambda *given: jaxctc.greedy_decode(*given[:2]),
    "word_spans of a best path": lambda *given: jaxctc.word_spans(
        jaxctc.greedy_decode(*given[:2]), separator=1
    ),
    "collapse": lambda logits, paddings, *_: jaxctc.collapse(jnp.argmax(logits, -1), paddings),
    "segment_means": jax.grad(
        lambda hidden, paddings, labels, _: jnp.sum(
            jaxctc.segment_means(hidden, jnp.tile(labels, 2), paddings)[0] ** 2
        )
    ),
    "is_feasible": jaxctc.is_feasible,
    "required_frames": lambda *given: jaxctc.required_frames(given[2]),
    "smoothing_penalty": lambda *given: jaxctc.smoothing_penalty(*given[:2]),
    "confidence_penalty": lambda *given: jaxctc.confidence_penalty(given[0], None),
    "delay_penalty": jax.grad(lambda *given: jnp.sum(jaxctc.delay_penalty(*given))),
    "consistency_loss": lambda *given: jaxctc.consistency_loss(given[0], given[0] ** 2, given[1]),
    "purpose_loss": jax.grad(
        lambda *given: jnp.sum(
            jaxctc.purpose_loss(
                jax.random.key(0), *given, improve=lambda ids: ids.at[..., 0].set(0)
            )
        )
    ),
    "mwer_loss": lambda *given: jaxctc.mwer_loss(*given, hypotheses=given[2][:, None]),
    "error_counts": lambda *given: jaxctc.error_counts(*against_their_reverse(*given)),
    "edit_distance of words": lambda *given: jaxctc.edit_distance(
        *against_their_reverse(*given), separator=1
    ),
    "cross_entropy": lambda logits, paddings, labels, _: jaxctc.cross_entropy(
        logits, jnp.tile(labels, 2), paddings=paddings
    ),
    "cross_entropy along another axis": lambda logits, _, labels, __: jaxctc.cross_entropy(
        jnp.moveaxis(logits, -1, 1), jnp.tile(labels, 2), axis=1
    ),
    "cross_entropy along the first axis": lambda logits, _, labels, __: jaxctc.cross_entropy(
        jnp.moveaxis(logits, -1, 0), jnp.tile(labels, 2), axis=0
    ),
    "cross_entropy of targets that are spread alone": lambda _, __, labels, ___: (
        jaxctc.cross_entropy(jnp.ones((8, 6, 5)), labels)
    ),
    "binary_cross_entropy": lambda logits, *_: jaxctc.binary_cross_entropy(logits, logits > 0),
    "multiclass_hinge_loss": lambda logits, _, labels, __: frame_objectives.multiclass_hinge_loss(
        logits, jnp.tile(labels, 2)
    ),
    "categorical_accuracy": lambda logits, _, labels, __: frame_objectives.categorical_accuracy(
        logits, jnp.tile(labels, 2)
    ),
    "binary_hinge_loss": lambda logits, *_: frame_objectives.binary_hinge_loss(logits, logits > 0),
    "binary_accuracy": lambda logits, *_: frame_objectives.binary_accuracy(logits, logits > 0),
    "squared_error": lambda logits, *_: frame_objectives.squared_error(logits, logits**2),
}
BATCH_SECOND = {
    "adapters.keras.ctc_decode": lambda logits, *_: keras.ctc_decode(logits, jnp.full(8, 9))[0],
    "forward_log_probs": jaxctc.forward_log_probs,
    "backward_log_probs": jaxctc.backward_log_probs,
    "ctc_loss_with_forward_probs": lambda *given: jaxctc.ctc_loss_with_forward_probs(*given)[1:],
}
EVERYWHERE = {
    "cer": lambda *given: jaxctc.cer(*against_their_reverse(*given)),
    "wer": lambda *given: jaxctc.wer(*against_their_reverse(*given), separator=1),
}
"""By where the results are."""
REFUSED = {
    "prefix_beam_search": lambda *given: jaxctc.prefix_beam_search(*given[:2]),
    "prefix_scores_init": lambda *given: jaxctc.prefix_scores_init(*given[:2]),
    "mwer_loss": jaxctc.mwer_loss,
}
"""Of a beam, XLA would let the devices exchange candidates at every frame."""
STEPS: dict[str, Any] = {
    "prefix_scores": (jaxctc.prefix_scores_init, jaxctc.prefix_scores),
    "prefix_scores_select": (
        jaxctc.prefix_scores_init,
        lambda state: jaxctc.prefix_scores_select(state, jnp.ones((8, 1), int)),
    ),
    "beam_step": (
        lambda *_: jaxctc.beam_init(3, batch=(8,), beam_width=4),
        lambda state: jaxctc.beam_step(state, jnp.zeros((8, 2, 5)), None),
    ),
}
"""How each begins, and goes on."""


def there(function, arguments):
    """What it finds with examples on explicit axes, compiled, and what devices exchange for it."""
    devices = mesh(AxisType.Explicit, batch=8)
    with jax.set_mesh(devices):
        spread = jax.device_put(arguments, NamedSharding(devices, P("batch")))
        compiled = jax.jit(function).lower(*spread).compile()
        return compiled(*spread), exchanged(compiled)


def sharding_of(results):
    """How each result is sharded, axis by axis."""
    return [tuple(jax.typeof(result).sharding.spec) for result in jax.tree.leaves(results)]


class TestExplicitAxes:
    @pytest.mark.parametrize("name", LIKE_THE_EXAMPLES)
    def test_results_stay_where_the_examples_are(self, name, rng):
        """The same numbers, and nothing is exchanged."""
        function, arguments = LIKE_THE_EXAMPLES[name], batch(rng, 5)
        found, exchange = there(function, arguments)
        assert exchange == []
        for spec in sharding_of(found):
            assert spec[0] == "batch"
            assert not any(spec[1:])
        assert_equal(found, jax.jit(function)(*arguments))

    def test_targets_in_a_row_exchange_their_lengths(self, rng):
        """For where each example begins, the others have to be known."""
        arguments = batch(rng, 5)
        found, exchange = there(of_targets_in_a_row, arguments)
        assert exchange == [("all-gather", (8,))]
        assert sharding_of(found) == [("batch",)]
        assert_equal(found, jax.jit(of_targets_in_a_row)(*arguments))

    @pytest.mark.parametrize("name", BATCH_SECOND)
    def test_so_do_results_with_an_axis_before_the_batch(self, name, rng):
        function, arguments = BATCH_SECOND[name], batch(rng, 5)
        found, exchange = there(function, arguments)
        assert exchange == []
        assert set(sharding_of(found)) == {(None, "batch", None)}
        assert_equal(found, jax.jit(function)(*arguments))

    @pytest.mark.parametrize("name", EVERYWHERE)
    def test_a_rate_is_that_of_the_whole_batch(self, name, rng):
        """Two counts are added up over the devices."""
        function, arguments = EVERYWHERE[name], batch(rng, 5)
        found, exchange = there(function, arguments)
        assert {operation for operation, _ in exchange} == {"all-reduce"}
        assert sharding_of(found) == [()] * 3
        assert_equal(found, jax.jit(function)(*arguments))

    @pytest.mark.parametrize(
        "name",
        ["ctc_loss", "word_spans", "error_counts", "cross_entropy", "forward_log_probs", "cer"],
    )
    def test_eager_calls_need_no_set_mesh(self, name, rng):
        """Even for results that are the same whatever the examples say."""
        function = (LIKE_THE_EXAMPLES | BATCH_SECOND | EVERYWHERE)[name]
        arguments = batch(rng, 5)
        over_examples = NamedSharding(mesh(AxisType.Explicit, batch=8), P("batch"))
        found = function(*jax.device_put(arguments, over_examples))
        assert_equal(found, jax.jit(function)(*arguments))

    @pytest.mark.parametrize("jit", [True, False])
    @pytest.mark.parametrize(
        ("place", "argument", "kind"),
        [(0, "logits", "float32[8@batch,12,5]"), (1, "logit_paddings", "bool[8@batch,12]")],
    )
    @pytest.mark.parametrize("name", REFUSED)
    def test_what_is_refused_says_what_to_do(self, name, place, argument, kind, jit, rng):
        over_examples = NamedSharding(mesh(AxisType.Explicit, batch=8), P("batch"))
        arguments = [*batch(rng, 5)]
        arguments[place] = jax.device_put(arguments[place], over_examples)
        with pytest.raises(ValueError, match=r": .* must ") as error:
            (jax.jit(REFUSED[name]) if jit else REFUSED[name])(*arguments)
        assert str(error.value) == (
            f"{name}: {argument} must not be spread over explicit axes of a mesh; got {kind}. "
            f"Within jax.set_mesh, wrap {name} in jax.sharding.auto_axes(…, "
            "out_sharding=…), or call it within jax.shard_map."
        )

    def test_auto_axes_make_them_automatic(self, rng):
        """What the message advises: the same numbers."""
        arguments = batch(rng, 5)
        search = REFUSED["prefix_beam_search"]
        found, _ = there(jax.sharding.auto_axes(search, out_sharding=P("batch")), arguments)
        assert_equal(found, jax.jit(search)(*arguments))

    @pytest.mark.parametrize("name", STEPS)
    def test_a_state_is_refused(self, name, rng):
        begin, step = STEPS[name]
        over_examples = NamedSharding(mesh(AxisType.Explicit, batch=8), P("batch"))
        state = jax.device_put(begin(*batch(rng, 5)[:2]), over_examples)
        with pytest.raises(ValueError, match=rf"^{name}: state must not be spread over explicit"):
            step(state)

    @pytest.mark.parametrize("where", [np.asarray, jnp.asarray])
    def test_words_of_labels_that_were_changed_on_the_host(self, where, rng):
        frames = batch(rng, 5)[:2]
        expected = jaxctc.greedy_decode(*frames)
        over_examples = NamedSharding(mesh(AxisType.Explicit, batch=8), P("batch"))
        found = jaxctc.greedy_decode(*jax.device_put(frames, over_examples))
        found = found._replace(labels=where(np.asarray(found.labels)))
        found, expected = (jaxctc.word_spans(each, separator=1) for each in (found, expected))
        assert_equal(found, expected)

    def test_errors_can_be_printed(self, rng):
        arguments = against_their_reverse(*batch(rng, 5))
        over_examples = NamedSharding(mesh(AxisType.Explicit, batch=8), P("batch"))
        there = jax.device_put(arguments, over_examples)
        assert jaxctc.format_errors(*there) == jaxctc.format_errors(*arguments)

    def test_a_batch_can_be_validated_there(self, rng):
        arguments = batch(rng, 5)
        devices = mesh(AxisType.Explicit, batch=8)
        there = jax.device_put(arguments, NamedSharding(devices, P("batch")))
        jaxctc.validate(*there)
        with pytest.raises(ValueError, match="validate: labels of example 0 must be class ids"):
            jaxctc.validate(there[0], None, jnp.zeros_like(there[2]), None)

    def test_a_training_step_exchanges_its_mean(self, rng):
        """Without `jax.set_mesh`, too."""
        arguments, devices = batch(rng, 40), mesh(AxisType.Explicit, batch=8)
        there = jax.device_put(arguments, NamedSharding(devices, P("batch")))
        compiled = jax.jit(mean_and_gradient(ctc_loss)).lower(*there).compile()
        assert exchanged(compiled) == [("all-reduce", ())]
        assert_equal(compiled(*there), step(*arguments)[:2])

    @pytest.mark.parametrize(
        ("kinds", "spread"),
        [
            ((AxisType.Explicit,) * 2, {"logits": P("batch"), "labels": P()}),
            ((AxisType.Explicit,) * 2, {"labels": P("batch")}),
            ((AxisType.Explicit,) * 2, {"logits": P(("batch", "model"))}),
            ((AxisType.Explicit,) * 2, {"logits": P("batch", "model")}),
            ((AxisType.Auto, AxisType.Explicit), {"logits": P("batch"), "labels": P("model")}),
        ],
        ids=str,
    )
    def test_not_every_argument_has_to_be_spread(self, kinds, spread, rng):
        """By name, eager, frames along an axis, next to automatic axes."""
        names: list[str] = ["logits", "logit_paddings", "labels", "label_paddings"]
        arguments = dict(zip(names, batch(rng, 5), strict=True))
        devices = jax.make_mesh((4, 2), ("batch", "model"), axis_types=kinds)
        there: dict[str, Any] = {**arguments}
        for name, spec in spread.items():
            there[name] = jax.device_put(arguments[name], NamedSharding(devices, spec))
        assert_equal(ctc_loss(**there), jax.jit(ctc_loss)(*arguments.values()))

    def test_what_is_the_same_everywhere_is_not(self, rng):
        """Nor what is spread over an automatic axis beside an explicit one."""
        arguments = batch(rng, 5)
        expected = jax.jit(ctc_loss)(*arguments)
        explicit = mesh(AxisType.Explicit, batch=8)
        same = jax.device_put(arguments, NamedSharding(explicit, P()))
        assert_equal(jax.jit(ctc_loss)(*same), expected)
        kinds = AxisType.Auto, AxisType.Explicit
        both = jax.make_mesh((4, 2), ("batch", "model"), axis_types=kinds)
        spread = jax.device_put(arguments, NamedSharding(both, P("batch")))
        assert_equal(jax.jit(ctc_loss)(*spread), expected)

    def test_shard_map_makes_them_manual(self, rng):
        """With the derivative taken outside."""
        arguments, devices = batch(rng, 40), mesh(AxisType.Explicit, batch=8)
        losses = jax.shard_map(ctc_loss, mesh=devices, in_specs=P("batch"), out_specs=P("batch"))
        found, exchange = there(mean_and_gradient(losses), arguments)
        assert exchange == [("all-reduce", ())]
        assert_equal(found, step(*arguments)[:2])
