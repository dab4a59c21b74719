"""Judges a reader of handwritten digits line by line, and shows the ten lines it reads worst.

What there is to say about a line (its loss, its errors, where each of its digits lies) is written
down for one line alone. `jax.vmap` makes that a function of a batch; `jax.lax.map` with a batch
size does so batch by batch, in one compiled program, so that a set of any length takes the memory
of one batch. Run it with

    python examples/evaluate_vmap.py
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from command_line import OneLine, positive, seed
from digit_lines import Lines, load_scans, make_lines
from flax import nnx
from train_digits import NAMES, VALIDATION_BATCHES, Reader, evaluation_lines, train

import jaxctc

WORST = 10


class Verdict(NamedTuple):
    """What there is to say about a line, or about each of many."""

    loss: jax.Array
    """`[*B]`, nats."""
    decoded: jax.Array
    """`[*B, T]`, -1 after the last label."""
    counts: jaxctc.ErrorCounts
    """`[*B]`, of what was decoded."""
    alignment: jaxctc.Alignment
    """Of what is written, whatever was decoded."""


def judge(model: Reader, line: Lines) -> Verdict:
    """The verdict on one line."""
    logits = model(line.images)
    truth = line.labels, line.label_paddings
    decoded = jaxctc.greedy_decode(logits, line.image_paddings).labels
    return Verdict(
        jaxctc.ctc_loss(logits, line.image_paddings, *truth),
        decoded,
        jaxctc.error_counts(decoded, jaxctc.label_paddings_from(decoded), *truth),
        jaxctc.forced_align(logits, line.image_paddings, *truth),
    )


@functools.partial(nnx.jit, static_argnames="batch_size")
def judge_all(model: Reader, lines: Lines, *, batch_size: int) -> Verdict:
    """The verdicts on many lines, a batch at a time."""
    return jax.lax.map(functools.partial(judge, model), lines, batch_size=batch_size)


def report(lines: Lines, verdicts: Verdict) -> None:
    """All lines in two rows, then the worst of them, one by one."""
    total, errors = verdicts.counts.sum(), np.asarray(verdicts.counts.errors)
    print(
        f"{len(errors)} lines: {np.mean(verdicts.loss):.3f} nats per line, "
        f"{np.mean(errors == 0):.1%} without an error"
    )
    print(f"CER: {float(total.rate):.4f}, {int(total.errors)} in {int(total.reference_length)}")

    print("\nexample   loss    CER  least certain place")
    doubts = np.where(lines.label_paddings, np.inf, verdicts.alignment.confidences)
    for line in np.argsort(-errors, kind="stable")[:WORST]:
        place = doubts[line].argmin()
        print(
            f"{line:>7}  {verdicts.loss[line]:5.2f}  {verdicts.counts.rate[line]:5.3f}  "
            f"{NAMES[lines.labels[line, place]]} from column "
            f"{verdicts.alignment.starts[line, place]} on, confidence {doubts[line, place]:.3f}"
        )
    no_label = jaxctc.label_paddings_from(verdicts.decoded)
    truth = lines.labels, lines.label_paddings
    print()
    print(jaxctc.format_errors(verdicts.decoded, no_label, *truth, names=NAMES, most=WORST))


def main() -> None:
    """Trains a reader and judges it."""
    parser = OneLine(__doc__)
    parser.add_argument("--steps", type=positive, default=450, help="updates (default: 450)")
    parser.add_argument("--seed", type=seed, default=0, help="of model and training (default: 0)")
    parser.add_argument(
        "--batch-size", type=positive, default=32, help="lines, trained or judged (default: 32)"
    )
    parser.add_argument("--lines", type=positive, default=1024, help="to judge (default: 1024)")
    arguments = parser.parse_args()

    validation = evaluation_lines("validation", VALIDATION_BATCHES)
    model, _ = train(load_scans("train"), validation, arguments)
    lines = make_lines(load_scans("test"), arguments.lines, np.random.default_rng(7))
    verdicts = judge_all(model, lines, batch_size=arguments.batch_size)
    report(lines, jax.device_get(verdicts))


if __name__ == "__main__":
    main()
