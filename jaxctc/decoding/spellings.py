"""How tokens spell words: from a list of words to a graph of their beginnings, on the host."""

import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxctc._core import checks
from jaxctc.text import Vocabulary

BETWEEN = 0
"""The state between words."""
LONGEST_WORD = 1000
"""Characters: every beginning of a word takes memory, as long as it is."""


class Entry(NamedTuple):
    """A word of a list."""

    word: Any
    """The string, or the class ids that spell it."""
    where: str
    """The place in the list, for messages."""
    name: str = ""
    """What a spelling spells, if the list says so."""


def read_entries(
    function: str, path: str | os.PathLike[str], vocabulary: Vocabulary
) -> list[Entry]:
    """The words of a file, or their spellings."""
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [(number, line.split()) for number, line in enumerate(file, 1)]
    except UnicodeDecodeError as error:
        checks.fail(function, name, "be text in UTF-8", str(error))
    lines = [line for line in lines if line[1]]
    ids = {token: place for place, token in enumerate(vocabulary.tokens)}
    entries, seen = [], {}
    for number, fields in lines:
        where = f"line {number} of {name}"
        first = seen.setdefault(tuple(fields), number)
        if first != number:
            got = f"{' '.join(fields)!r} again, of line {first}"
            checks.fail(function, where, "differ from all lines before", got)
        has_spelling = len(fields) > 1
        if has_spelling != (len(lines[0][1]) > 1):
            requirement = "be one word" if has_spelling else "have a spelling after its word"
            remedy = f"Spellings stand on every line or on none, and on line {lines[0][0]}"
            remedy += " stands none." if has_spelling else " stands one."
            checks.fail(function, where, requirement, repr(" ".join(fields)), remedy)
        if not has_spelling:
            entries.append(Entry(fields[0], where))
            continue
        is_ended = vocabulary.separator_id is not None and fields[-1] == vocabulary.separator
        spelling = fields[1:-1] if is_ended else fields[1:]
        strange = next((field for field in spelling if field not in ids), None)
        if strange is not None:
            remedy = "A line is a word, or a word and the tokens that spell it."
            checks.fail(function, where, "have tokens after the word", repr(strange), remedy)
        entries.append(Entry([ids[field] for field in spelling], where, fields[0]))
    return entries


class Graph(NamedTuple):
    """Beginnings of words as states, the empty one first, and arcs between them."""

    sources: Int[np.ndarray, " arcs"]
    """Where each arc begins, in rising order."""
    tokens: Int[np.ndarray, " arcs"]
    """Its class; in rising order, too, among arcs from one state."""
    nexts: Int[np.ndarray, " arcs"]
    """Where it leads."""
    is_word: Bool[np.ndarray, " states"]
    """Whether a beginning is a word itself."""


