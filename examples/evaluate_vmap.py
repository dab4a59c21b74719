"""Judges a reader of handwritten digits line by line, and shows the ten lines it reads worst.

What there is to say about a line (its loss, its errors, where each of its digits lies) is written
down for one line alone. `jax.vmap` makes that a function of a batch; `jax.lax.map` with a batch
size does so batch by batch, in one compiled program, so that a set of any length takes the memory
of one batch. `jax.shard_map` gives every device its part of the set. Beams exchange nothing there,
and the devices meet once: to add up their error counts. Run it with

    python examples/evaluate_vmap.py
    JAX_NUM_CPU_DEVICES=2 python examples/evaluate_vmap.py   # the same figures

What to try next: a language model in the beam (decode.py); your own network in place of `Reader`.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from command_line import OneLine, positive, seed
from digit_lines import Lines, load_scans, make_lines
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
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


def judge(model: Reader, beam_width: int, line: Lines) -> Verdict:
    """The verdict on one line."""
    logits = model(line.images)
    truth = line.labels, line.label_paddings
    best = jaxctc.prefix_beam_search(logits, line.image_paddings, beam_width=beam_width)
    decoded = best.labels[0]
    return Verdict(
        jaxctc.ctc_loss(logits, line.image_paddings, *truth),
        decoded,
        jaxctc.error_counts(decoded, jaxctc.label_paddings_from(decoded), *truth),
        jaxctc.forced_align(logits, line.image_paddings, *truth),
    )


@functools.partial(nnx.jit, static_argnames=("batch_size", "beam_width"))
def judge_all(
    model: Reader, lines: Lines, *, batch_size: int, beam_width: int
) -> tuple[Verdict, jaxctc.ErrorCounts]:
    """The verdicts on lines, of which all devices have equally many, and the sum of their counts.

    Every device takes its lines a batch at a time.
    """
    structure, parameters = nnx.split(model)

    def judge_part(parameters: nnx.State, lines: Lines) -> tuple[Verdict, jaxctc.ErrorCounts]:
        judge_one = functools.partial(judge, nnx.merge(structure, parameters), beam_width)
        verdicts = jax.lax.map(judge_one, lines, batch_size=batch_size)
        return verdicts, jax.lax.psum(verdicts.counts.sum(), "lines")

    everywhere, spread = PartitionSpec(), PartitionSpec("lines")
    return jax.shard_map(
        judge_part,
        mesh=jax.make_mesh((jax.device_count(),), ("lines",), axis_types=(AxisType.Auto,)),
        in_specs=(everywhere, spread),
        out_specs=(spread, everywhere),
    )(parameters, lines)


def for_all_devices(lines: Lines) -> Lines:
    """Lines for every device equally many: what is added is all padding, and has no errors."""
    added = -len(lines.images) % jax.device_count()
    more = [np.zeros((added, *part.shape[1:]), part.dtype) for part in lines]
    extra = Lines(*more)
    extra.image_paddings[:], extra.label_paddings[:] = True, True
    return Lines(*map(np.concatenate, zip(lines, extra, strict=True)))


def report(lines: Lines, verdicts: Verdict, total: jaxctc.ErrorCounts) -> None:
    """All lines in two rows, then the worst of them, one by one."""
    errors = np.asarray(verdicts.counts.errors)
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
    parser.add_argument("--beam-width", type=positive, default=8, help="prefixes (default: 8)")
    arguments = parser.parse_args()

    validation = evaluation_lines("validation", VALIDATION_BATCHES)
    model, _ = train(load_scans("train"), validation, arguments)
    lines = make_lines(load_scans("test"), arguments.lines, np.random.default_rng(7))
    options = {"batch_size": arguments.batch_size, "beam_width": arguments.beam_width}
    verdicts, total = jax.device_get(judge_all(model, for_all_devices(lines), **options))
    report(lines, jax.tree.map(lambda part: part[: arguments.lines], verdicts), total)


if __name__ == "__main__":
    main()
