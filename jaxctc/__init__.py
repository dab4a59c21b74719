"""Connectionist Temporal Classification (CTC) in JAX, as pure functions of arrays.

Functions of arrays work under `jit`, `vmap`, `grad` and `jvp`, and take any number of leading batch
axes, none included. Those of text, files and pictures run on the host. The first arguments are
always `(logits, logit_paddings, labels, label_paddings)`; options are keyword-only; more than one
result is a NamedTuple.

Axis letters, everywhere:

    B   batch, any number of leading axes
    T   frames
    K   classes, the blank included
    N   labels
    A   alternatives of a label
    S   samples
    W   beam
    L   places for decoded labels
    M   places for reference labels
    C   candidates for the next token
    D   hidden values

A batch may lie on several devices, which exchange nothing then: under `jit`, in arrays that are
sharded along a batch axis, or within `jax.shard_map`, where beams belong. `ctc_loss` can also have
its classes on several devices.

Losses and scores are in nats, times in frames, distances in tokens. A padding is nonzero where an
entry is not in use, and may sit anywhere.
"""

import importlib
import warnings
from typing import TYPE_CHECKING

from jaxctc.alignment import Alignment, AlignmentOfChoices, forced_align
from jaxctc.batching import PaddedBatch, pad_to_bucket
from jaxctc.decoding.arpa import read_arpa
from jaxctc.decoding.automata import Automaton
from jaxctc.decoding.beam_search import (
    BeamState,
    beam_finish,
    beam_init,
    beam_step,
    prefix_beam_search,
)
from jaxctc.decoding.greedy import Hypotheses, collapse, greedy_decode, segment_means
from jaxctc.decoding.language_models import CustomModel, hot_words
from jaxctc.decoding.lexicon import Lexicon, build_lexicon, read_lexicon
from jaxctc.decoding.ngram_models import TokenNGrams, WordNGrams, WordState
from jaxctc.decoding.prefixes import Prefixes
from jaxctc.decoding.spelt_words import Spellings, read_spellings
from jaxctc.frame_losses import (
    binary_cross_entropy,
    cross_entropy,
)
from jaxctc.from_hidden import ctc_loss_from_hidden
from jaxctc.loss import LossAndForwardProbs, ctc_loss, ctc_loss_with_forward_probs
from jaxctc.metrics.error_rates import ErrorCounts, ErrorRate, cer, edit_distance, error_counts, wer
from jaxctc.metrics.error_reports import format_errors
from jaxctc.objectives import (
    WeightedSum,
    confidence_penalty,
    consistency_loss,
    delay_penalty,
    focal_loss,
    mwer_loss,
    reduce_loss,
    smoothing_penalty,
)
from jaxctc.padding import (
    is_feasible,
    label_paddings_from,
    lengths_to_paddings,
    paddings_to_lengths,
    required_frames,
    validate,
)
from jaxctc.plot import plot_alignment, plot_error_rates, plot_posteriors
from jaxctc.posteriors import (
    Posteriors,
    StateLogProbs,
    alignment_entropy,
    backward_log_probs,
    expected_durations,
    forward_log_probs,
    posteriors,
    sample_alignments,
)
from jaxctc.prefix_scores import (
    PrefixScores,
    PrefixState,
    prefix_scores,
    prefix_scores_init,
    prefix_scores_select,
)
from jaxctc.purpose import purpose_loss
from jaxctc.spans import Span, WordSpans, group_spans, timed_spans, word_spans
from jaxctc.substitutions import insertion_scores, substitution_scores
from jaxctc.subtitles import format_spans, write_spans
from jaxctc.text import EncodedText, Vocabulary
from jaxctc.versions import __version__ as __version__
from jaxctc.versions import show_versions

__all__ = [
    "Alignment",
    "AlignmentOfChoices",
    "Automaton",
    "BeamState",
    "CustomModel",
    "EncodedText",
    "ErrorCounts",
    "ErrorRate",
    "Hypotheses",
    "Lexicon",
    "LossAndForwardProbs",
    "PaddedBatch",
    "Posteriors",
    "PrefixScores",
    "PrefixState",
    "Prefixes",
    "Span",
    "Spellings",
    "StateLogProbs",
    "TokenNGrams",
    "Vocabulary",
    "WeightedSum",
    "WordNGrams",
    "WordSpans",
    "WordState",
    "alignment_entropy",
    "backward_log_probs",
    "beam_finish",
    "beam_init",
    "beam_step",
    "binary_cross_entropy",
    "build_lexicon",
    "cer",
    "collapse",
    "confidence_penalty",
    "consistency_loss",
    "cross_entropy",
    "ctc_loss",
    "ctc_loss_from_hidden",
    "ctc_loss_with_forward_probs",
    "delay_penalty",
    "edit_distance",
    "error_counts",
    "expected_durations",
    "focal_loss",
    "forced_align",
    "format_errors",
    "format_spans",
    "forward_log_probs",
    "greedy_decode",
    "group_spans",
    "hot_words",
    "insertion_scores",
    "is_feasible",
    "label_paddings_from",
    "lengths_to_paddings",
    "mwer_loss",
    "pad_to_bucket",
    "paddings_to_lengths",
    "plot_alignment",
    "plot_error_rates",
    "plot_posteriors",
    "posteriors",
    "prefix_beam_search",
    "prefix_scores",
    "prefix_scores_init",
    "prefix_scores_select",
    "purpose_loss",
    "read_arpa",
    "read_lexicon",
    "read_spellings",
    "reduce_loss",
    "required_frames",
    "sample_alignments",
    "segment_means",
    "show_versions",
    "smoothing_penalty",
    "substitution_scores",
    "timed_spans",
    "validate",
    "wer",
    "word_spans",
    "write_spans",
]

_MOVED = (
    "binary_accuracy",
    "binary_hinge_loss",
    "categorical_accuracy",
    "multiclass_hinge_loss",
    "squared_error",
)

if not TYPE_CHECKING:  # a checker would take any name for one that exists

    def __getattr__(name: str) -> object:
        """What has moved is found here for one version more, with a warning."""
        if name not in _MOVED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        place = "jaxctc.adapters.frame_objectives"
        warnings.warn(
            f"jaxctc.{name} goes in version 0.3. Use {place}.{name}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(place), name)
