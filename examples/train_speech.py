"""Trains a network to write down real speech, a quarter of an hour of telephone prompts.

A waveform goes in; log-mel features, convolutions that keep every third frame and the CTC loss make
letters of it. Prompts are cut, played faster or slower, joined at random and padded to one of a few
sizes, so that the jitted step is compiled that many times. What is held out for validation and test
shares no sentence, and no five words in a row, with what the network learns from. Afterwards three
decoders read the same scores: the best path, a beam, and a beam with an n-gram of the letters of
the training texts. Run it with

    apt-get install asterisk-core-sounds-en-wav asterisk-core-sounds-en
    python examples/train_speech.py --output out

where `--output` keeps a picture, the n-gram and the network, which `align_speech.py` goes on with.
`--prior-scale` takes off what the blank gains by being frequent, so that letters are no peaks;
`--consistency` adds the divergence between two masked views of the same sound (CR-CTC).

What to try next: `align_speech.py`, which finds when each word is said; your own recordings, which
need prompts and texts as `telephone_prompts.py` returns them.
"""

import argparse
import functools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import orbax.checkpoint as ocp
from command_line import OneLine, folder, positive, seed, share
from estimate_ngrams import estimate, write_arpa
from flax import nnx
from jax.typing import ArrayLike
from speech_features import BANDS, HOP, hide_stretches, log_mel, num_frames
from telephone_prompts import (
    RATE,
    Prompt,
    Split,
    add_noise,
    join,
    load_prompts,
    sounds,
    split_prompts,
)
from tqdm import tqdm

import jaxctc

matplotlib.use("Agg")  # draws to files, with or without a screen
import matplotlib.pyplot as plt

VOCABULARY = jaxctc.Vocabulary(["<blank>", "|", "'", *"abcdefghijklmnopqrstuvwxyz"], separator="|")
CLASSES = len(VOCABULARY.tokens)
STRIDE = 3
FRAME_SECONDS = STRIDE * HOP / RATE
BUCKETS = [(int(seconds * RATE), 24 * seconds) for seconds in (5, 10, 24)]
"""Samples and letters that a batch is filled up to."""
BATCH_SECONDS = 80
JOINED_SECONDS = (0.0, 4.5, 9.5, 9.5)
"""Joined prompts end before the next would take them beyond one of these, drawn at random."""
EVALUATE_EVERY = 100
ORDER = 6
LM_WEIGHTS, LENGTH_BONUSES = (0.25, 0.5, 0.75), (0.0, 0.75, 1.5)
BEAM_WIDTH, WORST, DRAWN = 24, 4, 3


