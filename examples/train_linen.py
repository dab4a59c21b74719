"""Trains a recurrent network of Flax Linen on ragged batches of handwritten digits.

Convolutions, a bidirectional LSTM and the CTC loss are the classic reader of text lines. The lines
keep their own widths here: those of like width form a batch, and `jaxctc.pad_to_bucket` fills it up
to one of a few sizes, so that the jitted step is compiled that many times and no more. Whatever
mixes frames is told where padding is: convolutions find zeros there, batch normalisation leaves it
out of its statistics, the LSTM turns round at the last frame in use. So a line is read alike in
whichever batch it is. The network keeps every second column, and passes on the paddings of what it
has kept: those are the ones that the loss and the decoder need. Run it with

    python examples/train_linen.py

What to try next: `--lines 1024 --epochs 32`, which makes as many steps from a quarter of the lines;
`train_sharded.py`, which spreads a batch over many devices.
"""

import argparse
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import OneLine, positive, seed
from digit_lines import CLASSES, HEIGHT, MAX_DIGITS, WIDTH, Lines, Scans, load_scans, make_lines
from flax import linen as nn
from flax.training import train_state
from tqdm import tqdm

import jaxctc

BUCKETS = [(48, 8), (64, MAX_DIGITS), (WIDTH, MAX_DIGITS)]
"""Columns and digits that a batch is filled up to."""
VALIDATION_LINES, TEST_LINES, EVALUATION_BATCH = 128, 512, 64


