"""How fast is beam search? Beside TensorFlow, Keras, pyctcdecode and flashlight-text in one run.

    python -m benchmarks.decoding [--classes K ...] [--peers NAME ...] [--repeats N]

16 utterances of 500 frames, a beam of 16, scores like a trained model's: words from a made-up
vocabulary, spelled out with blanks between, right in most frames. Without a model, with 3-grams of
words (pyctcdecode) and of tokens (flashlight-text). Medians in milliseconds per utterance after
warm-up; the memory XLA sets aside for one call; for how many utterances the best hypothesis is
ours; and the mean log-probability of the best hypotheses, by `jaxctc.ctc_loss`.
"""

import argparse
import functools
import importlib
import importlib.util
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxctc

os.environ["KERAS_BACKEND"] = "jax"  # before TensorFlow brings Keras in with its own
BATCH, FRAMES, WIDTH = 16, 500, 16
LM_WEIGHT = 0.5
SEPARATOR = 1  # 0 is the blank
Labels = list[tuple[int, ...]]


class Task(NamedTuple):
    """What is to be decoded, and what is known of the language."""

    logits: np.ndarray
    names: list[str]
    word_model: Path
    token_model: Path


class Result(NamedTuple):
    """A row of the table."""

    model: str
    library: str
    milliseconds: float
    megabytes: float | None
    labels: Labels


def make_task(classes: int, folder: Path) -> Task:
    """Sentences of a made-up language, scores for them, and its 3-grams as files."""
    rng = np.random.default_rng(0)
    # One sign for each class; what there are no letters for, Chinese characters.
    names = ["", " ", *(chr(97 + k if classes <= 28 else 0x4E00 + k) for k in range(classes - 2))]
    words = ["".join(rng.choice(names[2:], rng.integers(2, 7))) for _ in range(1000)]
    follows = rng.integers(0, len(words), (len(words), 5))

    def sentence(length: int) -> list[str]:
        place, found = int(rng.integers(len(words))), []
        while len(" ".join(found)) < length:
            found.append(words[place])
            place = int(rng.choice(follows[place]))
        return found

    texts = [sentence(60) for _ in range(2000)]
    write_arpa(folder / "words.arpa", texts)
    letters = [["|" if sign == " " else sign for sign in " ".join(text)] for text in texts]
    write_arpa(folder / "tokens.arpa", letters)

    ids = {name: k for k, name in enumerate(names)}
    logits = rng.normal(size=(BATCH, FRAMES, classes)).astype(np.float32)
    for row in logits:
        path = [part for sign in " ".join(sentence(60)) for part in (0, 0, 0, ids[sign], ids[sign])]
        path = np.array((path + [0] * FRAMES)[:FRAMES])
        right = rng.random(FRAMES) < 0.8
        row[right, path[right]] += 8
    return Task(logits, names, folder / "words.arpa", folder / "tokens.arpa")


def write_arpa(path: Path, texts: Iterable[Sequence[str]], order: int = 3) -> None:
    """Relative frequencies less a discount of a half, which goes to the shorter context."""
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order)]
    for text in texts:
        row = ["<s>", *text, "</s>"]
        for size in range(order):
            counts[size].update(tuple(row[i : i + size + 1]) for i in range(len(row) - size))
    del counts[0][("<s>",)]
    totals, kinds = Counter(), Counter()
    for grams in counts:
        for gram, count in grams.items():
            totals[gram[:-1]] += count
            kinds[gram[:-1]] += 1
    sections = defaultdict(list)
    sections[1] = ["-99\t<s>\t" + _log10(_left(kinds, totals, ("<s>",))), "-3\t<unk>"]
    for size, grams in enumerate(counts, 1):
        for gram, count in grams.items():
            share = (count - 0.5 * (size > 1)) / totals[gram[:-1]]
            back_off = f"\t{_log10(_left(kinds, totals, gram))}" if kinds[gram] else ""
            sections[size].append(f"{_log10(share)}\t{' '.join(gram)}{back_off}")
    with path.open("w") as file:
        print(
            "\\data\\",
            *(f"ngram {n}={len(rows)}" for n, rows in sections.items()),
            sep="\n",
            file=file,
        )
        for size, rows in sections.items():
            print(f"\n\\{size}-grams:", *rows, sep="\n", file=file)
        print("\n\\end\\", file=file)


