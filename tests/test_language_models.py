"""Language models against counting by hand, and what every kind of them can do."""

import functools
import itertools
import math
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from jaxprs import dtypes
from ngrams import ALPHABET, GOOD, scores_of

from jaxctc.decoding.arpa import read_arpa
from jaxctc.decoding.language_models import CustomModel, LanguageModel, as_language_model, hot_words
from jaxctc.decoding.lexicon import build_lexicon
from jaxctc.text import Vocabulary


def occurrences(tokens, word):
    return sum(tokens[i : i + len(word)] == word for i in range(len(tokens) - len(word) + 1))


WORD_LISTS = [
    ["abc"],
    ["aa"],
    ["aaaa", "aa"],
    ["abab", "ab", "b"],
    ["ab", "abc", "bc", "c"],
    ["ab", "ab", "ba"],
    ["cabab", "abac", "bab", "baa"],
    [],
]


@pytest.mark.parametrize("words", WORD_LISTS, ids=lambda words: " ".join(words) or "none")
def test_hot_words_earn_a_bonus_for_each_occurrence(words):
    """Whatever has been paid in advance, exactly, over all strings."""
    rng = np.random.default_rng(len(words))
    bonuses = (rng.integers(-512, 2048, len(words)) / 256).tolist()
    ids = [["abc".index(letter) for letter in word] for word in words]
    model = hot_words(ids, bonuses)
    rows = list(itertools.product(range(4), repeat=6))
    scores, finals = scores_of(model, np.array(rows, np.int32))
    totals = np.cumsum(np.pad(scores, ((0, 0), (1, 0))), axis=1) + finals
    expected = [
        [
            sum(b * occurrences(row[:end], tuple(w)) for w, b in zip(ids, bonuses, strict=True))
            for end in range(7)
        ]
        for row in rows
    ]
    np.testing.assert_array_equal(totals, expected)
    np.testing.assert_array_less(finals, 1e-9, "a refund, never a second bonus")


def test_hot_words_are_paid_in_advance():
    model = hot_words([[1, 2, 3, 4], [2, 3]], [4.0, 6.0])
    scores, finals = scores_of(model, np.array([[1, 2, 3, 4], [1, 2, 2, 9]], np.int32))
    # The share of `2 3` is larger than that of the longer word that is under way, too.
    np.testing.assert_array_equal(scores, [[1, 2, 6, 1], [1, 2, 0, -3]])
    np.testing.assert_array_equal(finals, [[0, -1, -3, -3, 0], [0, -1, -3, -3, 0]])
    one, each = hot_words([[1, 2], [3]], 1), hot_words([[1, 2], [3]], np.ones(2, np.float32))
    chex.assert_trees_all_equal(one, each)


def test_hot_words_of_any_bonus_leave_nothing_behind(rng):
    words = [rng.integers(0, 5, rng.integers(1, 6)).tolist() for _ in range(40)]
    bonuses = rng.normal(size=40) * 5
    tokens = rng.integers(0, 6, (50, 30)).astype(np.int32)
    scores, finals = scores_of(hot_words(words, bonuses), tokens)
    expected = [
        sum(b * occurrences(row, w) for w, b in zip(words, bonuses, strict=True))
        for row in tokens.tolist()
    ]
    np.testing.assert_allclose(np.sum(scores, axis=1) + finals[:, -1], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "bonus", "message"),
    [
        ([[1], []], 1.0, r"words must be lists of token ids, from 0 on; got \[\]"),
        ([[1, -1]], 1.0, r"words must be lists of token ids, from 0 on; got \[1, -1\]"),
        ([[2**31]], 1.0, "words must be lists of token ids, from 0 on"),
        (
            [1, 2],
            1.0,
            "words must be lists of token ids, from 0 on; got 1. One word alone is a list",
        ),
        (["ab"], 1.0, "words must be .* from 0 on; got 'ab'. Map strings to ids."),
        ([[1], ["a"]], 1.0, r"words must be .* from 0 on; got \['a'\]. Map strings to ids."),
        ([[1.5]], 1.0, "a token of words must be a static integer; got 1.5 of type float"),
        ([[1]], [1.0, 2.0], r"bonus must be a finite number, or one for each of 1 words; got \[1"),
        ([[1]], math.nan, "bonus must be a finite number, or one for each of 1 words; got nan"),
        ([[1]], "4 nats", "bonus must be a finite number, .*; got '4 nats' of type str"),
        ([[1]], [[1], [1, 2]], "bonus must be a finite number, .*; got a list of 2"),
        ([[1]], [math.inf], "bonus must be a finite number, or one for each of 1 words"),
    ],
    ids=str,
)
def test_arguments_of_hot_words(words, bonus, message):
    with pytest.raises(ValueError, match=f"^hot_words: {message}"):
        hot_words(words, bonus)


