"""Every Python block of the README runs as pasted and prints what it says it prints."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {n}" for n in range(len(BLOCKS))])
def test_block(block):
    """`print(...)  # expected` on a line of its own, or what stands in `# ` lines below it."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        exec(compile(block, "README.md", "exec"), {})
    expected = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert expected
    assert printed.getvalue().splitlines() == expected


def test_there_are_blocks():
    assert BLOCKS