def _left(kinds: Counter, totals: Counter, context: tuple[str, ...]) -> float:
    return 0.5 * kinds[context] / totals[context]


def _log10(share: float) -> str:
    return f"{np.log10(share):.6f}"


def _median(call: Callable[[], object], repeats: int) -> float:
    """Milliseconds per utterance."""
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        spent.append(1e3 * (time.perf_counter() - start) / BATCH)
    return float(np.median(spent))


def _module(name: str) -> Any:
    """A library that no extra installs; types are not checked."""
    return importlib.import_module(name)


def _labels(rows: np.ndarray) -> Labels:
    return [tuple(int(k) for k in row if k >= 0) for row in rows]


def _run(
    function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int
) -> tuple[float, float, Labels]:
    """Time, megabytes set aside beside the arguments, and labels of a function, compiled."""
    compiled = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    megabytes = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6
    labels = _labels(np.asarray(compiled(*arguments)))
    return (
        _median(lambda: jax.block_until_ready(compiled(*arguments)), repeats),
        megabytes,
        labels,
    )


def ours(task: Task, repeats: int) -> Iterable[Result]:
    """Without a model, and with both."""
    logits = jnp.asarray(task.logits)
    tokens = ["", "|", *task.names[2:]]
    models = {
        "none": None,
        "words": jaxctc.read_arpa(task.word_model, task.names, separator=SEPARATOR),
        "tokens": jaxctc.read_arpa(task.token_model, tokens),
    }
    search = functools.partial(jaxctc.prefix_beam_search, beam_width=WIDTH, max_length=200)
    for name, model in models.items():
        for top_k in (None, 8):
            call = functools.partial(_best, search, top_k)
            title = "jaxctc" if top_k is None else f"jaxctc, top_k={top_k}"
            yield Result(name, title, *_run(call, (logits, model), repeats))


def _best(search: Callable[..., Any], top_k: int | None, logits: Any, model: Any) -> jax.Array:
    best = search(logits, None, language_model=model, lm_weight=LM_WEIGHT, top_k=top_k)
    return best.labels[:, 0]


def keras(task: Task, repeats: int) -> Iterable[Result]:
    """`keras.ops.ctc_decode` on its JAX backend, compiled; so slow that it gets one utterance."""
    from keras import ops

    def call(logits):
        options: dict[str, Any] = {"strategy": "beam_search", "beam_width": WIDTH, "mask_index": 0}
        decoded: Any = ops.ctc_decode(logits, jnp.array([FRAMES]), top_paths=1, **options)
        return decoded[0][0]

    del repeats
    spent, megabytes, labels = _run(call, (jnp.asarray(task.logits[:1]),), repeats=1)
    yield Result("none", "Keras", spent * BATCH, megabytes, labels)


def tensorflow(task: Task, repeats: int) -> Iterable[Result]:
    """The C++ op behind `tf.nn.ctc_beam_search_decoder`; its blank is the last class."""
    tf = _module("tensorflow")
    scores = tf.constant(np.roll(np.swapaxes(task.logits, 0, 1), -1, axis=-1))
    lengths = tf.constant([FRAMES] * BATCH)

    def call():
        return tf.nn.ctc_beam_search_decoder(scores, lengths, beam_width=WIDTH, top_paths=1)

    rows = tf.sparse.to_dense(call()[0][0], default_value=-2).numpy() + 1
    yield Result("none", "TensorFlow", _median(call, repeats), None, _labels(rows))


