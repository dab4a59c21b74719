"""Random inputs against the oracles, for as long as there is time.

    python -m tests.fuzz --minutes 10 --seed 0

A setting is a shape with options and a dtype, drawn from menus, for each compiles for seconds; then
many batches go through it. Every example is compared with all its alignments, written out in
float64 (`oracles`); a batch with each example alone; what is too large to write out, with float64;
all implementations of the loss with each other. What fails is made as simple as it can be while it
still fails, and printed as a test to paste. The exit status is 1 if anything was found.
"""

import argparse
import collections
import functools
import operator
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
import oracles

import jaxctc
from jaxctc._core.emissions import build_lattice, prepare_inputs
from jaxctc._core.kernels import IMPLEMENTATIONS
from jaxctc._core.occupancies import Occupancies, solve

ALIGNED = 4096
"""Paths up to which a shape is compared with all of them."""
ROUNDS = 40
"""Batches for each setting."""


class Setting(NamedTuple):
    """What is compiled once."""

    sizes: tuple[int, int, int, int]
    """B, T, N, K."""
    blank_id: int = 0
    dtype: str = "float32"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def blank(self) -> int:
        """Counted from 0."""
        return self.blank_id % self.sizes[3]


class Inputs(NamedTuple):
    """The four arguments of the library."""

    logits: np.ndarray
    logit_paddings: np.ndarray
    labels: np.ndarray
    label_paddings: np.ndarray


SIZES = [
    (3, 5, 3, 3),
    (2, 6, 4, 4),
    (17, 4, 2, 4),  # the examples lie in the lanes
    (2, 5, 0, 3),
    (2, 0, 2, 3),
    (1, 1, 1, 2),
    (3, 3, 2, 1),
    (0, 3, 2, 3),
    (2, 60, 14, 12),
    (2, 130, 40, 9),  # sums by class
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {},
    {"logits_normalized": True},
    {"label_loop": False},
    {"wildcard_id": -1, "wildcard_penalty": 0.5},  # -1 stands for the number of classes
]
DTYPES = ["float32", "float32", "float32", "bfloat16", "float16"]
KINDS = ("normal", "wide", "peaked", "ties", "masked", "offset", "gaps", "broken")


def draw_setting(rng: np.random.Generator) -> Setting:
    """Any combination of the menus."""
    sizes = SIZES[rng.integers(len(SIZES))]
    options = dict(OPTIONS[rng.integers(len(OPTIONS))])
    if "wildcard_id" in options:
        options["wildcard_id"] = sizes[3]
    blank = int(rng.choice([0, sizes[3] - 1, -1]))
    return Setting(sizes, blank, str(rng.choice(DTYPES)), tuple(options.items()))


def draw_inputs(rng: np.random.Generator, setting: Setting) -> tuple[str, Inputs]:
    """One batch, and its kind."""
    batch, frames, places, classes = setting.sizes
    kind = str(rng.choice(KINDS))
    logits = _scores(rng, kind, (batch, frames, classes))
    if dict(setting.options).get("logits_normalized"):
        with np.errstate(all="ignore"):
            logits = np.where(np.isneginf(logits), logits, oracles.log_softmax(logits))
    no_frame = rng.random((batch, frames)) < rng.choice([0, 0.3])
    labels = rng.integers(0, max(classes, 1), (batch, places))
    regular = np.delete(np.arange(classes), setting.blank)
    if len(regular) and rng.random() < 0.8:  # else blanks are among them
        labels = rng.choice(regular, (batch, places))
    strange = rng.random((batch, places)) < rng.choice([0, 0.1])
    labels = np.where(strange, rng.choice([-1, classes, 10**6], labels.shape), labels)
    no_label = rng.random((batch, places)) < rng.choice([0.1, 0.6])
    junk = rng.choice([np.nan, np.inf, -np.inf, 1e30], logits.shape)
    logits = np.where(no_frame[..., None] & (rng.random(logits.shape) < 0.5), junk, logits)
    dtype = rng.choice(["bool", "int32", "float32"])
    scores = np.asarray(jnp.asarray(logits.astype(np.float32)).astype(setting.dtype))
    return kind, Inputs(
        scores, no_frame.astype(dtype), labels.astype(np.int32), no_label.astype(dtype)
    )


