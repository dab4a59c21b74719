"""Every jitted public function, its derivatives and its options, as programs to compile.

Programs are made at a size, with shapes in place of arrays, so that they can be compiled for
machines that are not here (`benchmarks.ahead_of_time`).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import ShapeDtypeStruct
from jax.experimental import checkify
from jax.sharding import Mesh, NamedSharding

import jaxctc
from jaxctc._core.changes import LEAST_CLASSES
from jaxctc.adapters import dandelion, keras, lucid, returnn, theano, torch, torchaudio
from jaxctc.adapters import frame_objectives as entrywise
from jaxctc.adapters import optax as like_optax


class Sizes(NamedTuple):
    """Of a batch."""

    batch: int
    frames: int
    labels: int
    classes: int


class Program(NamedTuple):
    """A function of arrays, the shapes of these, and how long its loops may be."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    most_turns: int
    """Of a loop, in all turns of the loops around it: its frames or labels, and no more."""


def value_and_gradient(function: Callable[..., Any], argnums: int | tuple = 0) -> Callable:
    """Of the sum of all values, with respect to the first argument or to those named."""

    def summed(*arguments: Any) -> jax.Array:
        sums = [jnp.sum(leaf) for leaf in jax.tree.leaves(function(*arguments))]
        return jnp.sum(jnp.stack(sums))

    return jax.value_and_grad(summed, argnums=argnums)


def hessian_product(function: Callable[..., Any]) -> Callable:
    """Gradient, and the Hessian times a direction: one of the logits' shape, all ones."""

    def product(logits: jax.Array, *rest: Any) -> Any:
        gradient = jax.grad(lambda logits: jnp.sum(function(logits, *rest)))
        return jax.jvp(gradient, (logits,), (jnp.ones_like(logits),))

    return product


def ctc_shapes(sizes: Sizes, dtype: Any = jnp.float32) -> tuple[ShapeDtypeStruct, ...]:
    """The four arguments that every function of the lattice begins with."""
    batch, frames, labels, classes = sizes
    return (
        ShapeDtypeStruct((batch, frames, classes), dtype),
        ShapeDtypeStruct((batch, frames), jnp.bool_),
        ShapeDtypeStruct((batch, labels), jnp.int32),
        ShapeDtypeStruct((batch, labels), jnp.bool_),
    )


def with_options(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function with these options."""
    return functools.partial(function, **options)


def programs(sizes: Sizes) -> dict[str, Program]:
    """By name: the function, its options in brackets, and what is computed beside its value."""
    # Where rows are computed again, frames are filled up to whole stretches of 2 √T of them; edit
    # distances take a step for each label of either side at most.
    frames, labels = sizes.frames + 2 * math.isqrt(sizes.frames), 2 * sizes.labels
    return {
        name: Program(function, arguments, most_turns)
        for entries, most_turns in (
            (_of_the_lattice(sizes), frames),
            (_of_changes(sizes), frames * -(-sizes.classes // LEAST_CLASSES)),
            (_of_decoding(sizes), frames),
            (_of_tokens(sizes), labels),
            (_of_frames(sizes), 0),
            (_of_adapters(sizes), frames),
        )
        for name, (function, arguments) in entries.items()
    }


def kernel_programs(sizes: Sizes) -> dict[str, Program]:
    """What runs in the kernels, and has no loop beside them."""
    loss, posteriors = (
        with_options(function, implementation="pallas")
        for function in (jaxctc.ctc_loss, jaxctc.posteriors)
    )
    shapes = ctc_shapes(sizes)
    return {
        "ctc_loss (pallas)": Program(loss, shapes, 0),
        "ctc_loss (pallas), gradient": Program(value_and_gradient(loss), shapes, 0),
        "posteriors (pallas)": Program(posteriors, shapes, 0),
    }


def sharded_programs(devices: Sequence[Any], sizes: Sizes) -> dict[str, Program]:
    """Of a batch of that size on every device; and of classes on two devices each."""
    batch, frames, *_ = sizes
    most_turns = frames + 2 * math.isqrt(frames)

    def shapes(mesh: Mesh, *axes: str | None) -> tuple[ShapeDtypeStruct, ...]:
        one, *rest = ctc_shapes(sizes._replace(batch=batch * mesh.shape["batch"]))
        whole = NamedSharding(mesh, jax.P(*axes)), NamedSharding(mesh, jax.P("batch"))
        return (
            ShapeDtypeStruct(one.shape, one.dtype, sharding=whole[0]),
            *(ShapeDtypeStruct(each.shape, each.dtype, sharding=whole[1]) for each in rest),
        )

    flat = Mesh(np.array(devices), ("batch",))
    pairs = Mesh(np.array(devices).reshape(-1, 2), ("batch", "vocab"))
    spread = jax.shard_map(
        functools.partial(jaxctc.ctc_loss, vocab_axis_name="vocab"),
        mesh=pairs,
        in_specs=(jax.P("batch", None, "vocab"), *[jax.P("batch")] * 3),
        out_specs=jax.P("batch"),
    )
    by_example = shapes(flat, "batch")
    return {
        name: Program(function, arguments, most_turns)
        for name, (function, arguments) in {
            "ctc_loss, gradient of the mean": (mean_and_gradient(jaxctc.ctc_loss), by_example),
            "posteriors": (jaxctc.posteriors, by_example),
            "forced_align": (jaxctc.forced_align, by_example),
            "greedy_decode": (jaxctc.greedy_decode, by_example[:2]),
            "error_counts": (jaxctc.error_counts, (*by_example[2:], *by_example[2:])),
            "ctc_loss (vocab_axis_name), gradient of the mean": (
                mean_and_gradient(spread),
                shapes(pairs, "batch", None, "vocab"),
            ),
        }.items()
    }


def mean_and_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of a mean over the batch, with respect to the logits: what a training step asks for."""
    return jax.value_and_grad(lambda *arguments: jnp.mean(function(*arguments)))


Entries = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]