def _graph(
    keys: Iterable[int], nexts: Iterable[int], ends: Iterable[int], states: int, classes: int
) -> Graph:
    """From numbers that stand for source and token, in any order, some of them more than once."""
    keys, places = np.unique(np.fromiter(keys, np.int64), return_index=True)
    is_word = np.zeros(states, bool)
    is_word[list(ends)] = True
    return Graph(keys // classes, keys % classes, np.fromiter(nexts, np.int64)[places], is_word)


def graph_of_spellings(function: str, entries: list[Entry], vocabulary: Vocabulary) -> Graph:
    """A trie: a state for each different beginning."""
    classes, nexts, ends = len(vocabulary.tokens), {}, set()
    for entry in entries:
        state = BETWEEN
        for token in spelling_of(function, entry, vocabulary):
            state = nexts.setdefault(state * classes + token, len(nexts) + 1)
        ends.add(state)
    return _graph(nexts, nexts.values(), ends, len(nexts) + 1, classes)


def spelling_of(function: str, entry: Entry, vocabulary: Vocabulary) -> list[int]:
    """The class ids of one spelling, checked."""
    requirement = f"be class ids in [0, {len(vocabulary.tokens)}), some of them"
    if isinstance(entry.word, str) or not isinstance(entry.word, Sequence | np.ndarray):
        remedy = "Words are strings, all of them, or all of them lists of ids."
        checks.fail(function, entry.where, requirement, repr(entry.word), remedy)
    ids = [checks.static_int(function, entry.where, token) for token in entry.word]
    if not ids or min(ids) < 0 or max(ids) >= len(vocabulary.tokens):
        checks.fail(function, entry.where, requirement, ids)
    for token, what in ((vocabulary.blank_id, "blank"), (vocabulary.separator_id, "separator")):
        if token in ids:
            requirement = f"be spelt without the {what}"
            checks.fail(function, entry.where, requirement, f"{vocabulary.tokens[token]!r} in it")
    mark = str(vocabulary.separator)
    if vocabulary.marks_words and not vocabulary.tokens[ids[0]].startswith(mark):
        requirement = f"begin with a token that begins with {mark!r}"
        checks.fail(function, entry.where, requirement, repr(vocabulary.tokens[ids[0]]))
    return ids


def graph_of_words(
    function: str,
    argument: str,
    entries: list[Entry],
    vocabulary: Vocabulary,
    unknown: str,
    normalize: Callable[[str], str] | None,
) -> Graph:
    """A state for each beginning that tokens spell, in whatever way they do."""
    mark = vocabulary.separator if vocabulary.marks_words else ""
    classes, ids = len(vocabulary.tokens), vocabulary.spelling_ids
    lengths = sorted({len(token) for token in ids})
    states, ends = {"": BETWEEN}, set()
    keys, nexts = array("q"), array("q")
    unspelt = []
    for entry in entries:
        word = entry.word if normalize is None else normalize(entry.word)
        if not word or (vocabulary.separator is not None and len(word.split()) != 1):
            requirement = "be a word, not empty"
            requirement += "" if vocabulary.separator is None else " and without white space"
            checks.fail(function, entry.where, requirement, repr(word))
        is_long = len(word) > LONGEST_WORD
        if is_long and unknown == "raise":
            requirement = f"have at most {LONGEST_WORD} characters"
            remedy = 'unknown="drop" leaves it out.'
            checks.fail(function, entry.where, requirement, f"{len(word)}", remedy)
        word = f"{mark}{word}"
        pieces = [] if is_long else _pieces(word, ids, lengths)
        for start, end in pieces:
            source = states[word[:start]]
            keys.append(source * classes + ids[word[start:end]])
            nexts.append(states.setdefault(word[:end], len(states)))
        if pieces:
            ends.add(states[word])
        else:
            unspelt.append(entry)
    if not ends or (unspelt and unknown == "raise"):
        _refuse(function, argument, unspelt, len(entries), vocabulary)
    return _graph(keys, nexts, ends, len(states), classes)


def _pieces(word: str, ids: Mapping[str, int], lengths: list[int]) -> list[tuple[int, int]]:
    """Start and end of every token on a way through the word, those that start first first."""
    may_follow = [False] * len(word) + [True]
    steps = []
    for start in reversed(range(len(word))):
        for length in lengths:
            end = start + length
            if end <= len(word) and may_follow[end] and word[start:end] in ids:
                may_follow[start] = True
                steps.append((start, end))
    is_reached, found = {0}, []
    for start, end in reversed(steps):
        if start in is_reached:
            is_reached.add(end)
            found.append((start, end))
    return found if may_follow[0] else []


def _refuse(
    function: str, argument: str, unspelt: list[Entry], count: int, vocabulary: Vocabulary
) -> None:
    some = ", ".join(f"{entry.word!r} ({entry.where})" for entry in unspelt[:3])
    got = f"{len(unspelt)} of {count} without, {some}{', …' if len(unspelt) > 3 else ''}"
    remedy = 'unknown="drop" leaves them out.' if len(unspelt) < count else ""
    for change in ("lower", "upper"):
        if all(_is_spelt(getattr(entry.word, change)(), vocabulary) for entry in unspelt):
            remedy = f"In {change} case they have tokens: see normalize."
    checks.fail(function, argument, "have tokens that spell each word", got, remedy)


def _is_spelt(word: str, vocabulary: Vocabulary) -> bool:
    """Whether some tokens make up a word."""
    mark = vocabulary.separator if vocabulary.marks_words else ""
    ids = vocabulary.spelling_ids
    return bool(_pieces(f"{mark}{word}", ids, sorted({len(token) for token in ids})))


def deterministic(graph: Graph, starts_word: Bool[np.ndarray, " K"]) -> Graph:
    """The graph with one arc where a token either goes on with a word or begins the next one.

    Such an arc leads to a state that stands for both (subset construction, Rabin and Scott 1959).
    Where words do not begin like the rest of others, there is none, and the graph stays as it is.
    """
    bounds = np.searchsorted(graph.sources, np.arange(len(graph.is_word) + 1))
    firsts = dict(zip(graph.tokens[: bounds[1]].tolist(), graph.nexts.tolist(), strict=False))
    firsts = {token: state for token, state in firsts.items() if starts_word[token]}
    is_both = graph.is_word[graph.sources] & np.isin(graph.tokens, list(firsts))
    sources, tokens, nexts = (part.tolist() for part in graph[:3])
    is_word, numbers, pending = graph.is_word.tolist(), {}, []

    def number(beginnings: frozenset[int]) -> int:
        if len(beginnings) == 1:
            return next(iter(beginnings))
        if beginnings not in numbers:
            numbers[beginnings] = len(is_word)
            is_word.append(any(is_word[state] for state in beginnings))
            pending.append(beginnings)
        return numbers[beginnings]

    for arc in np.flatnonzero(is_both).tolist():
        nexts[arc] = number(frozenset((nexts[arc], firsts[tokens[arc]])))
    for beginnings in pending:  # and those that it adds
        source, after = numbers[beginnings], defaultdict(set)
        for state in beginnings:
            for arc in range(bounds[state], bounds[state + 1]):
                after[tokens[arc]].add(int(graph.nexts[arc]))
        for token in sorted(after):
            if is_word[source] and token in firsts:
                after[token].add(firsts[token])
            sources.append(source)
            tokens.append(token)
            nexts.append(number(frozenset(after[token])))
    return Graph(*map(np.array, (sources, tokens, nexts, is_word)))
