"""Reads a line of print with a network that knows nothing of JAX: scores are arrays, after all.

The package `rapidocr-onnxruntime` holds a recogniser of text that was trained with CTC (PP-OCRv4,
Apache-2.0): 6623 characters, a frame for every 8 columns of an image. ONNX Runtime computes its
probabilities as an array of NumPy, and from there on everything is jaxctc: the best path, a beam,
an alignment that says in which pixels each character stands. The line is drawn here, so the right
answers are known. Run it with

    pip install '.[examples,ocr]'
    python examples/logits_from_elsewhere.py --output out

What to try next: more noise, up to `--noise 1`, to see where the reading breaks; scores of a
network of your own, saved as `.npy`, by `python -m jaxctc decode`.
"""

import argparse
import importlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import matplotlib
import numpy as np
from command_line import OneLine, folder, seed, share
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

import jaxctc

matplotlib.use("Agg")  # draws to files, with or without a screen
import matplotlib.pyplot as plt

PACKAGE, MODEL = "rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"
HEIGHT, MARGIN, FONT_SIZE = 48, 6, 32
BEAM_WIDTH, SHOWN = 16, 3


class Line(NamedTuple):
    """An image of a text, and where its characters stand."""

    image: np.ndarray
    """[HEIGHT, W], 0 is black and 1 is white."""
    edges: np.ndarray
    """Pixels at which each character begins, and at which the last one ends, [N + 1]."""


def draw_line(text: str, noise: float, rng: np.random.Generator) -> Line:
    """The text in DejaVu Serif, black on white, with some noise."""
    font = ImageFont.truetype(findfont("DejaVu Serif"), FONT_SIZE)
    edges = np.array([MARGIN + font.getlength(text[:end]) for end in range(len(text) + 1)])
    image = Image.new("L", (int(edges[-1]) + MARGIN, HEIGHT), "white")
    ImageDraw.Draw(image).text((MARGIN, 4), text, fill="black", font=font)
    pixels = np.asarray(image, np.float32) / 255
    return Line(
        np.clip(pixels + noise * rng.standard_normal(pixels.shape, np.float32), 0, 1), edges
    )


class Recogniser:
    """The network, by ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        """Reads the model, and its characters, which are stored within."""
        onnxruntime = importlib.import_module("onnxruntime")  # the extra `ocr` has it
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(path), providers=providers)
        characters = self._session.get_modelmeta().custom_metadata_map["character"].splitlines()
        self.vocabulary = jaxctc.Vocabulary(["<blank>", *characters, " "])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Log-probabilities `[T, K]` of an image `[HEIGHT, W]`."""
        pixels = np.repeat(2 * image[None, None] - 1, 3, axis=1)
        (probabilities,) = self._session.run(None, {"x": pixels})
        return np.log(probabilities[0])


