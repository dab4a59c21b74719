"""Arrays on a mesh of explicit axes: what takes them, and what refuses them.

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
from jaxctc.adapters import optax


def of_frames(logits, ids, *_):
    return jaxctc.cross_entropy(logits, ids.astype(np.int32))


ALL = (0, 1, 2, 3)
ANYWHERE = {
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
    "forced_align": jaxctc.forced_align,
    "greedy_decode": lambda *given: jaxctc.greedy_decode(*given[:2]),
    "is_feasible": jaxctc.is_feasible,
    "required_frames": lambda *given: jaxctc.required_frames(given[2]),
    "smoothing_penalty": lambda *given: jaxctc.smoothing_penalty(*given[:2]),
    "confidence_penalty": lambda *given: jaxctc.confidence_penalty(given[0], None),
    "delay_penalty": jax.grad(lambda *given: jnp.sum(jaxctc.delay_penalty(*given))),
    "consistency_loss": lambda *given: jaxctc.consistency_loss(given[0], given[0] ** 2, given[1]),
}
"""On explicit axes as on others."""
EXPLICIT = [
    ("forward_log_probs", jaxctc.forward_log_probs, ALL, "logits"),
    ("forward_log_probs", jaxctc.forward_log_probs, (2,), "labels"),
    ("forward_log_probs", jaxctc.forward_log_probs, (1,), "logit_paddings"),
    ("prefix_beam_search", lambda *given: jaxctc.prefix_beam_search(*given[:2]), ALL, "logits"),
    ("collapse", lambda *given: jaxctc.collapse(given[2]), ALL, "frame_labels"),
    ("error_counts", lambda *given: jaxctc.error_counts(*given[2:] * 2), ALL, "hyp"),
    ("cross_entropy", of_frames, (0,), "estimated"),
    ("cross_entropy", of_frames, (1,), "target"),
]
KINDS = {
    "logits": "float32[8@batch,12,5]",
    "logit_paddings": "bool[8@batch,12]",
    "labels": "int32[8@batch,6]",
    "frame_labels": "int32[8@batch,6]",
    "hyp": "int32[8@batch,6]",
    "estimated": "float32[8@batch,12,5]",
    "target": "int32[8@batch,12]",
}


def there(function, arguments):
    """What it finds with examples on explicit axes, compiled, and what devices exchange for it."""
    devices = mesh(AxisType.Explicit, batch=8)
    with jax.set_mesh(devices):
        spread = jax.device_put(arguments, NamedSharding(devices, P("batch")))
        compiled = jax.jit(function).lower(*spread).compile()
        return compiled(*spread), exchanged(compiled)


class TestExplicitAxes:
    @pytest.mark.parametrize("jit", [True, False])
    @pytest.mark.parametrize(("name", "function", "places", "argument"), EXPLICIT)
    def test_what_is_spread_over_them_is_refused(self, name, function, places, argument, jit, rng):
        over_examples = NamedSharding(mesh(AxisType.Explicit, batch=8), P("batch"))
        arguments = [
            jax.device_put(given, over_examples) if place in places else given
            for place, given in enumerate(batch(rng, 5))
        ]
        with pytest.raises(ValueError, match=r": .* must ") as error:
            (jax.jit(function) if jit else function)(*arguments)
        assert str(error.value) == (
            f"{name}: {argument} must not be spread over explicit axes of a mesh; got "
            f"{KINDS[argument]}. Within jax.set_mesh, wrap {name} in jax.sharding.auto_axes(…, "
            "out_sharding=…), or call it within jax.shard_map."
        )

    def test_auto_axes_make_them_automatic(self, rng):
        """What the message advises: the same numbers, and no exchange."""
        arguments = batch(rng, 5)[2:] * 2
        counts = jax.sharding.auto_axes(jaxctc.error_counts, out_sharding=P("batch"))
        found, exchange = there(counts, arguments)
        assert exchange == []
        assert_equal(found, jax.jit(jaxctc.error_counts)(*arguments))

    @pytest.mark.parametrize("name", ANYWHERE)
    def test_losses_alignments_and_best_paths_stay_there(self, name, rng):
        """The same numbers, where the examples are, and nothing is exchanged."""
        function, arguments = ANYWHERE[name], batch(rng, 5)
        found, exchange = there(function, arguments)
        assert exchange == []
        for result in jax.tree.leaves(found):
            assert jax.typeof(result).sharding.spec[0] == "batch"
        assert_equal(found, jax.jit(function)(*arguments))

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
