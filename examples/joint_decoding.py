"""Reads digits by an attention decoder, by CTC, and by both at once.

One network sees the columns of an image. Two readers share it, and are trained together: CTC, which
reads every column, and an attention decoder, which writes one digit after the other and says when
it has come to the end. The decoder may look at any column at any time, and so it can leave digits
out, read others twice, or stop too early; CTC cannot. Decoded jointly, each hypothesis of a beam is
worth what the decoder says of it and what CTC says of all that begins so
(`jaxctc.prefix_scores`). How much CTC counts is chosen on validation lines. Run it with

    python examples/joint_decoding.py

What to try next: `--steps 250`, when neither reader is any good alone and both together are better;
`decode.py`, where a language model takes the place of the attention decoder.
"""

import argparse
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import OneLine, positive, seed
from digit_lines import CLASSES, MAX_DIGITS, WIDTH, Lines, load_scans, make_lines
from flax import nnx
from tqdm import tqdm
from train_digits import Reader

import jaxctc

BATCH, FEATURES, BEAM = 32, 64, 4
CTC_SHARE = 0.3
"""Of the loss."""
CTC_WEIGHTS = (0.1, 0.3, 0.5, 0.7)
"""Of the scores of hypotheses."""
END = 0
"""The decoder's token for the end has the number of the blank, which it has no use for."""


State = tuple[jax.Array, jax.Array]
"""Of the decoder's cell, and what it has last seen; `[B, W, FEATURES]`."""


class Memory(NamedTuple):
    """What the decoder looks at, `[B, T, FEATURES]`."""

    keys: jax.Array
    values: jax.Array
    paddings: jax.Array


class Decoder(nnx.Module):
    """The last token in, scores of the next one out; a recurrent cell that looks at columns."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        """Columns are known by what they show and by where they are."""
        self.tokens = nnx.Embed(CLASSES, FEATURES, rngs=rngs)
        self.places = nnx.Embed(WIDTH, FEATURES, rngs=rngs)
        self.cell = nnx.GRUCell(2 * FEATURES, FEATURES, rngs=rngs)
        self.queries = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.keys = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.classes = nnx.Linear(2 * FEATURES, CLASSES, rngs=rngs)

    def remember(self, hidden: jax.Array, paddings: jax.typing.ArrayLike) -> Memory:
        """The columns of some lines."""
        placed = hidden + self.places(jnp.arange(hidden.shape[-2]))
        return Memory(self.keys(placed), placed, jnp.asarray(paddings))

    def __call__(self, state: State, tokens: jax.Array, memory: Memory) -> tuple[State, jax.Array]:
        """One step of W hypotheses per line: the next state and logits, `[B, W, …]`."""
        before, seen = state
        after, _ = self.cell(before, jnp.concatenate([self.tokens(tokens), seen], axis=-1))
        matches = jnp.einsum("bwf,btf->bwt", self.queries(after), memory.keys) / FEATURES**0.5
        shares = jax.nn.softmax(jnp.where(memory.paddings[:, None], -1e9, matches))
        seen = jnp.einsum("bwt,btf->bwf", shares, memory.values)
        return (after, seen), self.classes(jnp.concatenate([after, seen], axis=-1))

    @staticmethod
    def start(lines: int, width: int) -> State:
        """Nothing has been written, and nothing looked at."""
        return jnp.zeros((lines, width, FEATURES)), jnp.zeros((lines, width, FEATURES))


class JointReader(nnx.Module):
    """One view of the image, and both readers of it."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        """CTC's reader is that of `train_digits`."""
        self.ctc = Reader(features=FEATURES, rngs=rngs)
        self.decoder = Decoder(rngs=rngs)

    def __call__(self, lines: Lines) -> tuple[jax.Array, Memory]:
        """CTC's logits, and what the decoder looks at."""
        hidden = self.ctc.hidden(lines.images)
        return self.ctc.classes(hidden), self.decoder.remember(hidden, lines.image_paddings)


def attention_loss(decoder: Decoder, memory: Memory, lines: Lines) -> jax.Array:
    """Cross-entropy of the digits and the end, each after the true digits before it."""
    start = np.full((len(lines.labels), 1), END, np.int32)
    given = jnp.concatenate([start, lines.labels], axis=1)
    wanted = jnp.concatenate([lines.labels, start], axis=1)
    padded = jnp.concatenate([start > END, lines.label_paddings], axis=1)  # after the end

    def step(state: State, tokens: jax.Array) -> tuple[State, jax.Array]:
        state, logits = decoder(state, tokens[:, None], memory)
        return state, logits[:, 0]

    _, logits = jax.lax.scan(step, decoder.start(len(lines.labels), 1), given.T)
    return jaxctc.cross_entropy(logits.swapaxes(0, 1), wanted, paddings=padded).sum(-1)


@nnx.jit
def train_step(model: JointReader, optimizer: nnx.Optimizer, lines: Lines) -> jax.Array:
    """One update; returns the mean loss of both readers, in nats per line."""

    def mean_loss(model: JointReader) -> jax.Array:
        logits, memory = model(lines)
        of_ctc = jaxctc.ctc_loss(logits, lines.image_paddings, lines.labels, lines.label_paddings)
        of_decoder = attention_loss(model.decoder, memory, lines)
        return jnp.mean(CTC_SHARE * of_ctc + (1 - CTC_SHARE) * of_decoder)

    loss, gradient = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, gradient)
    return loss


class Beam(NamedTuple):
    """The W best hypotheses of each line, the best first; `[B, W, …]`."""

    prefixes: jaxctc.PrefixState
    state: State
    labels: jax.Array
    """END where nothing has been written."""
    last: jax.Array
    attention: jax.Array
    """The decoder's log-probability."""
    total: jax.Array
    has_ended: jax.Array


