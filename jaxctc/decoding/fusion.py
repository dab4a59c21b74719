"""What a beam search adds to the acoustic scores: models with weights, and a length bonus."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxctc._core import checks
from jaxctc.decoding.language_models import LanguageModel, as_language_model, weighted
from jaxctc.decoding.lexicon import Lexicon


class Fusion(NamedTuple):
    """Added to the score of a prefix with every token."""

    models: tuple[LanguageModel, ...]
    weights: tuple[Float[Array, ""], ...]
    length_bonus: Float[Array, ""]

    @property
    def initial_state(self) -> tuple[Any, ...]:
        """The first state of every model."""
        return tuple(model.initial_state for model in self.models)

    def score_and_advance(self, states, token):
        """The weighted sum of the models' scores of a token, in nats, and their states after it."""
        score, news = self.length_bonus, []
        for model, weight, state in zip(self.models, self.weights, states, strict=True):
            worth, new = model.score_and_advance(state, token)
            score += weighted(weight, worth)
            news.append(new)
        return score, tuple(news)

    def final_score(self, states):
        """The weighted sum of the models' scores of an end here, in nats."""
        score = jnp.zeros_like(self.length_bonus)
        for model, weight, state in zip(self.models, self.weights, states, strict=True):
            score += weighted(weight, model.final_score(state))
        return score


def check_classes(function: str, fusion: Fusion, classes: int) -> None:
    """Refuses models of other classes: some unnamed, or all named one too low or too high."""
    for model in fusion.models:
        named = getattr(model, "num_classes", classes)
        if named != classes:
            name = "lexicon" if isinstance(model, Lexicon) else "language_model"
            requirement = f"be made of names for all {classes} classes, the blank included"
            checks.fail(function, name, requirement, f"{named} names")


def fusion_of(
    function: str,
    language_model: Any,
    lm_weight: Any,
    length_bonus: Any,
    hot_words: Any,
    lexicon: Any,
) -> Fusion:
    """What the arguments of a search by these names add up to."""
    weight = checks.number(function, "lm_weight", lm_weight).astype(jnp.float32)
    bonus = checks.number(function, "length_bonus", length_bonus).astype(jnp.float32)
    models, weights = [], []
    if language_model is not None:
        models.append(as_language_model(language_model, function=function))
        weights.append(weight)
    if hot_words is not None:
        if not isinstance(hot_words, LanguageModel):
            kind = type(hot_words).__name__
            checks.fail(function, "hot_words", "be what jaxctc.hot_words returns", f"a {kind}")
        models.append(as_language_model(hot_words, function=function))
        weights.append(jnp.ones((), jnp.float32))
    if lexicon is not None:
        if not isinstance(lexicon, Lexicon):
            remedy = "From a list of words, jaxctc.build_lexicon makes one."
            kind = type(lexicon).__name__
            checks.fail(function, "lexicon", "be a jaxctc.Lexicon", f"a {kind}", remedy)
        models.append(lexicon)
        weights.append(jnp.ones((), jnp.float32))
    return Fusion(tuple(models), tuple(weights), bonus)
