"""Finds when each word of a long recording is said, how far off that is, and writes subtitles.

Prompts that the network has not learnt from are joined to one recording, with pauses of known
length between them: so it is known to the hundredth of a second when the first word of each begins
and the last one ends. The text of all of it is aligned at once, though features and scores were
computed in chunks. Train a network first, with label priors for letters that are no peaks, then
run

    python examples/train_speech.py --prior-scale 0.4 --output out
    python examples/align_speech.py --model out/listener --output out

with `--minutes 60` for an hour, in which the prompts come again and again. Every tenth line of the
text is then left out, replaced by a wrong one, and replaced by a wildcard: what does that do to the
lines beside it?

What to try next: open the subtitles beside the recording in a player; `python -m jaxctc align` does
the same with scores of any network, from a `.npy` file and a text.
"""

import argparse
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from command_line import OneLine, folder, positive, seed, share
from flax import nnx
from jax.typing import ArrayLike
from speech_features import HOP, num_frames
from telephone_prompts import (
    RATE,
    Prompt,
    Recording,
    add_noise,
    join,
    load_prompts,
    sounds,
    split_prompts,
    trim,
)
from tqdm import tqdm
from train_speech import FRAME_SECONDS, STRIDE, VOCABULARY, Listener, restore

import jaxctc

matplotlib.use("Agg")  # draws to files, with or without a screen
import matplotlib.pyplot as plt

CHUNK, CONTEXT = 3000, 60
"""Frames of features that are scored at a time, and as many more on either side as can matter."""
PAUSES = (0.2, 1.0)
"""Seconds between two prompts, drawn at random."""
DAMAGED = 10
"""Every so many lines, the text of one is not what is said."""
WILDCARD_PENALTY = 0.5
SHOWN, DRAWN_SECONDS = 8, 7.0
FORMATS = ("srt", "vtt", "TextGrid", "ctm")


def long_recording(prompts: Sequence[Prompt], minutes: int, rng: np.random.Generator) -> Recording:
    """All prompts in random order, again and again, until they last so long."""
    chosen: list[Prompt] = []
    seconds = 0.0
    while seconds < 60 * minutes:
        for place in rng.permutation(len(prompts)):
            chosen.append(prompts[place])
            seconds += len(trim(prompts[place].samples)) / RATE + sum(PAUSES) / 2
            if seconds >= 60 * minutes:
                break
    recording = join(chosen, rng.uniform(*PAUSES, len(chosen) + 1))
    return recording._replace(samples=add_noise(recording.samples, rng))