class Listener(nnx.Module):
    """Features of sound in, scores of letters for every STRIDE-th frame out."""

    def __init__(self, *, features: int = 192, layers: int = 5, rngs: nnx.Rngs) -> None:
        """One convolution over the features, one that leaves frames out, and `layers` more."""
        self.mean = nnx.BatchStat(jnp.zeros(BANDS))
        self.deviation = nnx.BatchStat(jnp.ones(BANDS))
        self.log_priors = nnx.BatchStat(jnp.full(CLASSES, -jnp.log(CLASSES)))
        conv = functools.partial(nnx.Conv, rngs=rngs)
        self.sounds = conv(BANDS, features, kernel_size=5)
        # Output t is centred on the middle one of the STRIDE frames that it stands for.
        kept = {"kernel_size": 5, "strides": STRIDE, "padding": [(1, 3)]}
        self.frames = conv(features, features, **kept)
        self.norms = nnx.List([nnx.LayerNorm(features, rngs=rngs) for _ in range(layers)])
        self.context = nnx.List([conv(features, features, kernel_size=7) for _ in range(layers)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.classes = nnx.Linear(features, CLASSES, rngs=rngs)

    def normalized(self, samples: ArrayLike) -> jax.Array:
        """Features `[*B, T, BANDS]` of samples `[*B, S]`, 0 and 1 their mean and deviation."""
        return (log_mel(samples, RATE) - self.mean[...]) / self.deviation[...]

    def __call__(self, features: jax.Array, no_frame: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits `[B, ⌈T / STRIDE⌉, K]` and their paddings, for features `[B, T, BANDS]`."""
        hidden = nnx.gelu(self.sounds(_in_use(features, no_frame)))
        hidden = self.frames(_in_use(hidden, no_frame))
        no_frame = no_frame[:, ::STRIDE]
        for norm, conv in zip(self.norms, self.context, strict=True):
            hidden += self.dropout(conv(_in_use(nnx.gelu(norm(hidden)), no_frame)))
        return self.classes(nnx.gelu(self.norm(hidden))), no_frame


def _in_use(hidden: jax.Array, no_frame: jax.Array) -> jax.Array:
    """Zeros where padding is, as convolutions find them at the ends of what is not padded."""
    return jnp.where(no_frame[..., None], jnp.zeros_like(hidden), hidden)


def frame_paddings(sample_paddings: ArrayLike) -> jax.Array:
    """Where a frame of features is padding, `[B, T]`, for samples `[B, S]`."""
    lengths = jaxctc.paddings_to_lengths(sample_paddings)
    return jaxctc.lengths_to_paddings(
        num_frames(lengths), num_frames(np.shape(sample_paddings)[-1])
    )


class Objective(NamedTuple):
    """The weights of what belongs to the loss beside the labels."""

    prior_scale: ArrayLike
    consistency: ArrayLike


@functools.partial(nnx.jit, static_argnames="views")
def train_step(
    model: Listener,
    optimizer: nnx.Optimizer,
    batch: jaxctc.PaddedBatch,
    key: jax.Array,
    objective: Objective,
    views: int,
) -> jax.Array:
    """One update; returns the mean CTC loss of the batch, in nats per letter."""
    no_frame = frame_paddings(batch.frame_paddings)
    features = model.normalized(batch.frames)
    view_keys = jax.random.split(key, views)
    masked = [hide_stretches(view_key, features, no_frame) for view_key in view_keys]

    def mean_loss(model: Listener) -> tuple[jax.Array, Any]:
        inputs = jnp.concatenate(masked), jnp.concatenate([no_frame] * views)
        logits, no_output = model(*inputs)
        losses = jaxctc.ctc_loss(
            logits,
            no_output,
            jnp.concatenate([batch.labels] * views),
            jnp.concatenate([batch.label_paddings] * views),
            label_priors=model.log_priors[...],
            prior_scale=objective.prior_scale,
            zero_infinity=True,
        )
        letters = jnp.sum(~batch.label_paddings)
        ctc = jnp.sum(losses) / (views * letters)
        total = ctc
        if views == 2:
            one, other = jnp.split(logits, 2)
            divergences = jaxctc.consistency_loss(one, other, no_output[: len(features)])
            total += objective.consistency * jnp.sum(divergences) / letters
        return total, (ctc, logits, no_output)

    gradient_of = nnx.value_and_grad(mean_loss, has_aux=True)
    (_, (ctc, logits, no_output)), gradient = gradient_of(model)
    optimizer.update(model, gradient)
    here = jnp.mean(jax.nn.softmax(logits), axis=(0, 1), where=~no_output[..., None])
    mixed = 0.98 * jnp.exp(model.log_priors[...]) + 0.02 * here
    model.log_priors[...] = jnp.log(mixed)
    return ctc


@nnx.jit
def score(model: Listener, batch: jaxctc.PaddedBatch) -> tuple[jax.Array, jax.Array]:
    """Logits and their paddings, nothing masked."""
    return model(model.normalized(batch.frames), frame_paddings(batch.frame_paddings))


def endless_batches(
    prompts: Sequence[Prompt], rng: np.random.Generator
) -> Iterator[jaxctc.PaddedBatch]:
    """Batches of prompts that are perturbed and joined, each in its bucket."""
    waiting: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {b: [] for b in BUCKETS}
    for samples, text in _joined_prompts(prompts, rng):
        bucket = next(bucket for bucket in BUCKETS if len(samples) <= bucket[0])
        waiting[bucket].append((samples, VOCABULARY.encode(text).labels))
        if len(waiting[bucket]) == _batch_size(bucket):
            frames, labels = zip(*waiting[bucket], strict=True)
            yield jaxctc.pad_to_bucket(frames, labels, [bucket])
            waiting[bucket] = []


def _batch_size(bucket: tuple[int, int]) -> int:
    return max(1, BATCH_SECONDS * RATE // bucket[0])


def _joined_prompts(
    prompts: Sequence[Prompt], rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, str]]:
    chosen: list[Prompt] = []
    seconds, most = 0.0, 0.0
    while True:
        for place in rng.permutation(len(prompts)):
            prompt = _perturbed(prompts[place], rng)
            if chosen and seconds + len(prompt.samples) / RATE > most:
                recording = join(chosen, rng.uniform(0.0, 0.3, len(chosen) + 1))
                yield add_noise(recording.samples, rng), recording.text
                chosen, seconds, most = [], 0.0, float(rng.choice(JOINED_SECONDS))
            chosen.append(prompt)
            seconds += len(prompt.samples) / RATE


def _perturbed(prompt: Prompt, rng: np.random.Generator) -> Prompt:
    """Faster or slower, and so higher or lower, by up to an eighth; louder or softer."""
    places = np.arange(0, len(prompt.samples) - 1, rng.uniform(0.88, 1.12))
    samples = np.interp(places, np.arange(len(prompt.samples)), prompt.samples)
    return prompt._replace(samples=(samples * 10 ** rng.uniform(-0.3, 0.3)).astype(np.float32))


def batches_of(prompts: Sequence[Prompt]) -> list[jaxctc.PaddedBatch]:
    """All prompts as they are, those of like length together."""
    examples = [(prompt.samples, VOCABULARY.encode(prompt.text).labels) for prompt in prompts]
    found, shortest = [], 0
    for bucket in BUCKETS:
        here = [example for example in examples if shortest < len(example[0]) <= bucket[0]]
        shortest, size = bucket[0], _batch_size(bucket)
        for start in range(0, len(here), size):
            frames, labels = zip(*here[start : start + size], strict=True)
            found.append(jaxctc.pad_to_bucket(frames, labels, [bucket], batch_size=size))
    return found


class Heard(NamedTuple):
    """Utterances, and what the network makes of them, in arrays of one size."""

    samples: np.ndarray
    sample_paddings: np.ndarray
    labels: np.ndarray
    label_paddings: np.ndarray
    logits: np.ndarray
    """[B, T, K]."""
    logit_paddings: np.ndarray


def listen(model: Listener, batches: Sequence[jaxctc.PaddedBatch]) -> Heard:
    """The scores of all utterances in the batches."""
    model.eval()
    parts = []
    for batch in batches:
        arrays = *batch[:4], *map(np.asarray, score(model, batch))
        parts.append([array[~batch.example_paddings] for array in arrays])
    model.train()
    columns = []
    for column in zip(*parts, strict=True):
        longest = max(part.shape[1] for part in column)
        columns.append(np.concatenate([_filled_up(part, longest) for part in column]))
    return Heard(*columns)


def _filled_up(array: np.ndarray, length: int) -> np.ndarray:
    widths = [(0, 0), (0, length - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
    return np.pad(array, widths, constant_values=array.dtype.type(array.dtype == bool))


class Reading(NamedTuple):
    """What a decoder has read, and how wrong it is."""

    labels: jax.Array
    """[B, L], -1 after the last."""
    letters: jaxctc.ErrorCounts
    """Of each utterance."""
    words: jaxctc.ErrorCounts

    @property
    def rates(self) -> tuple[float, float]:
        """CER and WER over all utterances."""
        return float(self.letters.sum().rate), float(self.words.sum().rate)


@jax.jit
def read_greedily(heard: Heard) -> Reading:
    """Each frame for itself."""
    return reading(jaxctc.greedy_decode(heard.logits, heard.logit_paddings).labels, heard)


@jax.jit
def read_by_beam(heard: Heard, **guide: Any) -> Reading:
    """A prefix beam search, with whatever model and weights are given."""
    found = jaxctc.prefix_beam_search(
        heard.logits,
        heard.logit_paddings,
        beam_width=BEAM_WIDTH,
        max_length=heard.labels.shape[-1],
        **guide,
    )
    return reading(found.labels[:, 0], heard)


def reading(labels: jax.Array, heard: Heard) -> Reading:
    """The errors in what was read."""
    sides = labels, labels < 0, heard.labels, heard.label_paddings
    words = jaxctc.error_counts(*sides, separator=VOCABULARY.separator_id)
    return Reading(labels, jaxctc.error_counts(*sides), words)


def new_listener(
    prompts: Sequence[Prompt], steps: int, seed: int
) -> tuple[Listener, nnx.Optimizer]:
    """A network that knows only how loud its bands are, and what will train it."""
    model = Listener(rngs=nnx.Rngs(seed))
    some = np.concatenate([prompt.samples for prompt in prompts])[: 300 * RATE]
    features = np.asarray(log_mel(some, RATE))
    model.mean[...], model.deviation[...] = features.mean(axis=0), features.std(axis=0)
    schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, max(1, steps // 10), steps + 1, 3e-5)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05))
    return model, nnx.Optimizer(model, rule, wrt=nnx.Param)


def train(
    prompts: Sequence[Prompt], validation: list[jaxctc.PaddedBatch], arguments: argparse.Namespace
) -> Listener:
    """Trains a network on an endless supply of perturbed prompts."""
    model, optimizer = new_listener(prompts, arguments.steps, arguments.seed)
    batches = endless_batches(prompts, np.random.default_rng(arguments.seed))
    key, views = jax.random.key(arguments.seed), 2 if arguments.consistency else 1
    losses: list[float] = []
    waste, cer = [], "…"
    with tqdm(range(1, arguments.steps + 1), unit="step", mininterval=0.5) as bar:
        for step, batch in zip(bar, batches, strict=False):
            ramp = np.clip((step / arguments.steps - 0.2) / 0.3, 0, 1)
            weights = np.array([arguments.prior_scale * ramp, arguments.consistency], np.float32)
            step_key = jax.random.fold_in(key, step)
            loss = train_step(model, optimizer, batch, step_key, Objective(*weights), views)
            losses.append(float(loss))
            waste.append(batch.frame_waste)
            if step % EVALUATE_EVERY == 0 or step == arguments.steps:
                cer = f"{read_greedily(listen(model, validation)).rates[0]:.3f}"
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.2f}", CER=cer, refresh=False)
    print(f"padding: {np.mean(waste):.0%} of the samples")
    return model


def letter_model(prompts: Sequence[Prompt], output: Path | None) -> jaxctc.TokenNGrams:
    """An n-gram of letters, by way of a file, which stays if there is a folder for it."""
    texts = [prompt.text.replace(" ", "|") for prompt in prompts]
    with TemporaryDirectory() as temporary:
        path = (output or Path(temporary)) / "letters.arpa"
        write_arpa(estimate(texts, VOCABULARY.tokens[1:], ORDER), path)
        return jaxctc.read_arpa(path, VOCABULARY.tokens)


def tune(heard: Heard, model: jaxctc.TokenNGrams) -> dict[str, Any]:
    """The weights of the model that read the validation prompts best."""
    guides = [
        {"language_model": model, "lm_weight": weight, "length_bonus": bonus}
        for weight in LM_WEIGHTS
        for bonus in LENGTH_BONUSES
    ]
    cers = np.array([read_by_beam(heard, **guide).rates[0] for guide in guides])
    print("validation CER, n-gram weight down, length bonus across")
    print("      " + "".join(f"{bonus:8.2f}" for bonus in LENGTH_BONUSES))
    for weight, row in zip(LM_WEIGHTS, cers.reshape(len(LM_WEIGHTS), -1), strict=True):
        print(f"{weight:6.2f}" + "".join(f"{cer:8.4f}" for cer in row))
    return guides[int(cers.argmin())]


def commonest_sentence(prompts: Sequence[Prompt], heard: Heard) -> tuple[str, Reading]:
    """What is said most often in training, and how wrong it is as an answer to everything."""
    sentences = [sentence for prompt in prompts for sentence in prompt.sentences]
    commonest = max(sorted(set(sentences)), key=sentences.count)
    labels = jnp.asarray(VOCABULARY.encode(commonest).labels)
    return commonest, reading(jnp.tile(labels, (len(heard.labels), 1)), heard)


def report(split: Split, heard: Heard, readings: dict[str, Reading]) -> None:
    """How well each decoder has read, and what the last one got most wrong."""
    known = {word for prompt in split.train for word in prompt.text.split()}
    words = [word for prompt in split.test for word in prompt.text.split()]
    new = np.mean([word not in known for word in words])
    letters = int((~heard.label_paddings).sum())
    print(f"\ntest: {len(heard.labels)} prompts, {letters} letters, {len(words)} words, ", end="")
    print(f"of which {new:.0%} are in no prompt for training")
    width = max(map(len, readings))
    print(f"{'':{width}}     CER     WER  prompts right")
    for name, found in readings.items():
        cer, wer = found.rates
        right = int((found.letters.errors == 0).sum())
        print(f"{name:{width}}  {cer:.4f}  {wer:.4f}  {right:>13}")
    best = list(readings.values())[-1].labels
    sides = best, best < 0, heard.labels, heard.label_paddings
    print(jaxctc.format_errors(*sides, names=VOCABULARY.names, most=WORST))


def draw(heard: Heard, found: Reading, path: Path) -> None:
    """A few utterances: features, posteriors of the right letters, the best path, words."""
    lengths = jaxctc.paddings_to_lengths(heard.label_paddings)
    fitting = np.flatnonzero((lengths >= 20) & (lengths <= 48))
    chosen = fitting[np.argsort(found.letters.errors[fitting], kind="stable")]
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(DRAWN, len(chosen))).astype(int)]
    figure = plt.figure(figsize=(14, 7.5 * max(1, len(chosen))), layout="constrained")
    for place, ax in zip(chosen, np.ravel(figure.subplots(max(1, len(chosen)))), strict=False):
        example = jax.tree.map(lambda part, place=place: part[place], heard)
        inputs = example[4], example[5], example[2], example[3]
        alignment = jaxctc.forced_align(*inputs)
        text = VOCABULARY.decode(np.where(example.label_paddings, -1, example.labels))
        words = jaxctc.word_spans(alignment, *inputs[2:], **VOCABULARY.word_options)
        jaxctc.plot_alignment(
            alignment,
            *inputs[2:],
            posteriors=jaxctc.posteriors(*inputs),
            signal=np.asarray(log_mel(example.samples[~example.sample_paddings], RATE))[:, ::-1],
            words=jaxctc.timed_spans(words, text.split(), frame_seconds=FRAME_SECONDS),
            names=VOCABULARY.names,
            frame_seconds=FRAME_SECONDS,
            ax=ax,
        )
        read = VOCABULARY.decode(found.labels[place])
        ax.set_title(f"said  {text}\nread  {read}", loc="left", family="monospace")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def save(model: Listener, path: Path) -> None:
    """Parameters and statistics, in the place of what was there."""
    shutil.rmtree(path, ignore_errors=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), _learned(model))


def restore(path: Path) -> Listener:
    """The network that was saved, as it listens and does not learn."""
    model = Listener(rngs=nnx.Rngs(0))
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(model, checkpointer.restore(path.absolute(), _learned(model)))
    model.eval()
    return model


def _learned(model: Listener) -> nnx.State:
    return nnx.state(model, (nnx.Param, nnx.BatchStat))


def main() -> None:
    """Trains, tunes, reads the test prompts and prints what came of it."""
    parser = OneLine(__doc__)
    parser.add_argument(
        "--sounds", type=sounds, default="/", help="where packages lie (default: /)"
    )
    parser.add_argument("--prompts", type=positive, help="so many at most (default: all)")
    parser.add_argument("--steps", type=positive, default=900, help="updates (default: 900)")
    parser.add_argument("--seed", type=seed, default=0, help="of model and training (default: 0)")
    parser.add_argument("--prior-scale", type=share, default=0.0, help="0 to 1 (default: 0)")
    parser.add_argument("--consistency", type=share, default=0.0, help="weight (default: 0)")
    parser.add_argument("--output", type=folder, help="for picture and network (default: none)")
    arguments = parser.parse_args()

    prompts = load_prompts(arguments.sounds)
    if arguments.prompts is not None:
        prompts = prompts[:: -(-len(prompts) // arguments.prompts)]
    split = split_prompts(prompts)
    validation = batches_of(split.validation)
    model = train(split.train, validation, arguments)
    if arguments.output is not None:
        save(model, arguments.output / "listener")
    ngrams = letter_model(split.train, arguments.output)
    guide = tune(listen(model, validation), ngrams)
    heard = listen(model, batches_of(split.test))
    commonest, always = commonest_sentence(split.train, heard)
    readings = {
        f'always "{commonest}"': always,
        "greedy": read_greedily(heard),
        "beam": read_by_beam(heard),
        "beam + n-gram": read_by_beam(heard, **guide),
    }
    report(split, heard, readings)
    if arguments.output is not None:
        path = arguments.output / "speech.png"
        draw(heard, readings["greedy"], path)
        print(f"picture: {path}")


if __name__ == "__main__":
    main()