def model_path(parser: argparse.ArgumentParser) -> Path:
    """Where the package has put the model."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        parser.error(f"needs {PACKAGE}: pip install '.[examples,ocr]'")
    return Path(found.origin).parent / MODEL


def boxes(found: jaxctc.Alignment, pixels_per_frame: float) -> np.ndarray:
    """Pixels at which each character begins, and at which the last one ends, `[N + 1]`.

    CTC puts a character on a frame or two of the middle of it; two characters meet half way
    between their frames.
    """
    starts, ends = np.asarray(found.starts), np.asarray(found.ends) + 1
    middles = (starts + ends) / 2
    between = (ends[:-1] + starts[1:]) / 2
    half = np.diff(middles).mean() / 2 if len(middles) > 1 else 1.0
    return pixels_per_frame * np.concatenate([[middles[0] - half], between, [middles[-1] + half]])


def report_boxes(text: str, line: Line, edges: np.ndarray, found: jaxctc.Alignment) -> None:
    """Where each character stands, then how far that is from the truth."""
    print("\ncharacter  drawn in pixels  found in pixels  confidence")
    for place, character in enumerate(text):
        drawn, box = line.edges[place : place + 2], edges[place : place + 2]
        print(
            f"{character!r:>9}  {drawn[0]:7.0f}–{drawn[1]:<7.0f}  {box[0]:7.0f}–{box[1]:<7.0f}  "
            f"{found.confidences[place]:.3f}"
        )
    off = np.abs(edges - line.edges)
    middles = [(sides[:-1] + sides[1:]) / 2 for sides in (edges, line.edges)]
    inside = (line.edges[:-1] <= middles[0]) & (middles[0] <= line.edges[1:])
    print(f"middle of the box found inside the character: {inside.mean():.4f}")
    print(f"edges off by {off.mean():.1f} pixels on average, at most {off.max():.1f}")


def draw(
    text: str, line: Line, edges: np.ndarray, given: tuple[np.ndarray, np.ndarray], path: Path
) -> None:
    """The line with its boxes, and the posteriors of the characters with the best path."""
    log_probs, labels = given
    figure = plt.figure(figsize=(14, 8), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[1, 4])
    above.imshow(line.image, cmap="gray", vmin=0, vmax=1, aspect="auto")
    for edge in edges:
        above.axvline(edge, color="C3", linewidth=1)
    above.set_yticks([])
    above.set(xlabel="pixel; red: boxes of the characters", title=text)
    alignment = jaxctc.forced_align(log_probs, None, labels, None, logits_normalized=True)
    jaxctc.plot_alignment(
        alignment,
        np.arange(len(labels)),
        posteriors=jaxctc.posteriors(log_probs, None, labels, None, logits_normalized=True),
        names=["␣" if character == " " else character for character in text],
        ax=below,
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Draws, reads, aligns, prints."""
    parser = OneLine(__doc__)
    parser.add_argument(
        "--text", default="Whence and what art thou, 1667?", help="to draw and read"
    )
    parser.add_argument("--noise", type=share, default=0.3, help="0 to 1 (default: 0.3)")
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (default: 0)")
    parser.add_argument("--output", type=folder, help="folder for the picture (default: none)")
    arguments = parser.parse_args()

    recogniser = Recogniser(model_path(parser))
    vocabulary = recogniser.vocabulary
    text = " ".join(arguments.text.split())
    encoded = vocabulary.encode(text, unknown="drop")
    if not text or encoded.unknown:
        unknown = ", ".join(map(repr, encoded.unknown)) or "no text at all"
        parser.error(f"argument --text: must have characters that the network knows; got {unknown}")

    line = draw_line(text, arguments.noise, np.random.default_rng(arguments.seed))
    log_probs = recogniser(line.image)
    pixels_per_frame = line.image.shape[1] / len(log_probs)
    print(f"{line.image.shape[1]} pixels, {len(log_probs)} frames, {log_probs.shape[1]} classes")

    greedy = jaxctc.greedy_decode(log_probs, None, logits_normalized=True)
    print(f"greedy: {vocabulary.decode(greedy.labels)}")
    best = jaxctc.prefix_beam_search(
        log_probs,
        None,
        beam_width=BEAM_WIDTH,
        num_hypotheses=SHOWN,
        logits_normalized=True,
    )
    for labels, score in zip(best.labels, best.scores, strict=True):
        print(f"beam: {vocabulary.decode(labels)}  ({score:.2f} nats)")
    rate = jaxctc.cer(best.labels[0], best.labels[0] < 0, encoded.labels, None).rate
    print(f"CER of the beam: {rate:.4f}")

    found = jaxctc.forced_align(log_probs, None, encoded.labels, None, logits_normalized=True)
    if not jnp.isfinite(found.score):
        parser.error("the text has more characters than the network has frames for")
    edges = boxes(found, pixels_per_frame)
    report_boxes(text, line, edges, found)
    if arguments.output is not None:
        path = arguments.output / "print.png"
        draw(text, line, edges, (log_probs, encoded.labels), path)
        print(f"picture: {path}")


if __name__ == "__main__":
    main()