def _scores(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    logits = rng.normal(size=shape)
    if kind == "wide":
        logits *= 20
    elif kind == "peaked":
        logits += 9 * (rng.random(shape) < 0.3)
    elif kind == "ties":
        logits = np.round(logits)
    elif kind == "masked":
        logits[rng.random(shape) < 0.2] = -np.inf
        logits[..., rng.random(shape[-1]) < 0.2] = -np.inf
    elif kind == "offset":
        logits = np.round(logits * 8) / 8 + 1e4
    elif kind == "gaps":
        logits -= 10.0 ** rng.integers(2, 7) * (rng.random(shape) < 0.2)
    elif kind == "broken":
        logits[rng.random(shape) < 0.01] = rng.choice([np.nan, np.inf])
    return logits


@functools.lru_cache(maxsize=4)
def compiled(setting: Setting) -> Callable[..., dict[str, Any]]:
    """Everything that the library says of a batch, or of one example, in one program."""
    options = {"blank_id": setting.blank_id, **dict(setting.options)}
    plain = {key: options[key] for key in ("blank_id", "logits_normalized") if key in options}
    beam = min(64, setting.sizes[3] ** setting.sizes[1])

    @jax.jit
    def everything(*arguments: jax.Array) -> dict[str, Any]:
        logits, *rest = arguments
        ids, no_id = rest[1:]

        def losses(logits: jax.Array) -> jax.Array:
            return jaxctc.ctc_loss(logits, *rest, **options)

        loss, pullback = jax.vjp(losses, logits)
        found = {
            "loss": loss,
            "gradient": pullback(jnp.ones_like(loss))[0],
            "posteriors": jaxctc.posteriors(logits, *rest, **options),
            "durations": jaxctc.expected_durations(logits, *rest, **options),
            "entropy": jaxctc.alignment_entropy(logits, *rest, **options),
            "alignment": jaxctc.forced_align(logits, *rest, **options),
            "best": jaxctc.ctc_loss(logits, *rest, **options, max_approx=True),
            "greedy": jaxctc.greedy_decode(logits, rest[0], **plain),
            "errors": jaxctc.error_counts(ids, no_id, ids[..., ::-1], no_id[..., ::-1]),
        }
        if is_enumerable(setting) and not setting.options:
            found["beam"] = jaxctc.prefix_beam_search(logits, rest[0], beam_width=beam, **plain)
        return found

    return lambda *arguments: jax.tree.map(np.asarray, everything(*arguments))


def is_enumerable(setting: Setting) -> bool:
    """Whether all paths can be written out."""
    _, frames, _, classes = setting.sizes
    symbols = classes + ("wildcard_id" in dict(setting.options))
    return symbols**frames <= ALIGNED


class Example(NamedTuple):
    """What is in use of one example, in float64."""

    scores: np.ndarray
    """Log-probabilities."""
    labels: tuple[int, ...]
    used: np.ndarray
    """Frames."""
    spelt: np.ndarray
    """Labels."""


def example_of(setting: Setting, inputs: Inputs, row: int) -> Example:
    """Without padding."""
    used, spelt = ~inputs.logit_paddings[row].astype(bool), ~inputs.label_paddings[row].astype(bool)
    scores = inputs.logits[row].astype(np.float64)[used]
    if not dict(setting.options).get("logits_normalized"):
        with np.errstate(all="ignore"):
            scores = np.where(np.isneginf(scores), -np.inf, oracles.log_softmax(scores))
    return Example(scores, tuple(map(int, inputs.labels[row][spelt])), used, spelt)


def is_broken(setting: Setting, inputs: Inputs, row: int) -> bool | None:
    """Whether NaN or +inf counts; None where that depends on which columns are read."""
    logits = inputs.logits[row].astype(np.float64)[~inputs.logit_paddings[row].astype(bool)]
    strange = np.isnan(logits) | np.isposinf(logits)
    return None if strange.any() and dict(setting.options) else bool(strange.any())


def close(name: str, actual: Any, truth: Any, rtol: float, atol: float) -> None:
    """As float32 should be; infinities where they belong."""
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), truth, rtol=rtol, atol=atol, err_msg=name
    )


