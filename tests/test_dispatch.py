"""The implementation "pallas": what JAX may do with it, and what it becomes on which platform."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import P
from jax.export import export
from jax.sharding import AxisType, NamedSharding
from jaxprs import equations
from test_pallas_tpu import ragged

from jaxctc import ctc_loss, ctc_loss_from_hidden, posteriors
from jaxctc._core import checks
from jaxctc._core.kernels import dispatch

pallas = functools.partial(ctc_loss, implementation="pallas", zero_infinity=True)
plain = functools.partial(ctc_loss, implementation="xla", zero_infinity=True)
KERNEL = "tpu_custom_call"
KERNELS = {"tpu": KERNEL, "cuda": "mosaic_gpu_v2"}
# The newest JAX takes most of a minute to lower the gradient's kernels for a GPU.
ON_EACH = ["tpu", pytest.param("cuda", marks=pytest.mark.slow)]


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setenv(dispatch.INTERPRET, "tpu")


@pytest.fixture(scope="module")
def arguments():
    return jax.tree.map(jnp.asarray, ragged(0, 6, 12, 4))


def no_nan(arguments):
    return jnp.nan_to_num(arguments[0], neginf=-9.0), *arguments[1:]


def gradient(loss, logits, *rest):
    return jax.grad(lambda logits: jnp.sum(loss(logits, *rest)))(logits)


def hessian_product(loss, logits, *rest):
    return jax.jvp(lambda logits: gradient(loss, logits, *rest), (logits,), (logits,))[1]


def in_a_scan(loss, *arguments):
    """One example after the other."""
    return jax.lax.scan(lambda _, one: (None, gradient(loss, *one)), None, arguments)[1]


PROGRAMS = {
    "value": lambda loss, *arguments: loss(*arguments),
    "gradient": gradient,
    "derivative": lambda loss, logits, *rest: jax.jvp(
        lambda logits: loss(logits, *rest), (logits,), (logits,)
    ),
    "Hessian product": hessian_product,
    "checkpoint": lambda loss, *arguments: gradient(jax.checkpoint(loss), *arguments),
    "scan": in_a_scan,
    "vmap": lambda loss, *arguments: jax.vmap(functools.partial(gradient, loss))(*arguments),
    "vmap of one": lambda loss, logits, *rest: jax.vmap(lambda logits: loss(logits, *rest))(
        jnp.stack([logits, logits[::-1]], 1).swapaxes(0, 1)
    ),
}


IN_A_MINUTE = ("value", "gradient", "Hessian product", "vmap of one")
"""The others take the emulation long to compile."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in IN_A_MINUTE else pytest.mark.slow)
        for name in PROGRAMS
    ],
)
def test_transformations(name, arguments, emulated):
    program = jax.jit(PROGRAMS[name], static_argnums=0)
    ours, theirs = (program(loss, *no_nan(arguments)) for loss in (pallas, plain))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert "ctc_solve" in str(jax.make_jaxpr(program, static_argnums=0)(pallas, *arguments))


def test_axes_of_batch_stay_apart_until_it_is_lowered(arguments):
    """Folded into one, a batch that XLA spreads over two axes would be gathered."""
    two_axes = [part.reshape(2, 3, *part.shape[1:]) for part in arguments]
    for program in (pallas, jax.vmap(pallas)):
        (solve,) = (
            eqn
            for eqn in equations(jax.make_jaxpr(program)(*two_axes).jaxpr)
            if eqn.primitive is dispatch.solve_p
        )
        assert [part.aval.shape for part in solve.outvars] == [(2, 3)]


def test_eager(arguments, emulated):
    """The primitive itself, which no public function calls outside `jit`."""
    with jax.disable_jit():
        ours = posteriors(*no_nan(arguments), implementation="pallas")
    chex.assert_trees_all_close(ours, posteriors(*no_nan(arguments)), atol=1e-6)


def lowered(function, platforms, *arguments):
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in arguments]
    return export(jax.jit(function), platforms=platforms)(*shapes)


@pytest.mark.parametrize(
    ("program", "kernels"),
    [
        (pallas, ["ctc_forward"]),
        (functools.partial(gradient, pallas), ["ctc_backward", "ctc_forward"]),
        (functools.partial(posteriors, implementation="pallas"), ["ctc_backward", "ctc_forward"]),
    ],
    ids=["value", "gradient", "posteriors"],
)
def test_on_a_tpu_it_is_the_kernel(program, kernels, arguments):
    text = lowered(program, ["tpu"], *arguments).mlir_module()
    assert text.count(KERNEL) == len(kernels)
    assert sorted(re.findall(r'kernel_name = "(\w+)"', text)) == kernels
    assert "f64" not in text


