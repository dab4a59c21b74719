"""What the loss is timed on: the shapes of the design, those of real models, and a batch of each.

A batch is what a loader that sorts by length hands to a model: the first example fills it, the
others are shorter, most down to `SHORTEST` of it, and have labels in proportion. All of them fit.
The scores are random: no library computes anything else for likelier ones.
"""

from typing import NamedTuple

import numpy as np

SHORTEST = 0.6


class Shape(NamedTuple):
    """The size of a batch, and where it comes from."""

    batch: int
    frames: int
    labels: int
    classes: int
    """The blank included."""
    source: str
    shortest: float = SHORTEST
    """The frames of the shortest example, as a part of the longest one's."""

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, T, N, K."""
        return self[:4]


class Batch(NamedTuple):
    """The first four arguments of a loss; paddings are float32, which every library takes."""

    logits: np.ndarray
    """[B, T, K]."""
    logit_paddings: np.ndarray
    """[B, T]."""
    labels: np.ndarray
    """[B, N]; 0, the blank, where padded."""
    label_paddings: np.ndarray
    """[B, N]."""


DESIGN = {
    "char": Shape(64, 400, 60, 32, "Letters in speech; the design's."),
    "bpe1k": Shape(32, 1000, 200, 1024, "A middling vocabulary, long utterances; the design's."),
    "bpe5k": Shape(
        8, 500, 100, 5000, "The vocabulary of ESPnet's LibriSpeech recipes; the design's."
    ),
    "digits": Shape(128, 64, 12, 12, "Lines of digits, small and many; the design's."),
    "long": Shape(1, 20000, 4000, 32, "Seven minutes at 50 frames a second; the design's."),
}
MODELS = {
    "conformer": Shape(
        16,
        418,
        80,
        1025,
        "LibriSpeech by NeMo's conformer_ctc_bpe.yaml: 16 utterances of up to 16.7 s, 25 frames a"
        " second (10 ms, 4x subsampling); a BPE of 1024, estimated at five tokens a second.",
    ),
    "wav2vec2": Shape(
        12,
        799,
        240,
        32,
        "wav2vec2 base by fairseq's base_960h.yaml: 200 s of audio to a batch (12 of 16 s), one"
        " frame for 320 samples at 16 kHz, 32 symbols, about 15 letters and spaces a second.",
    ),
    "handwriting": Shape(
        16,
        128,
        64,
        80,
        "IAM lines by georgeretsi/HTR-best-practices: 16 images of 1024 columns, one frame for 8"
        " of them, 79 characters; 64 of them make a long line of IAM.",
    ),
    "translation": Shape(
        8,
        105,
        35,
        32000,
        "Non-autoregressive translation by shawnkx/Fully-NAT: three frames for a token of the"
        " source, a joint BPE of about 32 000; 8 sentences of 35 tokens, where a batch of its 4096"
        " tokens has a hundred.",
    ),
}
GROUPS = {"design": list(DESIGN), "models": list(MODELS)}
SHAPES = {
    **DESIGN,
    **MODELS,
    "even": Shape(
        64, 400, 60, 32, "As `char`, without padded frames: cuDNN's loss takes no others.", 1.0
    ),
    "octaves": Shape(12, 500, 15, 60, "Where benchmarks.scaling begins; its labels fit 16 times."),
    "tiny": Shape(2, 16, 2, 5, "For the tests of the benchmarks."),
}


def make_batch(shape: Shape, seed: int = 0) -> Batch:
    """The same numbers on every run.

    Raises:
      ValueError: if there are more labels than half the frames: any fewer fit, whatever repeats.
    """
    batch, frames, places, classes = shape.sizes
    if 2 * places > frames:
        raise ValueError(f"labels must be at most half the frames; got {places} and {frames}.")
    rng = np.random.default_rng(seed)
    share = rng.uniform(shape.shortest, 1, batch)
    density = rng.uniform(0.8, 1, batch)
    share[0] = density[0] = 1
    labels = rng.integers(1, classes, (batch, places), dtype=np.int32)
    label_paddings = _paddings(np.maximum(share * density * places, 1).astype(int), places)
    return Batch(
        rng.standard_normal((batch, frames, classes), np.float32),
        _paddings(np.ceil(share * frames), frames),
        np.where(label_paddings > 0, 0, labels),
        label_paddings,
    )


def _paddings(lengths: np.ndarray, size: int) -> np.ndarray:
    return (np.arange(size) >= lengths[:, None]).astype(np.float32)
