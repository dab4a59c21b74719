"""Conventions as tests, over every public function.

What compiles is shared: one jitted function each, and one jaxpr.
"""

import dataclasses
import functools
import inspect
import re
import tempfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import dtypes, equations

import jaxctc

FUNCTIONS = {
    name: getattr(jaxctc, name)
    for name in jaxctc.__all__
    if inspect.isfunction(getattr(jaxctc, name))
}
RESULTS = {
    name: getattr(jaxctc, name)
    for name in jaxctc.__all__
    if hasattr(getattr(jaxctc, name), "_fields")
}
ON_THE_HOST = {
    "build_lexicon",
    "format_errors",
    "format_spans",
    "group_spans",
    "hot_words",
    "pad_to_bucket",
    "plot_alignment",
    "plot_error_rates",
    "plot_posteriors",
    "read_arpa",
    "read_lexicon",
    "read_spellings",
    "show_versions",
    "timed_spans",
    "validate",
    "write_spans",
}


def _arrays():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 6, 4)).astype(np.float32)
    labels = rng.integers(1, 4, size=(2, 3)).astype(np.int32)
    return logits, np.array([[0] * 6, [0] * 5 + [1]]), labels, np.array([[0, 0, 0], [0, 0, 1]])


LOGITS, LOGIT_PADDINGS, LABELS, LABEL_PADDINGS = _arrays()
CTC = (LOGITS, LOGIT_PADDINGS, LABELS, LABEL_PADDINGS)
KERNEL, BIAS = LOGITS[0].T[:, :4] + 0.5, LOGITS[1, 0]  # [4, 4] and [4], shared by the batch
TOKENS = (LABELS, LABEL_PADDINGS, LABELS[::-1].copy(), LABEL_PADDINGS[::-1].copy())
KEY = jnp.array([0, 7], jnp.uint32)
STATE = jaxctc.beam_step(jaxctc.beam_init(4, batch=(2,), beam_width=3), LOGITS, LOGIT_PADDINGS)
PREFIXES = jaxctc.prefix_scores_init(LOGITS, LOGIT_PADDINGS, beam_width=3)
FRAMES = (LOGITS, np.array([[1, 2, 0, 3, 1, 2], [3, 0, 1, 1, 2, 0]], np.int32))
ANSWERS = (LOGITS[..., 0], (LOGITS[..., 1] > 0).astype(np.float32))
ALIGNMENT = jaxctc.forced_align(LOGITS, LOGIT_PADDINGS, LABELS, LABEL_PADDINGS)
SPANS = [jaxctc.Span("a", 0.0, 0.5, 0.9), jaxctc.Span("b", 0.5, 1.0)]
VOCABULARY = jaxctc.Vocabulary(["-", "|", "a", "b"], separator="|")
# One batched call of each function; a second one differs in its values only.
CALLS = {
    "alignment_entropy": CTC,
    "backward_log_probs": CTC,
    "binary_cross_entropy": ANSWERS,
    "beam_finish": (STATE,),
    "beam_init": (4,),
    "beam_step": (STATE, LOGITS, LOGIT_PADDINGS),
    "build_lexicon": (["ab", "b"], VOCABULARY),
    "cer": TOKENS,
    "confidence_penalty": (LOGITS, LOGIT_PADDINGS),
    "consistency_loss": (LOGITS, LOGITS[::-1].copy(), LOGIT_PADDINGS),
    "cross_entropy": FRAMES,
    "delay_penalty": CTC,
    "focal_loss": (np.abs(LOGITS[:, 0, 0]),),
    "mwer_loss": CTC,
    "reduce_loss": (np.abs(LOGITS[:, 0, 0]), LOGIT_PADDINGS, LABEL_PADDINGS),
    "smoothing_penalty": (LOGITS, LOGIT_PADDINGS),
    "collapse": (LOGITS.argmax(axis=-1).astype(np.int32), LOGIT_PADDINGS),
    "ctc_loss": CTC,
    "ctc_loss_from_hidden": (LOGITS, KERNEL, BIAS, *CTC[1:]),
    "ctc_loss_with_forward_probs": CTC,
    "edit_distance": TOKENS,
    "error_counts": TOKENS,
    "expected_durations": CTC,
    "forced_align": CTC,
    "format_errors": TOKENS,
    "format_spans": (SPANS, "srt"),
    "forward_log_probs": CTC,
    "group_spans": (SPANS,),
    "greedy_decode": (LOGITS, LOGIT_PADDINGS),
    "hot_words": ([[1, 2], [3]], 2.0),
    "insertion_scores": CTC,
    "is_feasible": CTC,
    "label_paddings_from": (LABELS - 2,),
    "lengths_to_paddings": (np.array([2, 3], np.int32), 5),
    "pad_to_bucket": (list(LOGITS), list(LABELS), [(5, 3), (8, 4)]),
    "paddings_to_lengths": (LABEL_PADDINGS,),
    "plot_alignment": (jax.tree.map(lambda a: a[1], ALIGNMENT), LABELS[1], LABEL_PADDINGS[1]),
    "plot_error_rates": ({"a": jaxctc.ErrorCounts(*np.array([[1], [2], [0], [9]]))},),
    "plot_posteriors": (
        jaxctc.Posteriors(jnp.asarray(LOGITS[1, :, 0]), jnp.asarray(LOGITS[1, :, 1:])),
        LOGIT_PADDINGS[1],
        LABELS[1],
        LABEL_PADDINGS[1],
    ),
    "posteriors": CTC,
    "prefix_beam_search": (LOGITS, LOGIT_PADDINGS),
    "prefix_scores": (PREFIXES, LABELS[..., None]),
    "prefix_scores_init": (LOGITS, LOGIT_PADDINGS),
    "prefix_scores_select": (PREFIXES, LABELS, (LABELS - 1).copy()),
    "purpose_loss": (KEY, *CTC),
    "read_arpa": (Path(__file__).with_name("tiny.arpa"), ["", "a"]),
    "read_lexicon": (Path(__file__).with_name("tiny.lexicon"), VOCABULARY),
    "read_spellings": (Path(__file__).with_name("tiny.lexicon"), VOCABULARY),
    "required_frames": (LABELS, LABEL_PADDINGS),
    "sample_alignments": (KEY, *CTC),
    "segment_means": (LOGITS, LOGITS.argmax(axis=-1).astype(np.int32), LOGIT_PADDINGS),
    "show_versions": (),
    "substitution_scores": CTC,
    "timed_spans": (ALIGNMENT, [["a", "b", "c"], ["d", "e"]]),
    "validate": CTC,
    "wer": TOKENS,
    "word_spans": (ALIGNMENT, LABELS, LABEL_PADDINGS),
    "write_spans": (Path(tempfile.gettempdir()) / "jaxctc_public_api.srt", SPANS),
}
STATIC = {"beam_init": (0,), "lengths_to_paddings": (1,)}
SHARED = {  # by all examples
    "ctc_loss_from_hidden": (1, 2),
    "purpose_loss": (0,),
    "sample_alignments": (0,),
}
REQUIRED = {
    "purpose_loss": {"improve": lambda ids: ids[..., ::-1]},
    "sample_alignments": {"num_samples": 2},
    "timed_spans": {"frame_seconds": 0.5},
    "wer": {"separator": 3},
    "word_spans": {"separator": 3},
}
# What a batched call does not share with calls one by one: a mean over all, a source of chance.
MIXES_THE_BATCH = {"cer", "purpose_loss", "reduce_loss", "sample_alignments", "wer"}
WITHOUT_A_BATCH = {"beam_init"}
WITHOUT_A_RESULT = {"show_versions", "validate", "write_spans"}
# Where the batch stands in the results.
TIME_LEADS = {"backward_log_probs", "ctc_loss_with_forward_probs", "forward_log_probs"}

