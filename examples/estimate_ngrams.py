"""N-gram models estimated from texts, and files of them in the ARPA format."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

NGram = tuple[str, ...]


class NGrams(NamedTuple):
    """A model with back-off, as an ARPA file has it."""

    probabilities: dict[NGram, float]
    """Of the last token of an n-gram after the others; shorter n-grams first."""
    back_offs: dict[NGram, float]
    """What a context leaves, for the tokens it was not seen with, to the context one shorter."""


def count_followers(texts: Iterable[Sequence[str]], order: int) -> dict[NGram, Counter[str]]:
    """How often each token follows each context of fewer than `order` tokens."""
    followers: dict[NGram, Counter[str]] = defaultdict(Counter)
    for text in texts:
        tokens = ["<s>", *text, "</s>"]
        for place in range(1, len(tokens)):
            for start in range(max(0, place - order + 1), place + 1):
                followers[tuple(tokens[start:place])][tokens[place]] += 1
    return followers


def estimate(texts: Iterable[Sequence[str]], tokens: Iterable[str], order: int) -> NGrams:
    """Witten and Bell's estimate: a context's own frequencies, mixed with those of a shorter one.

    If k different tokens were seen in a context, n in all, the shorter context has a share of
    k / (k + n) in the mixture. Behind no context, tokens are mixed with equally likely ones.
    """
    followers, known = count_followers(texts, order), [*tokens, "</s>"]
    ngrams = NGrams({("<s>",): 1e-99}, {})  # the usual figure for what never comes again
    for context in sorted(followers, key=len):
        seen = followers[context]
        share = len(seen) / (len(seen) + seen.total())
        ngrams.back_offs[context] = share
        for token in seen if context else known:
            shorter = ngrams.probabilities[(*context[1:], token)] if context else 1 / len(known)
            mixed = (1 - share) * seen[token] / seen.total() + share * shorter
            ngrams.probabilities[(*context, token)] = mixed
    return ngrams


def write_arpa(ngrams: NGrams, path: Path) -> None:
    """Writes the model to a file, with logarithms to base 10."""
    order = max(map(len, ngrams.probabilities))
    entries: list[list[str]] = [[] for _ in range(order)]
    for ngram, probability in ngrams.probabilities.items():
        fields = [f"{math.log10(probability):.6f}", " ".join(ngram)]
        if ngram in ngrams.back_offs:
            fields.append(f"{math.log10(ngrams.back_offs[ngram]):.6f}")
        entries[len(ngram) - 1].append("\t".join(fields))
    counts = [f"ngram {order}={len(lines)}" for order, lines in enumerate(entries, 1)]
    sections = [f"\\{order}-grams:\n" + "\n".join(lines) for order, lines in enumerate(entries, 1)]
    text = "\n\n".join(["\n".join(["\\data\\", *counts]), *sections, "\\end\\"])
    path.write_text(text + "\n")
