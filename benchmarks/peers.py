"""The loss of every library, as calls that can be timed: inputs in place, compiled, waited for.

Each computes the sum over a batch of paddings and all, from logits: the normaliser is part of the
work. "floor" stands among them for what no library can spare: reading the logits once for their
`logsumexp` and, for the gradient, once more to write a softmax of their size. It leaves out the
recursion and what reads the labels' scores, so no library gets down to it.
"""

import functools
import importlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxctc
from benchmarks.shapes import Batch, Shape, make_batch
from benchmarks.timing import Call

os.environ["KERAS_BACKEND"] = "jax"  # before anything imports Keras
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what goes wrong is raised all the same


class Prepared(NamedTuple):
    """A library's loss of one batch, with or without the gradient."""

    call: Call
    device: str
    """Where it runs; PyTorch on a CPU says with how many threads."""
    compile_seconds: float | None = None
    """From the Python function to an executable; None where that is not a step of its own."""
    megabytes: float | None = None
    """Set aside for temporary values and results; None where the library does not say."""


class Peer(NamedTuple):
    """A library."""

    prepare: Callable[[Batch, str], Prepared]
    """From a batch and a key of `TASKS`."""
    is_tried_first: bool = False
    """Whether it takes hours or all memory for some shapes, so that it has to pass `try_out`."""


def _compile(function: Callable[..., Any], batch: Batch) -> Prepared:
    start = time.perf_counter()
    # Other libraries promote dtypes and ranks on their own.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        compiled = jax.jit(function).lower(*batch).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    held = memory and (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6
    kind = jax.devices()[0].device_kind
    return Prepared(lambda: jax.block_until_ready(compiled(*batch)), kind, seconds, held)


def _jax(loss: Callable[..., jax.Array]) -> Callable[[Batch, str], Prepared]:
    def summed(*batch: jax.Array) -> jax.Array:
        return loss(*batch).sum()

    def alone(*batch: jax.Array) -> tuple[jax.Array]:
        return (summed(*batch),)

    tasks = {"grad": jax.value_and_grad(summed), "loss": alone}
    return lambda batch, task: _compile(tasks[task], batch)


def _floor(batch: Batch, task: str) -> Prepared:
    def read(logits: jax.Array, *_: jax.Array) -> tuple[jax.Array]:
        return (jax.nn.logsumexp(logits, axis=-1).sum(),)

    def read_twice_and_write(logits: jax.Array, *_: jax.Array) -> tuple[jax.Array, jax.Array]:
        normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        return normalizer.sum(), jnp.exp(logits - normalizer)

    return _compile(read_twice_and_write if task == "grad" else read, batch)


def _keras(logits, logit_paddings, labels, label_paddings):
    keras: Any = importlib.import_module("keras")
    lengths = [(1 - paddings).sum(-1) for paddings in (label_paddings, logit_paddings)]
    return keras.ops.ctc_loss(labels, logits, *lengths, mask_index=0)


def _lengths(paddings: np.ndarray) -> np.ndarray:
    return (1 - np.asarray(paddings)).sum(-1).astype(np.int32)


def _torch(batch: Batch, task: str, *, by_cudnn: bool = False) -> Prepared:
    """PyTorch's own kernels, or on a GPU those of cuDNN.

    PyTorch takes these where no frame is padded, and labels, at most 256 of an example, stand one
    after the other in the host's memory.
    """
    if by_cudnn and np.any(batch.logit_paddings):
        raise ValueError(f"{CUDNN}: no frame must be padded, as in the shape 'even'.")
    torch: Any = importlib.import_module("torch")
    is_on_gpu = torch.cuda.is_available() and jax.default_backend() == "gpu"
    device = torch.device("cuda" if is_on_gpu else "cpu")
    logits = torch.tensor(np.asarray(batch.logits), device=device, requires_grad=True)
    frames = torch.tensor(_lengths(batch.logit_paddings))
    places = torch.tensor(_lengths(batch.label_paddings))
    labels = torch.tensor(np.asarray(batch.labels), device=device)
    if by_cudnn:
        labels = torch.tensor(np.asarray(batch.labels)[np.asarray(batch.label_paddings) == 0])

    def loss():
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        return torch.nn.functional.ctc_loss(log_probs, labels, frames, places, reduction="sum")

    def call():
        with torch.set_grad_enabled(task == "grad"):
            value = loss()
        gradient = torch.autograd.grad(value, logits) if task == "grad" else ()
        if is_on_gpu:
            torch.cuda.synchronize()
        return value.detach(), *gradient

    name = torch.cuda.get_device_name() if is_on_gpu else f"cpu, {torch.get_num_threads()} threads"
    return Prepared(call, name)


def _tensorflow(batch: Batch, task: str) -> Prepared:
    """The dense loss behind `tf.nn.ctc_loss`, as a graph; always on the CPU."""
    tf: Any = importlib.import_module("tensorflow")
    tf.config.set_visible_devices([], "GPU")  # or it takes all the memory there
    lengths = _lengths(batch.label_paddings), _lengths(batch.logit_paddings)
    inputs = [tf.constant(np.asarray(part)) for part in (batch.labels, batch.logits, *lengths)]

    @tf.function
    def compute(labels, logits, places, frames):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = tf.reduce_sum(
                tf.nn.ctc_loss(
                    labels, logits, places, frames, logits_time_major=False, blank_index=0
                )
            )
        return value, *([tape.gradient(value, logits)] if task == "grad" else [])

    return Prepared(lambda: compute(*inputs), "cpu")


CUDNN, KERNEL = "torch (cuDNN)", "jaxctc (pallas)"
"""Not among the libraries that are looked for: a CPU has neither."""
PEERS = {
    "floor": Peer(_floor),
    "jaxctc": Peer(_jax(jaxctc.ctc_loss)),
    KERNEL: Peer(_jax(functools.partial(jaxctc.ctc_loss, implementation="pallas"))),
    "optax": Peer(_jax(optax.ctc_loss)),
    "keras": Peer(_jax(_keras)),
    "torch": Peer(_torch),
    CUDNN: Peer(functools.partial(_torch, by_cudnn=True)),
    # It multiplies [T, B, 1, K] by [1, B, N, K] and, at each frame, all pairs of states.
    "tensorflow": Peer(_tensorflow, is_tried_first=True),
}


def try_out(name: str, shape: Shape, task: str, seconds: float) -> str | None:
    """Why a library cannot take part, found out by a call in a process that can be ended.

    Importing and tracing count; memory is limited to what is free, so that nobody else loses any.
    """
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_call_once, args=(name, shape, task), daemon=True)
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        return f"not done in {seconds:g} s"
    return None if process.exitcode == 0 else "failed; its error is on stderr"


def _call_once(name: str, shape: Shape, task: str) -> None:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (free, free))
    PEERS[name].prepare(make_batch(shape), task).call()