class Reader(nn.Module):
    """Columns of an image in, class scores for every second column out."""

    features: int = 64
    dropout: float = 0.2

    @nn.compact
    def __call__(
        self, images: jax.Array, no_column: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Logits `[B, T, K]` and their paddings `[B, T]`, for images `[B, 2 T, HEIGHT]`."""
        hidden, no_frame = images[..., None], no_column
        for channels, stride in ((16, 1), (32, 2)):
            hidden = nn.Conv(channels, (3, 3), (stride, stride), use_bias=False)(hidden)
            no_frame = no_frame[:, ::stride]
            in_use = ~no_frame[..., None, None]
            hidden = nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden, mask=in_use)
            hidden = jnp.where(in_use, nn.relu(hidden), 0)
        hidden = hidden.reshape(*no_frame.shape, -1)
        forward, backward = (nn.RNN(nn.OptimizedLSTMCell(self.features)) for _ in range(2))
        lengths = jaxctc.paddings_to_lengths(no_frame)
        hidden = nn.Bidirectional(forward, backward)(hidden, seq_lengths=lengths)
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return nn.Dense(CLASSES)(hidden), no_frame


class TrainState(train_state.TrainState):
    """What training changes: parameters and optimizer, the averages of the batch norms, a key."""

    batch_stats: Any
    dropout_key: jax.Array


def new_state(seed: int, steps: int) -> TrainState:
    """A reader that knows nothing yet, and what will train it in so many steps."""
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    model = Reader()
    columns = np.zeros((1, WIDTH, HEIGHT), np.float32), np.zeros((1, WIDTH), bool)
    variables = model.init(init_key, *columns, train=False)
    schedule = optax.warmup_cosine_decay_schedule(0, 1e-2, max(1, steps // 10), steps + 1, 1e-4)
    return TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05)),
        batch_stats=variables["batch_stats"],
        dropout_key=dropout_key,
    )


@functools.partial(jax.jit, donate_argnames="state")
def train_step(state: TrainState, batch: jaxctc.PaddedBatch) -> tuple[TrainState, jax.Array]:
    """One update, and the mean loss in nats per line, of those that were not added as filling."""
    key = jax.random.fold_in(state.dropout_key, state.step)

    def mean_loss(params: Any) -> tuple[jax.Array, Any]:
        (logits, no_frame), updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            batch.frames,
            batch.frame_paddings,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = jaxctc.ctc_loss(logits, no_frame, batch.labels, batch.label_paddings)
        mean = jaxctc.reduce_loss(losses, example_paddings=batch.example_paddings).mean
        return mean, updates["batch_stats"]

    gradient_of = jax.value_and_grad(mean_loss, has_aux=True)
    (loss, batch_stats), gradient = gradient_of(state.params)
    return state.apply_gradients(grads=gradient, batch_stats=batch_stats), loss


@jax.jit
def count_errors(state: TrainState, batch: jaxctc.PaddedBatch) -> jaxctc.ErrorCounts:
    """The errors in all lines of a batch; filling has none."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    scores = state.apply_fn(variables, batch.frames, batch.frame_paddings, train=False)
    decoded = jaxctc.greedy_decode(*scores).labels
    truth = batch.labels, batch.label_paddings
    return jaxctc.error_counts(decoded, jaxctc.label_paddings_from(decoded), *truth).sum()


def evaluate(state: TrainState, batches: Iterable[jaxctc.PaddedBatch]) -> jaxctc.ErrorCounts:
    """The errors in all batches."""
    counts = (count_errors(state, batch) for batch in batches)
    return sum(counts, jaxctc.ErrorCounts.zero())


def ragged_batches(
    lines: Lines, size: int, rng: np.random.Generator
) -> Iterator[jaxctc.PaddedBatch]:
    """All lines once, those of like width together, the batches in random order."""
    widths = (~lines.image_paddings).sum(axis=1)
    order = np.argsort(widths + rng.uniform(0, 8, len(widths)))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    for chunk in rng.permutation(len(chunks)):
        images = [lines.images[line, : widths[line]] for line in chunks[chunk]]
        digits = [lines.labels[line][~lines.label_paddings[line]] for line in chunks[chunk]]
        yield jaxctc.pad_to_bucket(images, digits, BUCKETS, batch_size=size)


def evaluation_batches(split: str, count: int) -> list[jaxctc.PaddedBatch]:
    """The same lines on every run, whatever the seed of the training."""
    rng = np.random.default_rng(7)
    return [*ragged_batches(make_lines(load_scans(split), count, rng), EVALUATION_BATCH, rng)]


def train(
    scans: Scans, validation: list[jaxctc.PaddedBatch], arguments: argparse.Namespace
) -> TrainState:
    """Trains a new reader on the same lines again and again."""
    rng = np.random.default_rng(arguments.seed)
    lines = make_lines(scans, arguments.lines, rng)
    steps = arguments.epochs * math.ceil(arguments.lines / arguments.batch_size)
    state = new_state(arguments.seed, steps)
    with tqdm(total=steps, unit="step", mininterval=0.5) as bar:
        for epoch in range(1, arguments.epochs + 1):
            losses, waste = [], []
            for batch in ragged_batches(lines, arguments.batch_size, rng):
                state, loss = train_step(state, batch)
                losses.append(float(loss))
                waste.append(batch.frame_waste)
                bar.update()
            rate = evaluate(state, validation).rate
            bar.write(
                f"epoch {epoch}: {np.mean(losses):.3f} nats per line, validation CER {rate:.4f}, "
                f"{np.mean(waste):.0%} of the frames padding"
            )
    return state


def main() -> None:
    """Trains, and prints the test CER."""
    parser = OneLine(__doc__)
    parser.add_argument("--epochs", type=positive, default=8, help="of all lines (default: 8)")
    parser.add_argument("--lines", type=positive, default=4096, help="to train on (default: 4096)")
    parser.add_argument("--seed", type=seed, default=0, help="of model and lines (default: 0)")
    parser.add_argument("--batch-size", type=positive, default=32, help="lines (default: 32)")
    arguments = parser.parse_args()

    validation = evaluation_batches("validation", VALIDATION_LINES)
    test = evaluation_batches("test", TEST_LINES)
    state = train(load_scans("train"), validation, arguments)
    print(f"test CER: {evaluate(state, test).rate:.4f}")


if __name__ == "__main__":
    main()
