"""Every Python block of the README and the documents runs as pasted and prints what it says."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

import jaxctc

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PRINT = re.compile(r"^ *print\(.*\)(?:  # (.*)|((?:\n *# .*)+))", re.MULTILINE)
BLOCKS = {
    f"{page.name} {number}": block
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    )
}


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=name, marks=[] if "README" in name else pytest.mark.slow)
        for name, block in BLOCKS.items()
    ],
)
def test_block(block):
    """`print(...)  # expected` on a line of its own, or what stands in `# ` lines below it."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        exec(compile(block, "<block>", "exec"), {})
    expected = []
    for beside, below in PRINT.findall(block):
        expected += [beside] if beside else [line.strip()[2:] for line in below.splitlines()[1:]]
    assert expected
    assert [line.rstrip() for line in printed.getvalue().splitlines()] == expected


def test_the_reference_is_complete():
    """Every public name, and every adapter, has its entry, and only one."""
    pages = (ROOT / "docs" / "api").glob("*.md")
    entries = [
        entry for page in pages for entry in re.findall(r"^::: (.*)$", page.read_text(), re.M)
    ]
    adapters = [path.stem for path in (ROOT / "jaxctc" / "adapters").glob("[!_]*.py")]
    # Of what has the name of its module, the last part counts.
    assert sorted(entry.split(".")[-1] for entry in entries) == sorted([*jaxctc.__all__, *adapters])


def test_every_page_has_blocks():
    assert {name.split()[0] for name in BLOCKS} == {page.name for page in PAGES}


MORE_PAGES = [ROOT / folder / "README.md" for folder in ("benchmarks", "examples")]


@pytest.mark.parametrize("page", [*PAGES, *MORE_PAGES], ids=str)
def test_no_sentence_breaks_before_a_number(page):
    """At the head of a line, "20000. There" would begin a numbered list on the site."""
    numbers = re.findall(r"^ *(\d+)\. ", page.read_text(), re.MULTILINE)
    assert all(int(number) < 10 for number in numbers)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    """Those within the repository: every test that the table of features names is there."""
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