def next_beam(
    decoder: Decoder, memory: Memory, ctc_weight: jax.Array, beam: Beam, place: jax.Array
) -> Beam:
    """One more token for each hypothesis that has not ended."""
    state, logits = decoder(beam.state, beam.last, memory)
    attention = beam.attention[..., None] + jax.nn.log_softmax(logits)
    begins, ends = jaxctc.prefix_scores(beam.prefixes)
    ctc = begins.at[..., END].set(ends)
    scores = (1 - ctc_weight) * attention + jnp.where(ctc_weight > 0, ctc_weight * ctc, 0)
    # What has ended stays as it is, in the column of the end.
    is_end = jnp.arange(CLASSES) == END
    stays = jnp.where(is_end, beam.total[..., None], -jnp.inf)
    scores = jnp.where(beam.has_ended[..., None], stays, scores)
    scores = jnp.where(beam.total[..., None] > -jnp.inf, scores, -jnp.inf)

    total, best = jax.lax.top_k(scores.reshape(len(scores), -1), BEAM)
    parents, tokens = best // CLASSES, best % CLASSES

    def of_parents(values: jax.Array) -> jax.Array:
        return jax.vmap(lambda rows, places: rows[places])(values, parents)

    ended_before = of_parents(beam.has_ended)
    attention = jax.vmap(lambda rows, places: rows.reshape(-1)[places])(attention, best)
    return Beam(
        jaxctc.prefix_scores_select(beam.prefixes, jnp.where(tokens == END, -1, tokens), parents),
        jax.tree.map(of_parents, state),
        of_parents(beam.labels).at[..., place].set(tokens),
        tokens,
        jnp.where(ended_before, of_parents(beam.attention), attention),
        total,
        tokens == END,
    )


@nnx.jit
def count_errors(
    model: JointReader, lines: Lines, ctc_weight: jax.Array
) -> tuple[jaxctc.ErrorCounts, jaxctc.ErrorCounts]:
    """Those of a beam in which CTC counts so much, and those of CTC's best path."""
    logits, memory = model(lines)
    count = len(lines.labels)
    prefixes = jaxctc.prefix_scores_init(logits, lines.image_paddings, beam_width=BEAM)
    beam = Beam(
        prefixes,
        model.decoder.start(count, BEAM),
        jnp.full((count, BEAM, MAX_DIGITS + 2), END),
        jnp.full((count, BEAM), END),
        jnp.zeros((count, BEAM)),
        # All hypotheses are empty at first: one is enough.
        jnp.broadcast_to(jnp.where(jnp.arange(BEAM) == 0, 0.0, -jnp.inf), (count, BEAM)),
        jnp.zeros((count, BEAM), bool),
    )
    step = functools.partial(next_beam, model.decoder, memory, ctc_weight)
    places = jnp.arange(MAX_DIGITS + 2)
    beam, _ = jax.lax.scan(lambda beam, place: (step(beam, place), None), beam, places)
    labels, best = beam.labels[:, 0], jaxctc.greedy_decode(logits, lines.image_paddings).labels
    truth = lines.labels, lines.label_paddings
    return (
        jaxctc.error_counts(labels, labels == END, *truth).sum(),
        jaxctc.error_counts(best, jaxctc.label_paddings_from(best), *truth).sum(),
    )


def train(arguments: argparse.Namespace) -> JointReader:
    """Both readers, on an endless supply of lines."""
    scans, rng = load_scans("train"), np.random.default_rng(arguments.seed)
    model = JointReader(rngs=nnx.Rngs(arguments.seed))
    steps = arguments.steps
    schedule = optax.warmup_cosine_decay_schedule(0, 4e-3, max(1, steps // 10), steps + 1, 5e-5)
    tx = optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=0.05))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    with tqdm(range(steps), unit="step", mininterval=0.5) as bar:
        for _ in bar:
            loss = train_step(model, optimizer, make_lines(scans, BATCH, rng))
            bar.set_postfix(loss=f"{float(loss):.2f}", refresh=False)
    return model


def main() -> None:
    """Trains, chooses how much CTC counts, and prints the error rates of all three."""
    parser = OneLine(__doc__)
    parser.add_argument("--steps", type=positive, default=500, help="updates (default: 500)")
    parser.add_argument("--lines", type=positive, default=256, help="to test (default: 256)")
    parser.add_argument("--seed", type=seed, default=0, help="of model and training (default: 0)")
    arguments = parser.parse_args()

    model = train(arguments)
    lines = {
        split: make_lines(load_scans(split), arguments.lines, np.random.default_rng(7))
        for split in ("validation", "test")
    }

    def error_rates(split: str, weight: float) -> tuple[float, float]:
        """Of the beam and of CTC's best path."""
        found = count_errors(model, lines[split], jnp.float32(weight))
        return float(found[0].rate), float(found[1].rate)

    rates = {weight: error_rates("validation", weight)[0] for weight in CTC_WEIGHTS}
    tried = ", ".join(f"{weight:.1f}: {rate:.4f}" for weight, rate in rates.items())
    print(f"validation CER by the weight of CTC: {tried}")
    weight = min(rates, key=lambda weight: rates[weight])
    attention, best_path = error_rates("test", 0.0)
    joint, _ = error_rates("test", weight)
    print("test CER")
    print(f"  CTC, best path          {best_path:.4f}")
    print(f"  attention, beam of {BEAM}    {attention:.4f}")
    print(f"  both, CTC counts {weight:.1f}    {joint:.4f}")


if __name__ == "__main__":
    main()