@nnx.jit
def score_chunk(model: Listener, samples: ArrayLike, no_frame: ArrayLike) -> jax.Array:
    """Logits of a chunk alone, its context left out again."""
    logits, _ = model(model.normalized(samples)[None], jnp.asarray(no_frame)[None])
    return logits[0, CONTEXT // STRIDE : (CONTEXT + CHUNK) // STRIDE]


def score_in_chunks(model: Listener, samples: np.ndarray) -> np.ndarray:
    """Logits `[T, K]` of a recording, the same as if the network had heard it at once."""
    frames = num_frames(len(samples))
    starts = range(0, frames, CHUNK)
    longest = (len(starts) * CHUNK + 2 * CONTEXT) * HOP
    padded = np.zeros(longest, np.float32)
    padded[CONTEXT * HOP :][: len(samples)] = samples
    no_frame = np.ones(longest // HOP, bool)
    no_frame[CONTEXT:][:frames] = False
    parts = []
    for start in tqdm(starts, desc="scores", unit="chunk", mininterval=0.5):
        end = start + CHUNK + 2 * CONTEXT
        chunk = padded[start * HOP : end * HOP], no_frame[start:end]
        parts.append(np.asarray(score_chunk(model, *chunk)))
    return np.concatenate(parts)[: -(-frames // STRIDE)]


class Priors(NamedTuple):
    """How frequent each class is in what the network emits, and how much of that to take off."""

    log_probs: np.ndarray
    scale: np.float32


@functools.partial(jax.jit, static_argnames="with_confidences")
def align(
    logits: ArrayLike,
    labels: ArrayLike,
    word_ids: ArrayLike,
    priors: Priors,
    *,
    with_confidences: bool = False,
) -> jaxctc.WordSpans:
    """The frames of every word; confidences, which take longest, only if they are asked for."""
    is_padding = jnp.less(labels, 0)
    found = jaxctc.forced_align(
        logits,
        None,
        labels,
        is_padding,
        label_priors=priors.log_probs,
        prior_scale=priors.scale,
        wildcard_id=VOCABULARY.wildcard_id,
        wildcard_penalty=WILDCARD_PENALTY,
    )
    words = jaxctc.word_spans(found, labels, is_padding, word_ids=word_ids)
    if not with_confidences:
        words = words._replace(confidences=jnp.zeros_like(words.confidences))
    return words


def align_lines(
    logits: np.ndarray, lines: Sequence[str], priors: Priors, *, with_confidences: bool = False
) -> list[jaxctc.Span]:
    """Each line with its time, the words as its parts."""
    text = VOCABULARY.encode(" ".join(lines), unknown="wildcard")
    # Texts of about the same length share a compiled program.
    room = [(0, -len(text.labels) % 1024)]
    arrays = (np.pad(part, room, constant_values=-1) for part in (text.labels, text.word_ids))
    words = align(logits, *arrays, priors, with_confidences=with_confidences)
    spans = jaxctc.timed_spans(words, text.words, frame_seconds=FRAME_SECONDS)
    return jaxctc.group_spans(spans, counts=[len(line.split()) for line in lines])


def damaged(texts: Sequence[str], rng: np.random.Generator) -> dict[str, dict[int, str]]:
    """The text in every way in which it is aligned: what stands in which line."""
    lines = dict(enumerate(texts))
    bad = range(DAMAGED // 2, len(texts), DAMAGED)
    wrong = {line: rng.choice([text for text in set(texts) if text != texts[line]]) for line in bad}
    return {
        "whole": lines,
        "lines missing": {line: text for line, text in lines.items() if line not in bad},
        "lines wrong": lines | wrong,
        "* in their place": lines | dict.fromkeys(bad, "*"),
    }


class Errors(NamedTuple):
    """How far the edges of lines are from where they were found, in milliseconds."""

    starts: np.ndarray
    """Of each line, NaN where it has not been aligned."""
    ends: np.ndarray

    @property
    def off(self) -> np.ndarray:
        """At all edges."""
        return np.concatenate([self.starts, self.ends])

    @property
    def beside(self) -> np.ndarray:
        """At the edges that face a line whose text may be damaged."""
        bad = np.arange(DAMAGED // 2, len(self.starts), DAMAGED)
        after = bad[bad + 1 < len(self.starts)] + 1
        return np.concatenate([self.ends[bad - 1], self.starts[after]])


def errors_of(recording: Recording, found: dict[int, jaxctc.Span]) -> Errors:
    """Found less true: positive is too late."""
    nowhere = jaxctc.Span("", np.nan, np.nan)
    lines = [found.get(line, nowhere) for line in range(len(recording.texts))]
    starts, ends = np.array([[line.start, line.end] for line in lines]).T
    return Errors(1000 * (starts - recording.starts), 1000 * (ends - recording.ends))


def report(name: str, errors: Errors) -> None:
    """One row: all edges, then those beside a line whose text may be damaged."""
    shares = []
    for part in (errors.off, errors.beside):
        off = np.abs(part[np.isfinite(part)])
        shares += [
            f"{np.median(off):7.0f}{np.percentile(off, 90):7.0f}"
            f"{np.mean(off <= 50):8.1%}{np.mean(off <= 100):8.1%}"
        ]
    print(f"{name:<28}" + "   ".join(shares))


def print_lines(recording: Recording, lines: list[jaxctc.Span]) -> None:
    """On which side lines are wrong; then when the first ones are said, and when they are found."""
    errors = errors_of(recording, dict(enumerate(lines)))
    late, early = np.median(errors.starts), -np.median(errors.ends)
    cuts = [(one.end + other.start) / 2 for one, other in itertools.pairwise(lines)]
    is_silent = (recording.ends[:-1] <= cuts) & (cuts <= recording.starts[1:])
    print(
        f"in the median lines are found to begin {late:.0f} ms late and to end {early:.0f} ms early"
    )
    print(f"half way from one line to the next is the pause between them: {is_silent.mean():.1%}")
    print("\nsaid from    to   found from    to  least confidence of a word")
    columns = zip(recording.starts, recording.ends, lines, strict=True)
    for start, end, line in list(columns)[:SHOWN]:
        print(
            f"{start:9.2f}{end:6.2f}{line.start:13.2f}{line.end:6.2f}"
            f"{line.confidence:7.2f}  {line.text[:50]}"
        )


def draw(recording: Recording, logits: np.ndarray, rows: dict[str, Priors], path: Path) -> None:
    """The first lines: waveform, posteriors of the letters, the best path, words, true edges."""
    count = max(1, int(np.searchsorted(recording.ends, DRAWN_SECONDS)))
    frames = int((recording.ends[count - 1] + 0.15) / FRAME_SECONDS)
    text = VOCABULARY.encode(" ".join(recording.texts[:count]))
    figure = plt.figure(figsize=(16, 8 * len(rows)), layout="constrained")
    for (name, priors), ax in zip(rows.items(), np.ravel(figure.subplots(len(rows))), strict=True):
        given = logits[:frames], None, text.labels, None
        taken_off: dict[str, Any] = {
            "label_priors": priors.log_probs,
            "prior_scale": priors.scale,
        }
        alignment = jaxctc.forced_align(*given, **taken_off)
        words = jaxctc.word_spans(alignment, text.labels, **VOCABULARY.word_options)
        jaxctc.plot_alignment(
            alignment,
            text.labels,
            posteriors=jaxctc.posteriors(*given, **taken_off),
            signal=recording.samples[: int(frames * FRAME_SECONDS * RATE)],
            words=jaxctc.timed_spans(words, text.words, frame_seconds=FRAME_SECONDS),
            names=VOCABULARY.names,
            frame_seconds=FRAME_SECONDS,
            ax=ax,
        )
        for edge in (*recording.starts[:count], *recording.ends[:count]):
            ax.child_axes[0].axvline(edge, color="black", linestyle=":")
        ax.set_title(f"{name}; dotted: where a prompt is known to begin and to end", loc="left")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def write_subtitles(lines: list[jaxctc.Span], seconds: float, output: Path) -> None:
    """The same lines in every format."""
    for ending in FORMATS:
        path = output / f"speech.{ending}"
        jaxctc.write_spans(path, lines, duration=seconds)
        print(f"subtitles: {path}")


def model_folder(text: str) -> Path:
    """The value of an option: what `train_speech.py` has saved."""
    path = Path(text)
    if not (path / "_METADATA").is_file():
        remedy = "Run train_speech.py --output first; it writes listener there."
        requirement = "must be the folder of a trained network"
        raise argparse.ArgumentTypeError(f"{requirement}; got {text!r}. {remedy}")
    return path


def main() -> None:
    """Joins, aligns in many ways, prints the errors, writes and draws."""
    parser = OneLine(__doc__)
    parser.add_argument(
        "--sounds", type=sounds, default="/", help="where packages lie (default: /)"
    )
    parser.add_argument("--model", type=model_folder, required=True, help="of train_speech.py")
    parser.add_argument("--minutes", type=positive, default=10, help="to align (default: 10)")
    parser.add_argument("--seed", type=seed, default=0, help="of the recording (default: 0)")
    parser.add_argument("--prior-scale", type=share, default=0.4, help="0 to 1 (default: 0.4)")
    parser.add_argument("--output", type=folder, help="for picture and subtitles (default: none)")
    arguments = parser.parse_args()

    rng = np.random.default_rng(arguments.seed)
    split = split_prompts(load_prompts(arguments.sounds))
    recording = long_recording([*split.validation, *split.test], arguments.minutes, rng)
    seconds = len(recording.samples) / RATE
    model = restore(arguments.model)
    logits = score_in_chunks(model, recording.samples)
    print(f"{seconds / 60:.1f} minutes, {len(recording.texts)} lines, ", end="")
    print(f"{len(recording.text.split())} words, {len(logits)} frames of {FRAME_SECONDS:.2f} s")

    log_priors = np.asarray(model.log_priors[...])
    scales = {"no priors": np.float32(0), "priors": np.float32(arguments.prior_scale)}
    rows = {name: Priors(log_priors, scale) for name, scale in scales.items()}
    titles = " median   90 %   ≤50 ms ≤100 ms"
    print(f"{'errors of edges in ms':<28}{titles}   {titles}")
    print(f"{'':<28}{'of all lines':>31}   {'facing every tenth line':>31}")
    for text, lines in damaged(recording.texts, rng).items():
        for name, priors in rows.items():
            found = align_lines(logits, list(lines.values()), priors)
            errors = errors_of(recording, dict(zip(lines, found, strict=True)))
            report(f"{text}, {name}", errors)

    lines = align_lines(logits, recording.texts, rows["priors"], with_confidences=True)
    print_lines(recording, lines)
    if arguments.output is not None:
        write_subtitles(lines, seconds, arguments.output)
        path = arguments.output / "align_speech.png"
        draw(recording, logits, rows, path)
        print(f"picture: {path}")


if __name__ == "__main__":
    main()