def test_on_a_tpu_whatever_integers_are(arguments, x64):
    assert KERNEL in lowered(pallas, ["tpu"], *arguments).mlir_module()


def test_from_hidden_on_a_tpu(arguments):
    logits, *rest = arguments
    classes = logits.shape[-1]
    loss = functools.partial(ctc_loss_from_hidden, implementation="pallas")
    text = lowered(loss, ["tpu"], logits, jnp.eye(classes), jnp.zeros(classes), *rest)
    assert KERNEL in text.mlir_module()


@pytest.mark.slow
def test_on_a_gpu_it_is_the_kernel(arguments):
    text = lowered(functools.partial(gradient, pallas), ["cuda"], *arguments).mlir_module()
    assert text.count(KERNELS["cuda"]) == 2
    assert "f64" not in text


def test_on_a_gpu_whatever_integers_are(arguments, x64):
    assert KERNELS["cuda"] in lowered(pallas, ["cuda"], *arguments).mlir_module()


@pytest.mark.parametrize(
    "platforms",
    [
        ["cpu", "tpu"],
        pytest.param(["cpu", "cuda", "tpu"], marks=pytest.mark.slow),
        pytest.param(["cuda", "rocm"], marks=pytest.mark.slow),
    ],
)
def test_each_platform_runs_its_own(platforms, arguments):
    """One program, with the kernels of platforms that have one; the others run without."""
    program = lowered(functools.partial(gradient, pallas), platforms, *arguments)
    for platform, kernel in KERNELS.items():
        assert program.mlir_module().count(kernel) == 2 * (platform in platforms)
    assert program.platforms == tuple(platforms)
    if "cpu" not in platforms:
        return
    chex.assert_trees_all_close(program.call(*arguments), gradient(plain, *arguments), atol=1e-6)


def test_too_many_labels_for_one_of_several_platforms(arguments):
    """The kernel where it can, plain operations where it cannot."""
    logits, padded, ids, _ = arguments
    labels = jnp.broadcast_to(ids[:, :1], (len(ids), 4095))

    def loss(logits, padded, labels):
        return pallas(logits, padded, labels, None)

    text = lowered(loss, ["cuda", "tpu"], logits, padded, labels)
    assert KERNELS["tpu"] in text.mlir_module()
    assert KERNELS["cuda"] not in text.mlir_module()


@pytest.mark.parametrize("platform", ["cpu", "rocm"])
def test_elsewhere_it_is_refused_when_lowered(platform, arguments, monkeypatch):
    monkeypatch.delenv(dispatch.INTERPRET, raising=False)
    message = (
        f'jaxctc: implementation must be None or "xla" on the platform {platform}; got pallas. '
        f'Use None or "xla", a TPU or an NVIDIA GPU; on a CPU, {dispatch.INTERPRET}=tpu or '
        f"{dispatch.INTERPRET}=gpu emulates their kernels."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        lowered(pallas, [platform], *arguments)


class TestMesh:
    """Of sixteen devices that are not here: what is lowered for them, not what it gives."""

    @pytest.fixture
    def mesh(self):
        return jax.sharding.AbstractMesh((16,), ("batch",), axis_types=(AxisType.Auto,))

    @pytest.fixture
    def spread_out(self, mesh):
        place = NamedSharding(mesh, P("batch"))
        shapes = jax.eval_shape(lambda: ragged(0, 32, 12, 4))
        return [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place) for s in shapes]

    @pytest.mark.parametrize("check_vma", [True, False])
    @pytest.mark.parametrize("platform", ON_EACH)
    def test_each_device_runs_the_kernel_on_its_part(self, mesh, spread_out, check_vma, platform):
        loss = jax.shard_map(
            functools.partial(gradient, pallas),
            mesh=mesh,
            in_specs=P("batch"),
            out_specs=P("batch"),
            check_vma=check_vma,
        )
        text = export(jax.jit(loss), platforms=[platform])(*spread_out).mlir_module()
        assert text.count(KERNELS[platform]) == 2

    @pytest.mark.parametrize("platform", KERNELS)
    def test_what_xla_spreads_is_plain(self, spread_out, platform):
        with pytest.warns(UserWarning, match="shard_map") as seen:
            text = export(jax.jit(pallas), platforms=[platform])(*spread_out).mlir_module()
        assert [str(warning.message) for warning in seen] == [checks.NOT_PARTITIONED]
        assert KERNELS[platform] not in text
