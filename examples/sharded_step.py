"""A training step on a mesh of devices: what each computes, and what they exchange.

The whole step but the optimizer lies within one `jax.shard_map`, so that nothing is exchanged that
does not stand here or in `conformer.py`:

    along `data`    once in a step, the sum of the gradients, of the losses, and their number,
                    however many microbatches there are
    along `model`   activations, once after each of the four parts of a layer, and their gradients
                    once before each; for classes that are spread, what `jaxctc.ctc_loss` says of
                    `vocab_axis_name`, and the gradient of the hidden values

and Pallas kernels run as they are. Parameters and the state of the optimizer are the same along
`data`, and each step takes the memory of the one before (they are donated).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from conformer import ALIGNED, MODEL, SIZES, Conformer, place_of
from flax import nnx
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxctc

DATA = "data"
CTC = "ctc_part"
"""The named scope of the loss, by which it is found in a compiled program."""
HEADS = ("sharded", "hidden")


class Plan(NamedTuple):
    """All that decides about the program of a step but the mesh and the shape of the batch."""

    size: str
    """A key of `SIZES`."""
    features: int
    classes: int
    """The blank, 0, included."""
    head: str
    """"sharded": every device of the axis `model` has its part of the classes. "hidden": each has
    all, but never more than a block of their logits (`jaxctc.ctc_loss_from_hidden`)."""
    implementation: str | None
    """Of the loss."""
    microbatches: int
    """Parts of the batch of one device that are computed one after the other."""
    dtype: str
    """Of the activations."""
    remat: bool
    """Whether to compute layers again on the way back, so as not to keep what lies in them."""
    steps: int
    learning_rate: float

    def learner(self, seed: int) -> tuple[Conformer, nnx.Optimizer]:
        """A model that knows nothing yet, and what will train it."""
        model = Conformer(SIZES[self.size], self.features, self.classes, nnx.Rngs(seed))
        peak, rise = self.learning_rate, max(1, self.steps // 10)
        schedule = optax.warmup_cosine_decay_schedule(0, peak, rise, self.steps + 1, peak / 100)
        update = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
        )
        return model, nnx.Optimizer(model, update, wrt=nnx.Param)


def mesh_of(shape: dict[str, int], devices: Sequence[Any]) -> Mesh:
    """A mesh of these devices with the axes `data` and `model`, neighbours along the latter."""
    sizes = shape[DATA], shape[MODEL]
    return jax.make_mesh(sizes, (DATA, MODEL), (AxisType.Auto,) * 2, devices=devices)


def complaint(plan: Plan, shape: dict[str, int], devices: int, batch: int) -> str | None:
    """Why a plan does not fit a mesh, by the option that it concerns."""
    along, across = shape[DATA], shape[MODEL]
    said = ",".join(f"{axis}={size}" for axis, size in shape.items())
    if along * across != devices:
        return f"argument --mesh: must have as many devices as there are, {devices}; got '{said}'"
    heads = SIZES[plan.size].heads
    if heads % across or ALIGNED % across:
        requirement = f"must have a divisor of {heads} along model, the heads of '{plan.size}'"
        return f"argument --mesh: {requirement}; got '{said}'"
    if batch % (along * plan.microbatches):
        requirement = f"must be a multiple of {along * plan.microbatches}, data x microbatches"
        return f"argument --batch-size: {requirement}; got '{batch}'"
    return None


class Trainer:
    """The jitted programs of a plan on a mesh."""

    def __init__(self, plan: Plan, mesh: Mesh) -> None:
        """Traces the model; nothing is computed."""
        self.plan, self.mesh = plan, mesh
        self.batch_sharding = NamedSharding(mesh, PartitionSpec(DATA))
        model, optimizer = nnx.eval_shape(functools.partial(plan.learner, 0))
        self._model_graph, parameters = nnx.split(model)
        self._graph, learned = nnx.split((model, optimizer))
        self._places = jax.tree.map_with_path(lambda path, _: self._place(path), parameters)

        def placed(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = NamedSharding(mesh, self._place(path))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        self.learned: Any = jax.tree.map_with_path(placed, learned)
        """Shapes, dtypes and places of parameters and optimizer."""
        self.step: Any = jax.jit(
            self._step, donate_argnums=0, out_shardings=(self._shardings, None)
        )
        """Parameters and optimizer, and a batch, to the former after it, and its mean loss."""
        self.count_errors: Any = jax.jit(self._count_errors)
        """Of the best paths, in a batch that is spread over the mesh."""

    def fresh(self, seed: int) -> Any:
        """Parameters and optimizer before the first step, the same on any mesh."""
        make = jax.jit(lambda: nnx.state(self.plan.learner(seed)), out_shardings=self._shardings)
        return make()

    @property
    def _whole(self) -> bool:
        return self.plan.head == "hidden"

    @property
    def _shardings(self) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, self.learned)

    def _place(self, path: tuple) -> PartitionSpec:
        return place_of(path, whole=self._whole)

    def _step(self, learned: Any, batch: jaxctc.PaddedBatch) -> tuple[Any, Array]:
        model, optimizer = nnx.merge(self._graph, learned)
        gradients = jax.shard_map(
            self._gradients,
            mesh=self.mesh,
            in_specs=(self._places, PartitionSpec(DATA)),
            out_specs=(self._places, PartitionSpec()),
        )
        gradient, loss = gradients(nnx.state(model), batch)
        optimizer.update(model, gradient)
        return nnx.state((model, optimizer)), loss

    def _gradients(self, parameters: Any, batch: jaxctc.PaddedBatch) -> tuple[Any, Array]:
        """Of the mean loss over all devices, on one of them; and that loss."""
        # Were the parameters the same along `data` here, the devices would add up the gradients
        # of every microbatch.
        own = jax.tree.map(lambda part: lax.pcast(part, DATA, to="varying"), parameters)

        def of_part(part: jaxctc.PaddedBatch) -> tuple[Array, Array, Any]:
            (total, weight), gradient = jax.value_and_grad(self._loss, has_aux=True)(own, part)
            return total, weight, gradient

        count = self.plan.microbatches
        if count == 1:
            found = of_part(batch)
        else:
            parts = jax.tree.map(lambda part: part.reshape(count, -1, *part.shape[1:]), batch)
            zero = lax.pcast(jnp.zeros(()), DATA, to="varying")
            nothing = zero, zero, jax.tree.map(lambda part: 0 * part, own)

            def add(found: Any, part: jaxctc.PaddedBatch) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, found, of_part(part)), None

            found, _ = lax.scan(add, nothing, parts)
        total, weight, gradient = lax.psum(found, DATA)
        share = 1 / jnp.maximum(weight, 1)
        return jax.tree.map(lambda part: part * share, gradient), total * share

    def _loss(self, parameters: Any, batch: jaxctc.PaddedBatch) -> tuple[Array, Array]:
        """The sum of the losses, and how many there are."""
        plan = self.plan
        model, hidden, no_frame = self._listen(parameters, batch)
        truth = no_frame, batch.labels, batch.label_paddings
        options: dict[str, Any] = {"implementation": plan.implementation}
        if self._whole:
            kernel, bias = (
                part[..., : plan.classes].astype(hidden.dtype)
                for part in (model.classes, model.class_bias)
            )
            with jax.named_scope(CTC):
                losses = jaxctc.ctc_loss_from_hidden(hidden, kernel, bias, *truth, **options)
        else:
            logits = model.logits(hidden, plan.classes, whole=False)
            with jax.named_scope(CTC):
                losses = jaxctc.ctc_loss(logits, *truth, vocab_axis_name=MODEL, **options)
        found = jaxctc.reduce_loss(losses, example_paddings=batch.example_paddings)
        return found.sum, found.weight

    def _listen(self, parameters: Any, batch: jaxctc.PaddedBatch) -> tuple[Conformer, Array, Array]:
        model = nnx.merge(self._model_graph, parameters)
        frames = jnp.asarray(batch.frames).astype(self.plan.dtype)
        no_frame = jnp.asarray(batch.frame_paddings)
        return model, *model.hidden(frames, no_frame, remat=self.plan.remat)

    def _count_errors(self, learned: Any, batch: jaxctc.PaddedBatch) -> jaxctc.ErrorCounts:
        def on_one_device(parameters: Any, batch: jaxctc.PaddedBatch) -> jaxctc.ErrorCounts:
            model, hidden, no_frame = self._listen(parameters, batch)
            logits = model.logits(hidden, self.plan.classes, whole=self._whole)
            if not self._whole:
                logits = lax.all_gather(logits, MODEL, axis=-1, tiled=True)
            best = jaxctc.greedy_decode(logits, no_frame).labels
            truth = batch.labels, batch.label_paddings
            counts = jaxctc.error_counts(best, jaxctc.label_paddings_from(best), *truth).sum()
            if not self._whole:  # they are the same, which `jax.shard_map` does not know
                counts = lax.pmax(counts, MODEL)
            return lax.psum(counts, DATA)

        model, _ = nnx.merge(self._graph, learned)
        spread = jax.shard_map(
            on_one_device,
            mesh=self.mesh,
            in_specs=(self._places, PartitionSpec(DATA)),
            out_specs=PartitionSpec(),
        )
        return spread(nnx.state(model), batch)