def check_paths(setting: Setting, inputs: Inputs) -> None:
    """Every example against all its alignments."""
    if not is_enumerable(setting):
        return
    found = compiled(setting)(*inputs)
    for row in range(setting.sizes[0]):
        if is_broken(setting, inputs, row):
            assert np.isnan(found["loss"][row]), "NaN in a frame in use"
        elif is_broken(setting, inputs, row) is False:
            _check_example(setting, inputs, row, jax.tree.map(operator.itemgetter(row), found))


def _check_example(setting: Setting, inputs: Inputs, row: int, found: dict[str, Any]) -> None:
    options = dict(setting.options)
    example = example_of(setting, inputs, row)
    paths = oracles.alignments(
        example.scores,
        example.labels,
        setting.blank,
        options.get("wildcard_id"),
        options.get("wildcard_penalty", 0.0),
        label_loop=options.get("label_loop", True),
    )
    close("loss", found["loss"], oracles.loss(paths), 2e-6, 2e-5)
    blank, label = oracles.posteriors(paths, len(example.scores), len(example.labels))
    close("posteriors, blank", found["posteriors"].blank[example.used], blank, 0, 2e-5)
    of_labels = found["posteriors"].label[example.used][:, example.spelt]
    close("posteriors, label", of_labels, label, 0, 2e-5)
    close("durations", found["durations"][example.spelt], label.sum(axis=0), 2e-5, 2e-5)
    close("entropy", found["entropy"], oracles.entropy(paths), 1e-4, 1e-4)
    close("padded posteriors", found["posteriors"].label[~example.used], 0, 0, 0)
    best = max((path.weight for path in paths), default=-np.inf)
    close("score", found["alignment"].score, best, 2e-6, 2e-5)
    close("best path", found["best"], 0.0 - best, 2e-6, 2e-5)
    if "wildcard_id" not in options:
        _check_gradient(setting, example, blank, label, bool(paths), found["gradient"])
    if paths and "wildcard_id" not in options:
        spelt = found["alignment"].frame_labels[example.used]
        loop = options.get("label_loop", True)
        assert oracles.collapse(spelt, setting.blank, label_loop=loop) == example.labels, "spells"
    if "beam" in found and len(example.scores):
        _check_beam(example, setting, found["beam"])


def _check_gradient(
    setting: Setting,
    example: Example,
    blank: np.ndarray,
    label: np.ndarray,
    is_feasible: bool,
    gradient: np.ndarray,
) -> None:
    """Softmax less occupancy, or minus the occupancy; exactly 0 if nothing is possible."""
    close("padded gradient", gradient[~example.used], 0, 0, 0)
    if not is_feasible:
        close("gradient of nothing", gradient, 0, 0, 0)
        return
    truth = np.zeros(example.scores.shape)
    truth[:, setting.blank] -= blank
    for place, name in enumerate(example.labels):
        truth[:, name] -= label[:, place]
    if not dict(setting.options).get("logits_normalized"):
        truth += np.exp(example.scores)
    rounding = float(jnp.finfo(setting.dtype).eps)
    close("gradient", gradient[example.used], truth, rounding, 2e-5 + rounding / 8)


def _check_beam(example: Example, setting: Setting, beam: Any) -> None:
    """As wide as there are prefixes, its best is the likeliest sequence."""
    scores = oracles.sequences(example.scores, setting.blank)
    best = max(scores.values())
    if best > -np.inf:
        labels = tuple(beam.labels[0][: beam.lengths[0]])
        close("beam, score", beam.scores[0], best, 2e-6, 2e-5)
        close("beam, labels", scores[labels], best, 2e-6, 2e-5)