# What has a scan or a rule of its own; the others call these, and go to the slow lane where every
# call is compiled several times.
WITH_LOOPS = {
    "alignment_entropy",
    "beam_step",
    "ctc_loss",
    "ctc_loss_from_hidden",
    "edit_distance",
    "error_counts",
    "forced_align",
    "forward_log_probs",
    "posteriors",
    "prefix_beam_search",
    "prefix_scores_select",
    "sample_alignments",
    "substitution_scores",
}


def thin_ones_slow(names):
    return [
        pytest.param(name, marks=[] if name in WITH_LOOPS else pytest.mark.slow)
        for name in sorted(names)
    ]


every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_traced_function = pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - ON_THE_HOST))


def call_of(name):
    """The function, with what it requires beside its first arguments."""
    if name.startswith("plot_"):
        pytest.importorskip("matplotlib", reason="needs the extra `plot`").use("Agg")
    return functools.partial(FUNCTIONS[name], **REQUIRED.get(name, {}))


@functools.cache
def jitted(name):
    """The function, compiled once for all tests."""
    return jax.jit(call_of(name), static_argnums=STATIC.get(name, ()))


@functools.cache
def result_of(name):
    """Of the call in CALLS, compiled."""
    return jitted(name)(*CALLS[name])


@functools.cache
def jaxpr_of(name):
    """Of the call in CALLS, in 32 bits, under x64."""
    narrow = [
        a
        if a is KEY or not isinstance(a, np.ndarray)
        else a.astype(np.float32 if a.dtype.kind == "f" else np.int32)
        for a in CALLS[name]
    ]
    with jax.enable_x64(True):
        return jax.make_jaxpr(call_of(name), static_argnums=STATIC.get(name, ()))(*narrow).jaxpr


