"""Every Python block of the README and the documents runs as pasted and prints what it says."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
    f"{page.name} {number}": block
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    )
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_block(block):
    """`print(...)  # expected` on a line of its own, or what stands in `# ` lines below it."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        exec(compile(block, "<block>", "exec"), {})
    expected = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert expected
    assert printed.getvalue().splitlines() == expected


def test_every_page_has_blocks():
    assert {name.split()[0] for name in BLOCKS} == {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    """Those within the repository: every test that the table of features names is there."""
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