def check_alone(setting: Setting, inputs: Inputs) -> None:
    """A batch is what its examples are alone."""
    batch = compiled(setting)(*inputs)
    for row in range(min(2, setting.sizes[0])):
        alone = compiled(setting)(*(part[row] for part in inputs))
        for name in ("loss", "gradient", "posteriors", "durations", "best", "errors"):
            for one, many in zip(*map(jax.tree.leaves, (alone[name], batch[name])), strict=True):
                close(name, one, many[row].astype(np.float64), 2e-5, 2e-5)


def check_float64(setting: Setting, inputs: Inputs) -> None:
    """Loss and gradient against the recursion in float64."""
    if setting.sizes[1] < 60 or setting.dtype != "float32":
        return
    found = compiled(setting)(*inputs)
    loss, gradient = _in_float64(setting)(inputs)
    close("loss", found["loss"], loss, 1e-6, 2e-5)
    close("gradient", found["gradient"], gradient, 0, 2e-5)


@functools.lru_cache(maxsize=4)
def _in_float64(setting: Setting) -> Callable[[Inputs], tuple[np.ndarray, np.ndarray]]:
    options = {"blank_id": setting.blank_id, **dict(setting.options)}

    @jax.jit
    def both(logits: jax.Array, *rest: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, pullback = jax.vjp(lambda x: jaxctc.ctc_loss(x, *rest, **options), logits)
        return loss, pullback(jnp.ones_like(loss))[0]

    def call(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
        with jax.enable_x64(True):
            loss, gradient = both(inputs.logits.astype(np.float64), *inputs[1:])
            return np.asarray(loss), np.asarray(gradient)

    return call


def check_implementations(setting: Setting, inputs: Inputs) -> None:
    """All kernels against the reference: totals and occupancies."""
    found = _solved(setting)(*inputs)
    truth = found.pop("reference")
    for name, ours in found.items():
        for one, true in zip(jax.tree.leaves(ours), jax.tree.leaves(truth), strict=True):
            close(f"{name} and the reference", one, true.astype(np.float64), 1e-6, 2e-5)


@functools.lru_cache(maxsize=4)
def _solved(setting: Setting) -> Callable[..., dict[str, Any]]:
    options = {"blank_id": setting.blank_id, "logits_normalized": False, **dict(setting.options)}

    @jax.jit
    def everything(*arguments: jax.Array) -> dict[str, Any]:
        config, inputs = prepare_inputs("fuzz", *arguments, **options)
        lattice = build_lattice(inputs, config)

        def by(name: str) -> tuple[jax.Array, Occupancies]:
            total, found = solve(lattice.problem, config._replace(implementation=name))
            is_known = ~lattice.has_nan  # of NaN, kernels make anything
            return jnp.where(is_known, total, 0), jax.tree.map(
                lambda part: jnp.where(
                    jnp.expand_dims(is_known, range(1, part.ndim)), part, jnp.zeros_like(part)
                ),
                found,
            )

        # "pallas" is left to `test_pallas_tpu`: here it would be emulated, and most is refused.
        return {name: by(name) for name in IMPLEMENTATIONS if name != "pallas"}

    return lambda *arguments: jax.tree.map(np.asarray, everything(*arguments))


def check_tokens(setting: Setting, inputs: Inputs) -> None:
    """Greedy decoding and error counts against plain Python."""
    found = compiled(setting)(*inputs)
    for row in range(setting.sizes[0]):
        example = example_of(setting, inputs, row)
        if not np.isnan(example.scores).any() and not np.isposinf(example.scores).any():
            raw = inputs.logits[row].astype(np.float64)[example.used]
            labels = oracles.collapse(raw.argmax(axis=1).tolist(), setting.blank)
            decoded = found["greedy"].labels[row][: found["greedy"].lengths[row]]
            is_tied = (np.sort(raw, axis=1)[:, -2:-1] == raw.max(axis=1, keepdims=True)).any()
            assert is_tied or tuple(decoded) == labels, "greedy"
        counts = oracles.edit_counts(example.labels, example.labels[::-1])
        ours = jax.tree.map(lambda part, row=row: int(part[row]), found["errors"])[:3]
        assert tuple(ours) == counts, f"errors: {ours} for {counts}"


CHECKS: dict[str, Callable[[Setting, Inputs], None]] = {
    "paths": check_paths,
    "alone": check_alone,
    "float64": check_float64,
    "implementations": check_implementations,
    "tokens": check_tokens,
}
"""By name. Each raises AssertionError."""


def fault(name: str, setting: Setting, inputs: Inputs) -> str | None:
    """What a check says of an input; None if nothing."""
    try:
        CHECKS[name](setting, inputs)
    except AssertionError as error:
        return str(error).strip()
    return None


def simpler(inputs: Inputs) -> Iterator[Inputs]:
    """Inputs with one thing less, all of the same shapes."""
    logits, no_frame, _, no_label = inputs
    batch, frames, _ = logits.shape
    for row in range(batch):
        if batch > 1:  # all examples are this one
            yield Inputs(*(np.broadcast_to(part[row], part.shape).copy() for part in inputs))
    for place in np.ndindex(no_frame.shape):
        yield inputs._replace(logit_paddings=_with(no_frame, place, 1))
    for place in np.ndindex(no_label.shape):
        yield inputs._replace(label_paddings=_with(no_label, place, 1))
    for row, frame in np.ndindex(batch, frames):
        yield inputs._replace(logits=_with(logits, (row, frame), 0))
    rounded = np.round(logits.astype(np.float64)).astype(logits.dtype)
    yield inputs._replace(logits=rounded)


def _with(part: np.ndarray, place: tuple[int, ...], value: int) -> np.ndarray:
    changed = part.copy()
    changed[place] = value
    return changed


def shrink(name: str, setting: Setting, inputs: Inputs, seconds: float = 60) -> Inputs:
    """The simplest input found that still fails."""
    end = time.monotonic() + seconds
    is_smaller = True
    while is_smaller and time.monotonic() < end:
        is_smaller = False
        for candidate in simpler(inputs):
            same = all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
                       for a, b in zip(candidate, inputs, strict=True))  # fmt: skip
            if not same and fault(name, setting, candidate):
                inputs, is_smaller = candidate, True
                break
    return inputs


def as_test(name: str, setting: Setting, inputs: Inputs, message: str) -> str:
    """A test to paste into tests/."""
    arrays = [part.astype(np.float32) if part.dtype.kind not in "iub" else part for part in inputs]
    literals = [f"np.array({part.tolist()}, np.{part.dtype})" for part in arrays]
    body = ",\n        ".join(literals).replace("nan", "np.nan").replace("inf", "np.inf")
    said = "\n".join(f"    # {line}" for line in message.splitlines()[:6])
    return (
        f"def test_found_by_fuzzing():\n{said}\n    setting = fuzz.{setting}\n"
        f"    inputs = fuzz.Inputs(\n        {body},\n    )\n"
        f"    inputs = inputs._replace(logits=inputs.logits.astype(setting.dtype))\n"
        f"    fuzz.CHECKS[{name!r}](setting, inputs)\n"
    )


def run(seed: int, minutes: float, show: Callable[[str], None] = print) -> int:
    """Draws until the time is up; how many faults were found."""
    rng, end = np.random.default_rng(seed), time.monotonic() + 60 * minutes
    tried: collections.Counter[str] = collections.Counter()
    faults = settings = 0
    while time.monotonic() < end:
        setting, settings = draw_setting(rng), settings + 1
        for _ in range(ROUNDS):
            kind, inputs = draw_inputs(rng, setting)
            tried[kind] += 1
            for name in CHECKS:
                if message := fault(name, setting, inputs):
                    faults += 1
                    small = shrink(name, setting, inputs)
                    message = fault(name, setting, small) or message
                    show(as_test(name, setting, small, message))
            if time.monotonic() > end:
                break
        jax.clear_caches()
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tried.items()))
    show(f"{sum(tried.values())} batches of {settings} settings ({kinds}): {faults} faults")
    return faults


def main() -> None:
    """Ends with status 1 if there are faults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(run(arguments.seed, arguments.minutes) > 0)


if __name__ == "__main__":
    main()
