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
SOURCES = [
    *PAGES,
    ROOT / "benchmarks/README.md",
    ROOT / "examples/README.md",
    ROOT / "CHANGELOG.md",
]
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
    if re.search(r"^import .*\btorch\b", block, re.MULTILINE):
        pytest.importorskip("torch", reason="needs the extra `compare`")
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


@pytest.mark.parametrize("page", SOURCES, ids=[page.name for page in SOURCES])
def test_no_sentence_becomes_a_list(page):
    """A line that begins with "20000. " within a paragraph is a numbered list on the site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^ *\d\d+\. .*", text, re.MULTILINE)


BENCHMARKS = (ROOT / "benchmarks/README.md").read_text()


def rows_of(page):
    """Cells of the tables of a page, by row."""
    lines = (line for line in page.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def row_that_begins(page, start, heading=""):
    """Cells of the first row that begins so, after a heading."""
    return next(row for row in rows_of(page[page.index(heading) :]) if row[0].startswith(start))


def first_number(cell):
    return float(re.findall(r"[\d.]+(?:e-\d+)?", cell)[0])


def quoted():
    """What README and home page say first, and the cells of the benchmarks that it is from."""
    readme, home = ((ROOT / page).read_text() for page in ("README.md", "docs/index.md"))
    char = "char (64, 400, 60, 32)"
    cpu = row_that_begins(BENCHMARKS, char, "## How fast?")[1:4]
    memory, compile_ = (
        [
            row_that_begins(BENCHMARKS, f"{name}, {unit}", "megabytes for temporary")[1]
            for name in ("jaxctc", "optax")
        ]
        for unit in ("MB", "s")
    )
    tpu = row_that_begins(BENCHMARKS, char, "TPU v5e: loss and gradient")[1:3]
    gpu = row_that_begins(BENCHMARKS, char, "H100: kernels started")[1:3]
    own_tpu = row_that_begins(BENCHMARKS, char, "\nTPU v5e\n")[1:2]
    own_gpu = row_that_begins(BENCHMARKS, char, "\nH100\n")[1:2]
    errors = [
        [cell.split(" · ")[1] for cell in row[3:6]]
        for start, logits in (("1000, 150", "peaked"), ("20000, 4000", "×1"))
        for row in rows_of(BENCHMARKS)
        if row[:2] == [start, logits]
    ]
    yield "README: errors", row_that_begins(readme, "largest error")[1:4], errors[0]
    second = [cell.split("; ")[1] for cell in row_that_begins(readme, "largest error")[1:4]]
    yield "README: errors, 20000 frames", second, errors[1]
    yield "README: CPU", row_that_begins(readme, "two CPU cores")[1:4], cpu
    yield "README: TPU", row_that_begins(readme, "TPU v5e, the same shape")[1:3], tpu
    yield "README: GPU", row_that_begins(readme, "NVIDIA H100, kernels")[1:3], gpu
    for name, start, own in (("TPU", "TPU v5e, the", own_tpu), ("GPU", "NVIDIA H100, k", own_gpu)):
        cell = row_that_begins(readme, start)[1].split("; ")[1]
        yield f"README: {name}, own kernel", [cell], own
    yield "home: errors", row_that_begins(home, "largest error")[1:4], errors[0]
    yield "home: errors, 20000 frames", row_that_begins(home, "… 20000")[1:4], errors[1]
    yield "home: CPU", row_that_begins(home, "two CPU cores")[1:4], cpu
    yield "home: memory", row_that_begins(home, "… temporary")[1:3], memory
    yield "home: compilation", row_that_begins(home, "… to compile")[1:3], compile_
    yield "home: TPU", row_that_begins(home, "TPU v5e, **est")[1:3], tpu
    yield "home: GPU", row_that_begins(home, "NVIDIA H100, **c")[1:3], gpu
    own = [row for row in rows_of(home) if row[0].startswith("… with our own kernel")]
    yield "home: own kernels", [row[1] for row in own], own_tpu + own_gpu


@pytest.mark.parametrize(("said", "found"), [pytest.param(*r, id=name) for name, *r in quoted()])
def test_quoted_figures_are_those_of_the_benchmarks(said, found):
    """The first number of each cell."""
    assert list(map(first_number, said)) == list(map(first_number, found))


def test_tables_of_the_readme_are_those_of_the_benchmarks():
    readme = (ROOT / "README.md").read_text()
    tables = readme[readme.index("## How right") : readme.index("## What ran where")]
    known, rows = rows_of(BENCHMARKS), rows_of(tables)
    assert len(rows) == 9
    assert not [row for row in rows if row not in known]


@pytest.mark.parametrize(
    ("heading", "place", "columns"),
    [("| v5e: loss", "\nTPU v5e\n", [1, 2, 3, 4]), ("| H100: kernels", "\nH100\n", [1, 3, 4])],
    ids=["TPU", "GPU"],
)
def test_tables_of_the_kernels_are_those_of_the_benchmarks(heading, place, columns):
    page = (ROOT / "docs/accelerators.md").read_text()
    for shape in ("char", "bpe1k", "long"):
        found = row_that_begins(BENCHMARKS, shape, place)
        assert row_that_begins(page, shape, heading)[1:] == [found[column] for column in columns]


def test_the_reference_is_complete():
    """Every public name, and every adapter, has its entry, and only one."""
    pages = (ROOT / "docs" / "api").glob("*.md")
    entries = [
        entry for page in pages for entry in re.findall(r"^::: (.*)$", page.read_text(), re.M)
    ]
    adapters = [path.stem for path in (ROOT / "jaxctc" / "adapters").glob("[!_]*")]
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