def _of_the_lattice(sizes: Sizes) -> Entries:
    ctc, classes = ctc_shapes(sizes), sizes.classes
    loss, grad = jaxctc.ctc_loss, value_and_gradient
    wildcard = {"wildcard_id": classes}
    priors = (*ctc, ShapeDtypeStruct((classes,), jnp.float32))

    def with_priors(logits: Any, *rest: Any) -> Any:
        return loss(logits, *rest[:3], label_priors=rest[3], **wildcard)

    bias = (*ctc, ShapeDtypeStruct((sizes.batch, sizes.frames, sizes.labels), jnp.float32))

    def biased(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *a: function(*a[:4], label_bias=a[4])

    two_each = (sizes.batch, sizes.labels, 2)
    choices = (*ctc[:2], *(ShapeDtypeStruct(two_each, dtype) for dtype in (jnp.int32, jnp.float32)))

    def of_choices(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *a: function(*a[:3], None, label_log_weights=a[3])

    hidden, width = jaxctc.ctc_loss_from_hidden, 64
    layer = (
        ShapeDtypeStruct((sizes.batch, sizes.frames, width), jnp.float32),
        ShapeDtypeStruct((width, classes), jnp.float32),
        ShapeDtypeStruct((classes,), jnp.float32),
    )
    found: Entries = {
        "mwer_loss, gradient": (grad(jaxctc.mwer_loss), ctc),
        "ctc_loss": (loss, ctc),
        "ctc_loss, gradient": (grad(loss), ctc),
        "ctc_loss, Hessian product": (hessian_product(loss), ctc),
        "ctc_loss (bfloat16), gradient": (grad(loss), ctc_shapes(sizes, jnp.bfloat16)),
        "ctc_loss (logits_normalized), gradient": (
            grad(with_options(loss, logits_normalized=True)),
            ctc,
        ),
        "ctc_loss (max_approx)": (with_options(loss, max_approx=True), ctc),
        "ctc_loss (max_approx), gradient": (grad(with_options(loss, max_approx=True)), ctc),
        "ctc_loss (label_loop=False), gradient": (grad(with_options(loss, label_loop=False)), ctc),
        "ctc_loss (wildcard, priors)": (with_priors, priors),
        "ctc_loss (wildcard, priors), gradient": (grad(with_priors, (0, 4)), priors),
        "ctc_loss (label_bias)": (biased(loss), bias),
        "ctc_loss (label_bias), gradient": (grad(biased(loss), (0, 4)), bias),
        "ctc_loss (label_log_weights)": (of_choices(loss), choices),
        "ctc_loss (label_log_weights), gradient": (grad(of_choices(loss), (0, 3)), choices),
        "ctc_loss_from_hidden": (hidden, (*layer, *ctc[1:])),
        "ctc_loss_from_hidden, gradient": (grad(hidden, (0, 1, 2)), (*layer, *ctc[1:])),
        "forced_align": (jaxctc.forced_align, ctc),
        "forced_align, spans alone": (lambda *a: jaxctc.forced_align(*a)[:3], ctc),
        "forced_align (wildcard)": (with_options(jaxctc.forced_align, **wildcard), ctc),
        "forced_align (label_bias)": (biased(jaxctc.forced_align), bias),
        "forced_align (label_log_weights)": (of_choices(jaxctc.forced_align), choices),
        "posteriors (label_bias)": (biased(jaxctc.posteriors), bias),
        "posteriors (label_log_weights)": (of_choices(jaxctc.posteriors), choices),
        "forced_align, gradient of the score": (
            grad(lambda *a: jaxctc.forced_align(*a).score),
            ctc,
        ),
        "word_spans": (
            with_options(jaxctc.word_spans, separator=1),
            (jax.eval_shape(jaxctc.forced_align, *ctc), *ctc[2:]),
        ),
        "sample_alignments": (
            lambda key, *a: jaxctc.sample_alignments(jax.random.key(key), *a, num_samples=4),
            (ShapeDtypeStruct((), jnp.uint32), *ctc),
        ),
        "purpose_loss, gradient": (
            grad(_purpose_loss, 1),
            (ShapeDtypeStruct((), jnp.uint32), *ctc),
        ),
        "is_feasible": (jaxctc.is_feasible, ctc),
        "validate (checkify)": (_validated, ctc),
    }
    for name in (
        "alignment_entropy",
        "backward_log_probs",
        "ctc_loss_with_forward_probs",
        "delay_penalty",
        "expected_durations",
        "forward_log_probs",
        "posteriors",
    ):
        function = getattr(jaxctc, name)
        found[name] = (function, ctc)
        found[f"{name}, gradient"] = (grad(function), ctc)
    return found


def _purpose_loss(key: jax.Array, *arguments: Any) -> jax.Array:
    """Of alignments that are better where they are read backwards."""
    return jaxctc.purpose_loss(jax.random.key(key), *arguments, improve=lambda ids: ids[..., ::-1])


def _validated(*arguments: Any) -> Any:
    """The error that `checkify` returns; None while there is none."""
    error, _ = checkify.checkify(jaxctc.validate)(*arguments)
    return error


def _of_changes(sizes: Sizes) -> Entries:
    """They go over the frames once for each chunk of classes."""
    ctc = ctc_shapes(sizes)
    return {
        "insertion_scores": (jaxctc.insertion_scores, ctc),
        "substitution_scores": (jaxctc.substitution_scores, ctc),
    }


def _of_decoding(sizes: Sizes) -> Entries:
    logits, padded, *_ = ctc_shapes(sizes)
    search = jaxctc.prefix_beam_search
    words = jaxctc.hot_words([[1, 2], [2, 1, 1]], 2.0)
    lexicon = _lexicon(sizes.classes)
    state = jax.eval_shape(lambda: jaxctc.beam_init(sizes.frames, batch=(sizes.batch,)))
    prefixes = jax.eval_shape(with_options(jaxctc.prefix_scores_init, beam_width=8), logits, padded)
    beam = ShapeDtypeStruct((sizes.batch, 8), jnp.int32)
    candidates = ShapeDtypeStruct((sizes.batch, 8, 16), jnp.int32)
    path = ShapeDtypeStruct((sizes.batch, sizes.frames), jnp.int32)
    return {
        "greedy_decode": (jaxctc.greedy_decode, (logits, padded)),
        "collapse": (jaxctc.collapse, (path, padded)),
        "segment_means": (jaxctc.segment_means, (logits, path, padded)),
        "prefix_beam_search": (search, (logits, padded)),
        "prefix_beam_search (times)": (
            with_options(search, times=True, num_hypotheses=2, max_length=sizes.labels),
            (logits, padded),
        ),
        "prefix_beam_search (blank_threshold)": (
            with_options(search, blank_threshold=0.95),
            (logits, padded),
        ),
        "prefix_beam_search (beam_threshold)": (
            with_options(search, beam_threshold=10.0),
            (logits, padded),
        ),
        "prefix_beam_search (hot_words)": (with_options(search, hot_words=words), (logits, padded)),
        "prefix_beam_search (lexicon)": (
            lambda logits, padded, lexicon: search(logits, padded, lexicon=lexicon),
            (logits, padded, lexicon),
        ),
        "prefix_scores_init": (
            with_options(jaxctc.prefix_scores_init, beam_width=8),
            (logits, padded),
        ),
        "prefix_scores": (jaxctc.prefix_scores, (prefixes,)),
        "prefix_scores (window)": (with_options(jaxctc.prefix_scores, window=64), (prefixes,)),
        "prefix_scores (tokens)": (jaxctc.prefix_scores, (prefixes, candidates)),
        "prefix_scores_select": (jaxctc.prefix_scores_select, (prefixes, beam, beam)),
        "beam_step": (jaxctc.beam_step, (state, logits, padded)),
        "beam_finish": (with_options(jaxctc.beam_finish, num_hypotheses=4), (state,)),
    }


def _lexicon(classes: int) -> jaxctc.Lexicon:
    """The shapes of one of a thousand words, in which any class occurs."""
    vocabulary = jaxctc.Vocabulary(["", "|", *map(str, range(2, classes))], separator="|")
    spellings = np.random.default_rng(0).integers(2, classes, (1000, 6)).tolist()
    lexicon = jaxctc.build_lexicon(spellings, vocabulary)
    return jax.tree.map(lambda leaf: ShapeDtypeStruct(leaf.shape, leaf.dtype), lexicon)


def _of_tokens(sizes: Sizes) -> Entries:
    *_, ids, padded = ctc_shapes(sizes)
    both = (ids, padded, ids, padded)
    return {
        "cer": (jaxctc.cer, both),
        "edit_distance": (jaxctc.edit_distance, both),
        "error_counts": (jaxctc.error_counts, both),
        "label_paddings_from": (jaxctc.label_paddings_from, (ids,)),
        "required_frames": (jaxctc.required_frames, (ids, padded)),
        "wer": (with_options(jaxctc.wer, separator=1), both),
    }


def _of_frames(sizes: Sizes) -> Entries:
    logits, padded, _, label_padded = ctc_shapes(sizes)
    ids = ShapeDtypeStruct(padded.shape, jnp.int32)
    answers = ShapeDtypeStruct(padded.shape, jnp.float32)
    losses = ShapeDtypeStruct((sizes.batch,), jnp.float32)
    lengths = ShapeDtypeStruct((sizes.batch,), jnp.int32)
    grad = value_and_gradient
    return {
        "binary_accuracy": (entrywise.binary_accuracy, (answers, answers)),
        "binary_cross_entropy, gradient": (grad(jaxctc.binary_cross_entropy), (answers, answers)),
        "binary_hinge_loss, gradient": (
            grad(entrywise.binary_hinge_loss),
            (answers, answers),
        ),
        "categorical_accuracy": (entrywise.categorical_accuracy, (logits, ids)),
        "confidence_penalty, gradient": (grad(jaxctc.confidence_penalty), (logits, padded)),
        "consistency_loss, gradient": (grad(jaxctc.consistency_loss), (logits, logits, padded)),
        "cross_entropy, gradient": (grad(jaxctc.cross_entropy), (logits, ids)),
        "cross_entropy (class_weight), gradient": (
            grad(
                lambda scores, ids, weight: jaxctc.cross_entropy(scores, ids, class_weight=weight)
            ),
            (logits, ids, ShapeDtypeStruct((sizes.classes,), jnp.float32)),
        ),
        "focal_loss, gradient": (grad(jaxctc.focal_loss), (losses,)),
        "lengths_to_paddings": (
            lambda lengths: jaxctc.lengths_to_paddings(lengths, sizes.frames),
            (lengths,),
        ),
        "multiclass_hinge_loss, gradient": (
            grad(entrywise.multiclass_hinge_loss),
            (logits, ids),
        ),
        "paddings_to_lengths": (jaxctc.paddings_to_lengths, (padded,)),
        "reduce_loss, gradient": (
            grad(lambda loss, padded: jaxctc.reduce_loss(loss, None, padded, per="label").mean),
            (losses, label_padded),
        ),
        "smoothing_penalty, gradient": (grad(jaxctc.smoothing_penalty), (logits, padded)),
        "squared_error, gradient": (grad(entrywise.squared_error), (answers, answers)),
    }


def _of_adapters(sizes: Sizes) -> Entries:
    ctc = logits, padded, labels, _ = ctc_shapes(sizes)
    batch, frames, places, classes = sizes
    grad = value_and_gradient
    counts = ShapeDtypeStruct((batch,), jnp.int32)
    time_major = ShapeDtypeStruct((frames, batch, classes), jnp.float32)
    in_a_row = ShapeDtypeStruct((batch * places,), jnp.int32)
    columns = ShapeDtypeStruct((places, batch), jnp.float32)
    classes_inside = ShapeDtypeStruct((frames, classes, batch), jnp.float32)

    def concatenated(log_probs: Any, targets: Any, inputs: Any) -> Any:
        lengths = [places] * batch  # in a row, they have to be known while tracing
        return torch.ctc_loss(log_probs, targets, inputs, lengths)

    def of_returnn(logits: Any, targets: Any, frames: Any, places: Any) -> Any:
        return returnn.ctc_loss(
            logits=logits,
            targets=targets,
            input_spatial_dim=frames,
            targets_spatial_dim=places,
            blank_index=0,
        )

    return {
        "adapters.optax.ctc_loss, gradient": (grad(like_optax.ctc_loss), ctc),
        "adapters.optax.ctc_loss_with_forward_probs": (like_optax.ctc_loss_with_forward_probs, ctc),
        "adapters.torch.ctc_loss, gradient": (
            grad(torch.ctc_loss),
            (time_major, labels, counts, counts),
        ),
        "adapters.torch.ctc_loss (targets in a row), gradient": (
            grad(concatenated),
            (time_major, in_a_row, counts),
        ),
        "adapters.lucid.ctc_loss, gradient": (
            grad(lucid.ctc_loss),
            (time_major, labels, counts, counts),
        ),
        "adapters.theano.ctc, gradient": (grad(theano.ctc), (time_major, labels, counts)),
        "adapters.dandelion.ctc_cost_logscale, gradient": (
            grad(lambda sm, seq: dandelion.ctc_cost_logscale(seq, sm)),
            (classes_inside, columns),
        ),
        "adapters.dandelion.ctc_best_path_decode": (
            dandelion.ctc_best_path_decode,
            (logits, padded),
        ),
        "adapters.dandelion.ctc_CER": (dandelion.ctc_CER, (columns, columns, columns, columns)),
        "adapters.returnn.ctc_loss, gradient": (
            grad(of_returnn),
            (logits, labels, counts, counts),
        ),
        "adapters.returnn.edit_distance": (
            returnn.edit_distance,
            (labels, counts, labels, counts),
        ),
        "adapters.torchaudio.forced_align": (
            torchaudio.forced_align,
            (logits, labels, counts, counts),
        ),
        "adapters.keras.ctc_loss, gradient": (
            grad(lambda output, target, n, t: keras.ctc_loss(target, output, n, t)),
            (logits, labels, counts, counts),
        ),
        "adapters.keras.ctc_decode": (keras.ctc_decode, (logits, counts)),
        "adapters.keras.ctc_decode (beam_search)": (
            with_options(keras.ctc_decode, strategy="beam_search", beam_width=16),
            (logits, counts),
        ),
    }


def peers(sizes: Sizes) -> dict[str, Program]:
    """What optax has, to compare with, by the same names; it wants paddings in float32."""
    logits, no_frame, labels, no_label = ctc_shapes(sizes)
    no_frame, no_label = (
        ShapeDtypeStruct(each.shape, jnp.float32) for each in (no_frame, no_label)
    )
    ctc, frames = (logits, no_frame, labels, no_label), sizes.frames
    return {
        "ctc_loss": Program(optax.ctc_loss, ctc, frames),
        "ctc_loss, gradient": Program(value_and_gradient(optax.ctc_loss), ctc, frames),
        "ctc_loss_with_forward_probs": Program(optax.ctc_loss_with_forward_probs, ctc, frames),
    }