def example(argument, index):
    """A part of a batched argument, which may be a tuple of arrays."""
    return jax.tree.map(lambda leaf: leaf[index].copy(), argument)


def assert_same(left, right):
    """Same structure, shapes, dtypes and, up to rounding, values."""
    chex.assert_trees_all_equal_shapes_and_dtypes(left, right)
    chex.assert_trees_all_close(left, right, rtol=1e-5, atol=1e-6)


def test_every_function_is_called_here():
    assert set(CALLS) == set(FUNCTIONS)


def test_all_is_sorted_and_complete():
    assert list(jaxctc.__all__) == sorted(jaxctc.__all__)
    imported = {
        name for name, value in vars(jaxctc).items() if callable(value) and not name.startswith("_")
    }
    assert imported == set(jaxctc.__all__)


@every_function
def test_options_are_keyword_only(name):
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        optional = parameter.default not in (parameter.empty, None)
        assert not optional or parameter.kind is parameter.KEYWORD_ONLY, parameter


@every_function
def test_everything_is_annotated(name):
    signature = inspect.signature(FUNCTIONS[name])
    assert signature.return_annotation is not signature.empty
    assert all(p.annotation is not p.empty for p in signature.parameters.values())


@every_function
def test_docstring_is_complete(name):
    """One summary line, every argument, what comes back, what is raised, and an example."""
    text = inspect.getdoc(FUNCTIONS[name])
    assert text is not None
    summary, blank, *_ = text.splitlines()
    assert summary.endswith(".")
    assert not blank
    sections = ["Args:", "Raises:", "Example:"] + ["Returns:"] * (name not in WITHOUT_A_RESULT)
    for section in sections:
        assert re.search(rf"^{section}$", text, re.MULTILINE), section
    for parameter in inspect.signature(FUNCTIONS[name]).parameters:
        assert re.search(rf"^  (\w+, )*{parameter}(, \w+)*: ", text, re.MULTILINE), parameter
    assert ">>> " in text


@pytest.mark.parametrize("name", RESULTS)
def test_every_field_of_a_result_is_documented(name):
    source = inspect.getsource(RESULTS[name])
    for field in inspect.get_annotations(RESULTS[name]):
        assert re.search(rf'^    {field}: .*\n    """', source, re.MULTILINE), field


def test_the_vocabulary_is_documented():
    """It is no function and no result: a value with methods."""
    fields = [field.name for field in dataclasses.fields(jaxctc.Vocabulary)]
    text = inspect.getdoc(jaxctc.Vocabulary) or ""
    assert all(re.search(rf"^  {field}: ", text, re.MULTILINE) for field in fields)
    methods = inspect.getmembers(
        jaxctc.Vocabulary, lambda m: inspect.isfunction(m) or inspect.ismethod(m)
    )
    for name, method in methods:
        if name.startswith("_"):
            continue
        text = inspect.getdoc(method) or ""
        for section in ("Args:", "Returns:", "Raises:", "Example:"):
            assert re.search(rf"^{section}$", text, re.MULTILINE), (name, section)
        for argument in list(inspect.signature(method).parameters):
            entry = rf"^  (\w+, )*{argument}(, \w+)*: "
            assert argument == "self" or re.search(entry, text, re.MULTILINE), (name, argument)


