"""What the site needs beside Markdown: formulas, links from names, pages from elsewhere.

Formulas become MathML while the site is built, so that a reader needs neither a script nor a font.
"""

import contextlib
import io
import re
from pathlib import Path

import griffe
import matplotlib
from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import jaxctc

matplotlib.use("Agg")  # draws to files, with or without a screen
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
PAGES = {
    "benchmarks.md": "benchmarks/README.md",
    "examples.md": "examples/README.md",
    "changelog.md": "CHANGELOG.md",
}

GALLERY = "gallery.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r"^\.\. math:: (.*(?:\n[ ]+.*)*)", re.MULTILINE)
_NAME = re.compile(rf"(?<![\[`])`(?:jaxctc\.)?({'|'.join(jaxctc.__all__)})`(?!`)")


class Docstrings(griffe.Extension):
    """Docstrings as Griffe and Markdown know them: plural sections, formulas in fences."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrites the docstring of whatever has one."""
        del kwargs
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _FORMULA.sub(r"```math\n\1\n```", text)


class Names(Preprocessor):
    """Public names in code style lead to their entry in the reference."""

    def run(self, lines: list[str]) -> list[str]:
        """Fenced code is out of the way already, and formulas with it."""
        return [_NAME.sub(self.link, line) for line in lines]

    @staticmethod
    def link(found: re.Match[str]) -> str:
        """To where the object is defined, as the name alone may be that of a module."""
        name = found[1]
        return f"[`{name}`][{getattr(jaxctc, name).__module__}.{name}]"


class Links(Extension):
    """Adds `Names` after the extension that takes fenced code away."""

    def extendMarkdown(self, md: Markdown) -> None:
        """As Python-Markdown asks for it."""
        md.preprocessors.register(Names(md), "jaxctc_names", 20)


def formula(source: str, *_: object, **__: object) -> str:
    """A fence of `math`, as pymdownx.superfences asks for it."""
    return f'<div class="math">{convert(source, display="block")}</div>'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Makes the extensions known."""
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    config.markdown_extensions.append(Links())  # pyright: ignore[reportArgumentType]  # or its name
    config.watch.extend(str(ROOT / source) for source in (*PAGES.values(), "jaxctc"))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what stands in other folders of the repository."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for number, block in enumerate(_BLOCK.findall((ROOT / "docs" / GALLERY).read_text())):
        files.append(File.generated(config, _picture(number), content=drawn_by(block)))
    return files


def drawn_by(block: str) -> bytes:
    """The picture that lines of the gallery draw, so that the two cannot disagree."""
    with contextlib.redirect_stdout(None):
        exec(compile(block, GALLERY, "exec"), {})
    picture = io.BytesIO()
    plt.savefig(picture, dpi=110)
    plt.close("all")
    return picture.getvalue()


def _picture(number: int) -> str:
    return f"gallery/{number}.png"


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links that lead there within the repository lead there on the site; pictures come in."""
    for name, source in PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({name}")
    if page.file.src_uri == GALLERY:
        blocks = _BLOCK.findall(markdown)
        for number, block in enumerate(blocks):
            picture = f"\n![Drawn by the lines above]({_picture(number)})\n"
            markdown = markdown.replace(f"{block}```\n", f"{block}```\n{picture}")
    return markdown
