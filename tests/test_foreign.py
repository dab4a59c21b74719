"""Tensors of PyTorch in place of arrays; without PyTorch, what only needs the look of one."""

from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest

import jaxctc
from jaxctc._core import foreign
from jaxctc.adapters.torch import ctc_loss

LABELS = np.array([[1, 2]])


class TensorOnAGpu:
    """What NumPy and JAX see of one, where JAX has no CUDA."""

    requires_grad, device, dtype, shape = False, "cuda:0", "torch.float32", (1, 3, 4)

    @property
    def __cuda_array_interface__(self):
        shape = {"shape": self.shape, "typestr": "<f4"}
        return {**shape, "data": (64, False), "strides": None, "version": 2}

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        raise BufferError("of a device that is not there")

    def detach(self):
        return self

    contiguous = detach


def test_a_tensor_on_a_gpu_is_named():
    with pytest.raises(ValueError, match=r"logits must be one array of numbers; got ") as error:
        jaxctc.ctc_loss(cast(Any, TensorOnAGpu()), None, LABELS, None)
    assert str(error.value).endswith(
        "got a tensor of torch.float32[1, 3, 4] that is on cuda:0. "
        "Pass its .cpu(), as this JAX cannot read a tensor on cuda:0."
    )


def test_what_jax_says_of_its_own_arrays_stays():
    array = jnp.zeros((1, 3, 4))
    array.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        jaxctc.ctc_loss(cast(Any, [array[0]]), None, LABELS, None)


@pytest.mark.parametrize("form", ["float32", "bfloat16", "bfloat16 with a stride", "inference"])
def test_tensors_are_arrays(form):
    torch = pytest.importorskip("torch", reason="needs the extra `compare`")
    with torch.inference_mode(form == "inference"):
        logits = torch.randn(1, 6, 4).to(torch.bfloat16 if "b" in form else torch.float32)
    given = logits[:, ::2] if "stride" in form else logits
    loss = jaxctc.ctc_loss(given, None, torch.tensor(LABELS), torch.zeros(1, 2))
    expected = jaxctc.ctc_loss(given.float().numpy(), None, LABELS, None)
    np.testing.assert_array_equal(loss, expected)
    best = jaxctc.greedy_decode(given, torch.zeros(given.shape[:2], dtype=torch.bool))
    assert best.labels.shape == given.shape[:2]


def test_a_copy_that_the_tensor_does_not_change():
    torch = pytest.importorskip("torch", reason="needs the extra `compare`")
    tensor = torch.zeros(6, dtype=torch.bfloat16)
    array = foreign.from_tensor(tensor)
    tensor += 1
    np.testing.assert_array_equal(array, 0)


def test_a_gradient_is_refused_with_the_way_to_have_it():
    torch = pytest.importorskip("torch", reason="needs the extra `compare`")
    with pytest.raises(ValueError, match=r"that requires grad\. Pass its \.detach\(\)\."):
        ctc_loss(torch.zeros(3, 1, 4, requires_grad=True), LABELS, [3], [2])
    with pytest.raises(ValueError, match=r"frames of example 0 .* Pass its \.detach\(\)\."):
        jaxctc.pad_to_bucket([torch.zeros(3, 4, requires_grad=True)], [[1, 2]], [(4, 2)])


def test_for_the_host():
    torch = pytest.importorskip("torch", reason="needs the extra `compare`")
    frames = torch.randn(3, 4).to(torch.bfloat16)
    batch = jaxctc.pad_to_bucket([frames], [torch.tensor([1, 2])], [(4, 2)])
    np.testing.assert_array_equal(batch.frames[0, :3].astype(np.float32), frames.float())
    assert jaxctc.Vocabulary(["-", "a", "b"]).decode(torch.tensor([1, 2])) == "ab"