@every_function
def test_annotations_hold(name):
    """They are checked only where jaxtyping and beartype are asked to, as .ci/run does."""
    if name in ON_THE_HOST:
        call_of(name)(*CALLS[name])
    else:
        jaxpr_of(name)


@pytest.mark.parametrize("name", thin_ones_slow(set(FUNCTIONS) - ON_THE_HOST))
def test_eager_is_jit(name, compilations):
    assert_same(call_of(name)(*CALLS[name]), result_of(name))
    assert compilations, "nobody tells what is compiled"
    compilations.clear()
    call_of(name)(*CALLS[name])
    assert not compilations, "another eager call compiles again"


@pytest.mark.parametrize("name", thin_ones_slow(set(FUNCTIONS) - ON_THE_HOST - WITHOUT_A_BATCH))
def test_batched_is_vmap_is_a_loop(name):
    static = STATIC.get(name, ()) + SHARED.get(name, ())
    axes = tuple(None if i in static else 0 for i in range(len(CALLS[name])))
    out_axes = 1 if name in TIME_LEADS else 0

    @functools.partial(jax.jit, static_argnums=STATIC.get(name, ()))
    def one(*arguments):
        result = call_of(name)(*arguments)
        return result[1:] if isinstance(result, jaxctc.LossAndForwardProbs) else result

    vmapped = jax.vmap(one, in_axes=axes, out_axes=out_axes)(*CALLS[name])
    rows = [
        one(*(a if i in static else example(a, row) for i, a in enumerate(CALLS[name])))
        for row in range(2)
    ]
    looped = jax.tree.map(lambda *parts: jnp.stack(parts, out_axes), *rows)
    assert_same(vmapped, looped)
    if name not in MIXES_THE_BATCH:
        batched = result_of(name)
        is_long = isinstance(batched, jaxctc.LossAndForwardProbs)
        assert_same(vmapped, batched[1:] if is_long else batched)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - ON_THE_HOST - WITHOUT_A_BATCH))
def test_vmap_has_the_shapes_of_a_batch(name):
    """Only traced: whether the values are the same, too, is compiled for what has loops."""
    static = STATIC.get(name, ()) + SHARED.get(name, ())
    axes = tuple(None if i in static else 0 for i in range(len(CALLS[name])))
    mapped = jax.vmap(call_of(name), in_axes=axes, out_axes=1 if name in TIME_LEADS else 0)
    if name in MIXES_THE_BATCH | {"ctc_loss_with_forward_probs"}:
        pytest.skip("its results have other shapes for a batch than for each example")
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.jit(mapped, static_argnums=STATIC.get(name, ())).eval_shape(*CALLS[name]),
        jitted(name).eval_shape(*CALLS[name]),
    )


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - ON_THE_HOST - WITHOUT_A_BATCH))
def test_an_empty_batch_has_empty_results(name):
    """Of the shapes of any other; what mixes the batch has the same."""
    static = STATIC.get(name, ()) + SHARED.get(name, ())
    nobody = [a if i in static else example(a, slice(0)) for i, a in enumerate(CALLS[name])]
    found = jitted(name).eval_shape(*nobody)
    whole = jitted(name).eval_shape(*CALLS[name])
    for empty, full in zip(*map(jax.tree.leaves, (found, whole)), strict=True):
        shape = list(full.shape)
        if shape:
            shape[int(name in TIME_LEADS and full.ndim > 1)] = 0
        assert (empty.shape, empty.dtype) == (tuple(shape), full.dtype)


@every_traced_function
def test_a_second_call_does_not_trace_again(name):
    chex.clear_trace_counter()  # it counts by the name of what it wraps
    once = jax.jit(
        chex.assert_max_traces(lambda *arguments: call_of(name)(*arguments), n=1),
        static_argnums=STATIC.get(name, ()),
    )
    static = STATIC.get(name, ()) + SHARED.get(name, ())
    others = [
        a if i in static else example(a, slice(None, None, -1)) for i, a in enumerate(CALLS[name])
    ]
    for arguments in (CALLS[name], others):
        once.eval_shape(*arguments)