@functools.cache
def small_models():
    """One of each kind, and tokens for it; the file is written to a pipe, which cannot seek."""
    models: dict[str, LanguageModel] = {"hot words": hot_words([[1, 2, 1], [2, 2]], 1.5)}
    for name, options in (("tokens", {}), ("words", {"separator": 2})):
        read_end, write_end = os.pipe()
        with open(write_end, "w") as file:
            file.write(GOOD)
        models[name] = read_arpa(f"/dev/fd/{read_end}", ALPHABET, **options)
        os.close(read_end)
    words = Vocabulary(["-", "a", "|", "b"], separator="|")
    models["lexicon"] = build_lexicon(["ab", "b"], words, unknown_score=-2.0)
    start = jnp.zeros(3, jnp.float32)
    models["custom"] = as_language_model(
        (start, lambda state, token: (-state[0], state + 0.5 * jnp.asarray(token > 1, state.dtype)))
    )
    return models


KINDS = ["hot words", "lexicon", "tokens", "words", "custom"]
STRINGS = np.array(list(itertools.product([1, 2, 3], repeat=3)), np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_eager_is_jit_is_vmap(kind):
    model = small_models()[kind]
    assert isinstance(model, LanguageModel)
    scores, finals = scores_of(model, STRINGS)
    state = model.initial_state
    for place, token in enumerate(STRINGS[4].tolist()):
        np.testing.assert_allclose(model.final_score(state), finals[4, place], rtol=1e-6)
        score, state = model.score_and_advance(state, token)
        np.testing.assert_allclose(score, scores[4, place], rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS[:4])
def test_nothing_in_64_bits(kind):
    model = small_models()[kind]
    state, token = model.initial_state, np.int32(1)
    for call in (model.score_and_advance, lambda state, _: model.final_score(state)):
        jaxpr = jax.make_jaxpr(call)(state, token).jaxpr
        assert not {dtype for dtype in dtypes(jaxpr) if dtype.endswith("64")}
    narrow, wide = (
        jax.eval_shape(model.score_and_advance, state, dtype(1)) for dtype in (np.int32, np.int64)
    )
    assert narrow == wide


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_an_argument(kind):
    """Another of the same shapes is not compiled again."""
    traces = []

    @jax.jit
    def first_score(model):
        traces.append(kind)
        return model.score_and_advance(model.initial_state, jnp.int32(1))[0]

    model = small_models()[kind]
    first_score(model)
    first_score(jax.tree.map(jnp.copy, model))
    assert traces == [kind]


def test_models_of_one_shape_can_be_stacked():
    models = [hot_words([[1, 2]], bonus) for bonus in (1.0, 3.0)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *models)
    scores, _ = jax.vmap(scores_of, in_axes=(0, None))(stacked, np.array([[1, 2]], np.int32))
    np.testing.assert_array_equal(scores[:, 0], [[0.5, 0.5], [1.5, 1.5]])


@pytest.mark.parametrize("kind", KINDS[:4])
def test_no_loop_that_data_ends(kind):
    text = str(jax.make_jaxpr(scores_of)(small_models()[kind], STRINGS))
    assert "while" not in text
    assert "callback" not in text
    assert "dot_general" not in text


def test_hypotheses_on_many_devices():
    """The model on each, the hypotheses shared out: nothing is exchanged."""
    program = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxctc.decoding.language_models import hot_words
mesh = jax.make_mesh((4,), ("b",))
everywhere, shared = NamedSharding(mesh, P()), NamedSharding(mesh, P("b"))
model = hot_words([[1, 2], [2, 1, 2]], 2.0)
step = lambda model, states, tokens: jax.vmap(model.score_and_advance)(states, tokens)
arguments = model, jnp.arange(8, dtype=jnp.int32) % 4, jnp.int32([1, 2] * 4)
plain = step(*arguments)
step = jax.jit(step, in_shardings=(everywhere, shared, shared), out_shardings=shared)
text = step.lower(*arguments).compile().as_text()
assert not any(word in text for word in ("all-", "collective", "reduce-scatter")), text
jax.tree.map(np.testing.assert_array_equal, plain, step(*arguments))
"""
    flags = "--xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


class TestCustomModels:
    def test_parameters_by_partial(self):
        """A recurrent model, with arrays of its own and a vector for a state."""

        def advance(weights, state, token):
            state = jnp.tanh(weights * state + token.astype(jnp.float32))
            return -jnp.sum(jnp.abs(state)), state

        def first(state):
            return state[0]

        models = [
            as_language_model((jnp.ones(2), Partial(advance, jnp.float32(weight)), first))
            for weight in (0.5, 2.0)
        ]
        for model, weight in zip(models, (0.5, 2.0), strict=True):
            scores, finals = scores_of(model, np.array([[0]], np.int32))
            np.testing.assert_allclose(scores, [[-2 * math.tanh(weight)]], rtol=1e-6)
            np.testing.assert_allclose(finals, [[1, math.tanh(weight)]], rtol=1e-6)
        assert jax.tree.structure(models[0]) == jax.tree.structure(models[1])

    def test_nothing_at_the_end_unless_given(self):
        model = as_language_model((jnp.int32(0), lambda n, token: (jnp.float32(-1), n + 1)))
        assert model.final_score(model.initial_state) == 0

    def test_a_model_stays_as_it_is(self):
        for kind in KINDS[:4]:
            assert as_language_model(small_models()[kind]) is small_models()[kind]
        custom = as_language_model(CustomModel(0, lambda n, token: (jnp.float32(0), n + token)))
        again = as_language_model(custom)
        chex.assert_trees_all_equal(custom, again)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (3, r"language_model must be a model, or a tuple \(initial_state, .*got int"),
            ((0,), "language_model must be a model, or a tuple .*got a tuple of 1"),
            ((0, 1), "language_model must be a model, or a tuple .*got a tuple of 2"),
            ((0, lambda s, t: s), r"score_and_advance must return a tuple \(log_prob, state\)"),
            ((0, lambda s, t: (t, s)), "score_and_advance must score with a floating number"),
            ((0, lambda s, t: (jnp.zeros(2), s)), "score_and_advance must score with a scalar"),
            ((0, lambda s, t: ((), s)), "score_and_advance must score with a scalar"),
            ((0, lambda s, t: (jnp.zeros(()), 1.0)), "score_and_advance must return a state like"),
            ((0, lambda s, t: (jnp.zeros(()), (s,))), "score_and_advance must return a state like"),
            (
                (jnp.zeros(2), lambda s, t: (s[0], s[:1])),
                "score_and_advance must return a state like",
            ),
            (
                (0, lambda s, t: (jnp.zeros(()), s), lambda s: s),
                "final_score must score with a floating number; got int32",
            ),
        ],
        ids=range(11),
    )
    def test_errors(self, model, message):
        with pytest.raises(ValueError, match=f"^beam: {message}"):
            as_language_model(model, function="beam")
