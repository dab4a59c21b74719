"""Language models as plain dictionaries, and files of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np


@jax.jit
def scores_of(model, tokens):
    """Score of every token of each row, and final score before, between and behind them."""

    def step(state, token):
        score, after = model.score_and_advance(state, token)
        return after, (score, model.final_score(state))

    def one(row):
        state, (scores, finals) = jax.lax.scan(step, model.initial_state, row)
        return scores, jnp.append(finals, model.final_score(state))

    return jax.vmap(one)(tokens)


# What a plain scorer needs: {words: (log10 probability, log10 back-off)}.


def plain_score(grams, context, word, unknown=-100.0):
    """The definition of back-off, in nats; `unknown` for what the model does not know."""
    if (*context, word) in grams:
        return grams[(*context, word)][0] * math.log(10)
    if not context:
        return unknown
    back_off = grams.get(context, (0.0, 0.0))[1] * math.log(10)
    return back_off + plain_score(grams, context[1:], word, unknown)


class PlainHypothesis:
    """A hypothesis under the definition: the context is the words before, all that count."""

    def __init__(self, grams):
        self.grams, self.order = grams, max(map(len, grams))
        self.words = ("<s>",) if ("<s>",) in grams else ()

    def context(self):
        return self.words[max(len(self.words) - self.order + 1, 0) :]

    def score(self, word):
        if (word,) not in self.grams or word in ("<s>", "</s>"):
            word = "<unk>"
        score = plain_score(self.grams, self.context(), word)
        self.words += (word,)
        return score

    def final(self):
        if ("</s>",) not in self.grams:
            return 0.0
        return plain_score(self.grams, self.context(), "</s>")


def plain_scores(grams, rows):
    """As `scores_of`, for rows of words."""
    scores, finals = np.zeros((len(rows), len(rows[0]))), np.zeros((len(rows), len(rows[0]) + 1))
    for row, words in enumerate(rows):
        hypothesis = PlainHypothesis(grams)
        for place, word in enumerate(words):
            finals[row, place] = hypothesis.final()
            scores[row, place] = hypothesis.score(word)
        finals[row, -1] = hypothesis.final()
    return scores, finals


def random_grams(rng, order, words, marks):
    """Every n-gram has its context, but not always its suffixes."""

    def entry():
        return (-float(rng.random() * 3), float(rng.normal()) if rng.random() < 0.8 else 0.0)

    grams = {(word,): entry() for word in (*marks, *words)}
    longest = list(grams)
    for _ in range(order - 1):
        continuations = [word for word in (*marks, *words) if word != "<s>"]
        contexts = [context for context in longest if context[-1] != "</s>"]
        pairs = [(*context, word) for context in contexts for word in continuations]
        kept = [pairs[i] for i in rng.permutation(len(pairs))[: 5 * len(words)]]
        grams |= {gram: entry() for gram in kept}
        longest = kept
    return grams


def arpa(grams, rng, order=None):
    """The file, its lines in any order, its fields parted in any way."""
    order = order or max(map(len, grams))
    by_order = [[gram for gram in grams if len(gram) == n] for n in range(1, order + 1)]
    lines = ["made for a test", "", "\\data\\"]
    lines += [f"ngram {n}={len(part)}" for n, part in enumerate(by_order, 1)]
    for n, part in enumerate(by_order, 1):
        lines += ["", f"\\{n}-grams:"]
        for i in rng.permutation(len(part)):
            log_prob, back_off = grams[part[i]]
            fields = [repr(log_prob), *part[i]]
            if n < order and (back_off or rng.random() < 0.5):
                fields.append(repr(back_off))
            lines.append(rng.choice(["\t", " ", " \t "]).join(fields))
    return "\n".join([*lines, "", "\\end\\", ""])


ALPHABET = [None, "a", "b", "c", "<unk>", "<s>", "nowhere", "ü"]
TOKENS = [*range(-1, 9), 2**31 - 1, -(2**31)]

GOOD = r"""
\data\
ngram 1=4
ngram 2=3
ngram 3=1

\1-grams:
-9 <s> -0.1
-2 </s>
-0.5 a -0.25
-3 b 0.5

\2-grams:
-1 <s> a -.1
-1 a b
-1 b </s>

\3-grams:
-1 <s> a b

\end\
"""