@every_function
def test_lists_will_do(name):
    """They make the program that arrays make, with the same constants."""
    lists = [a if a is KEY or not isinstance(a, np.ndarray) else a.tolist() for a in CALLS[name]]
    if name in ON_THE_HOST:
        plain, result = call_of(name)(*lists), call_of(name)(*CALLS[name])
        if name.startswith("plot_"):
            assert plain is result  # the current axes
        elif isinstance(plain, str | list | jaxctc.Spellings):
            assert plain == result
        else:
            assert_same(plain, result)
        return
    plain, program = (
        jax.make_jaxpr(functools.partial(call_of(name), *arguments))()
        for arguments in (lists, CALLS[name])
    )
    assert str(plain.jaxpr) == str(program.jaxpr)
    for a, b in zip(plain.consts, program.consts, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@every_function
def test_paddings_may_be_none(name):
    """Called eagerly, which runs what is compiled for other paddings."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    names = list(parameters)[: len(CALLS[name])]
    if not any(p.endswith("_paddings") for p in names):
        pytest.skip("takes no paddings beside its sequences")
    none = [None if p.endswith("_paddings") else a for p, a in zip(names, CALLS[name], strict=True)]
    zeros = [
        np.zeros_like(a) if p.endswith("_paddings") else a
        for p, a in zip(names, CALLS[name], strict=True)
    ]
    if name in ON_THE_HOST:
        call_of(name)(*none)
    else:
        assert_same(call_of(name)(*none), call_of(name)(*zeros))


@every_traced_function
def test_no_64_bit_values_for_32_bit_inputs(name):
    """Under x64, a bare Python number or a default dtype would bring them in."""
    found = {dtype for dtype in dtypes(jaxpr_of(name)) if dtype.endswith("64")}
    # jax.random brings the bounds of its uniform numbers as float64 scalars, and it and optax bring
    # indices.
    index, bounds = {"int64"}, {"float64"}
    known = {"cross_entropy": index, "smoothing_penalty": index}
    known |= {"purpose_loss": bounds | index, "sample_alignments": bounds | index}
    assert found <= known.get(name, set())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["ctc_loss", "ctc_loss_with_forward_probs"])
def test_no_64_bit_values_in_the_gradient(name):
    arguments = [LOGITS, *(a.astype(np.int32) for a in CTC[1:])]

    def total(logits, *rest):
        return sum(jnp.sum(jnp.where(a > -1e30, a, 0)) for a in FUNCTIONS[name](logits, *rest))

    found = dtypes(jax.make_jaxpr(jax.grad(total))(*arguments).jaxpr)
    assert "float64" not in found  # JAX itself counts the frames of a reversed scan in int64


# The layer's own products come at the precision that is asked for, sums of segments at the highest.
@pytest.mark.parametrize(
    "name", sorted({*FUNCTIONS} - ON_THE_HOST - {"ctc_loss_from_hidden", "segment_means"})
)
def test_no_matrix_product(name):
    """A product at default precision would round to bfloat16 on TPU and TF32 on GPU."""
    names = {equation.primitive.name for equation in equations(jaxpr_of(name))}
    assert "dot_general" not in names


@pytest.mark.parametrize("logits_normalized", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_found_among_thousands_of_scores(value, logits_normalized, rng):
    """The maximum of so many, or of fewer, leaves NaN out on a CPU."""
    logits = rng.normal(size=(3, 200, 40)).astype(np.float32)
    labels = rng.integers(1, 40, (3, 30)).astype(np.int32)
    logits[1, 10, labels[1, 7]] = value
    given = logits, None, labels, None
    options = {"logits_normalized": logits_normalized}

    @jax.jit
    def found(logits):
        def loss(logits):
            return jaxctc.ctc_loss(logits, *given[1:], **options)

        losses, pullback = jax.vjp(loss, logits)
        return {
            "loss": losses,
            "no infinity": jaxctc.ctc_loss(logits, *given[1:], zero_infinity=True, **options),
            "gradient": pullback(jnp.ones_like(losses))[0],
            "posteriors": jaxctc.posteriors(logits, *given[1:], **options).label,
            "entropy": jaxctc.alignment_entropy(logits, *given[1:], **options),
            "score": jaxctc.forced_align(logits, *given[1:], **options).score,
            "greedy": jaxctc.greedy_decode(logits, None, **options).scores,
        }

    for name, part in found(logits).items():
        where = np.isnan(part).reshape(3, -1).any(axis=1)
        np.testing.assert_array_equal(where, [False, True, False], err_msg=name)