def pyctcdecode(task: Task, repeats: int) -> Iterable[Result]:
    """Python, with its own pruning, and with KenLM for the words."""
    build_ctcdecoder = _module("pyctcdecode").build_ctcdecoder
    log_probs = np.asarray(jax.nn.log_softmax(task.logits))
    ids = {name: k for k, name in enumerate(task.names)}
    for model, path in (("none", None), ("words", str(task.word_model))):
        decoder = build_ctcdecoder(task.names, path, alpha=LM_WEIGHT, beta=0.0)

        def call(decoder=decoder):
            return [decoder.decode(row, beam_width=WIDTH) for row in log_probs]

        labels = [tuple(ids[sign] for sign in text) for text in call()]
        yield Result(model, "pyctcdecode", _median(call, min(repeats, 3)), None, labels)


def flashlight(task: Task, repeats: int) -> Iterable[Result]:
    """C++, without a lexicon, and with KenLM for the tokens."""
    text = _module("flashlight.lib.text.decoder")
    scores = np.ascontiguousarray(jax.nn.log_softmax(task.logits))
    dictionary = _module("flashlight.lib.text.dictionary").Dictionary
    tokens = dictionary(["<blank>", "|", *task.names[2:]])
    classes = len(task.names)
    for model in ("none", "tokens"):
        options = text.LexiconFreeDecoderOptions(
            beam_size=WIDTH,
            beam_size_token=classes,
            beam_threshold=1e9,
            lm_weight=LM_WEIGHT,
            sil_score=0.0,
            log_add=True,
            criterion_type=text.CriterionType.CTC,
        )
        lm = text.ZeroLM()
        if model == "tokens":
            lm = _module("flashlight.lib.text.decoder.kenlm").KenLM(str(task.token_model), tokens)
        decoder = text.LexiconFreeDecoder(options, lm, -1, 0, [])

        def call(decoder=decoder):
            return [decoder.decode(row.ctypes.data, FRAMES, classes)[0] for row in scores]

        labels = [_collapsed(best.tokens) for best in call()]
        yield Result(model, "flashlight-text", _median(call, repeats), None, labels)


def _collapsed(path: Sequence[int]) -> tuple[int, ...]:
    pairs = zip([0, *path], path, strict=False)
    return tuple(int(here) for before, here in pairs if here > 0 and here != before)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="*", default=[28, 1024])
    parser.add_argument("--repeats", type=int, default=7)
    peers = {"tensorflow": tensorflow, "pyctcdecode": pyctcdecode}
    peers |= {"flashlight": flashlight, "keras": keras}
    parser.add_argument("--peers", nargs="*", choices=list(peers), default=list(peers))
    arguments = parser.parse_args()

    print("| K | model | library | ms | MB | same best | mean log p |\n" + "|---" * 7 + "|")
    for classes in arguments.classes:
        with tempfile.TemporaryDirectory() as folder:
            task = make_task(classes, Path(folder))
            results = list(ours(task, arguments.repeats))
            for name in arguments.peers:
                if importlib.util.find_spec(name):
                    results += peers[name](task, arguments.repeats)
        for result in sorted(results, key=lambda result: result.model):
            show(classes, result, task, results)


def show(classes: int, result: Result, task: Task, results: list[Result]) -> None:
    """Prints one row; what it is compared with is the first result of its model, ours."""
    reference = next(other for other in results if other.model == result.model)
    count = len(result.labels)  # Keras has fewer
    same = sum(a == b for a, b in zip(reference.labels, result.labels, strict=False))
    padded = np.zeros((count, FRAMES), np.int32)
    for row, labels in zip(padded, result.labels, strict=True):
        row[: len(labels)] = labels
    log_prob = -float(jaxctc.ctc_loss(task.logits[:count], None, padded, padded == 0).mean())
    megabytes = "–" if result.megabytes is None else f"{result.megabytes:.1f}"
    times = f"{result.milliseconds:.2f}"
    if result is not reference:
        times += f" ({result.milliseconds / reference.milliseconds:.1f}×)"
    cells = [classes, result.model, result.library, times, megabytes, f"{same}/{count}"]
    print("| " + " | ".join(str(cell) for cell in [*cells, f"{log_prob:.2f}"]) + " |")


if __name__ == "__main__":
    main()
