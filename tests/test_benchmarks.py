"""The benchmarks of the loss in a tiny configuration: that they run and report, not how fast."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tqdm", reason="needs the extra `examples`")
pytest.importorskip("matplotlib", reason="needs the extra `examples`")


pytestmark = pytest.mark.slow


@pytest.fixture
def benchmark(monkeypatch):
    """A module of benchmarks/, which is not installed."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def rows(printed, header):
    """Of the table with this header, its first two lines left out."""
    lines = printed[printed.index(f"| {header} ") :].split("\n\n")[0].strip().splitlines()
    return [[entry.strip() for entry in line.strip("|").split("|")] for line in lines[2:]]


def test_first_call(benchmark, capsys):
    benchmark("first_call").main(["--calls", "ctc_loss", "lengths_to_paddings", "--repeats", "1"])
    found = rows(capsys.readouterr().out, "call")
    assert [row[0] for row in found] == ["ctc_loss", "lengths_to_paddings"]
    (_, first, xla, kept, later), _ = found
    assert float(later) / 1e3 < float(kept) < float(first), "programs are found again"
    assert 0 < float(xla) < float(first)


def test_loss(benchmark, tmp_path, capsys):
    figures, picture = tmp_path / "new" / "loss.json", tmp_path / "loss.png"
    command = ["--shapes", "tiny", "--peers", "jaxctc,optax", "--repeats", "2"]
    benchmark("loss").main([*command, "--json", str(figures), "--png", str(picture)])
    found = json.loads(figures.read_text())
    assert {"device", "processor", "cores", "versions"} <= set(found["machine"])
    assert {"jaxctc", "jax", "optax"} <= set(found["machine"]["versions"])

    cells = found["cells"]
    libraries = ["floor", "jaxctc", "optax"]
    wanted = [("tiny", task, library) for task in ("grad", "loss") for library in libraries]
    assert [(cell["shape"], cell["task"], cell["library"]) for cell in cells] == wanted
    for cell in cells:
        assert cell["sizes"] == [2, 16, 2, 5]
        assert len(cell["times"]) == 2
        lower, median, upper = cell["quartiles"]
        assert 0 < lower <= median <= upper
        assert cell["compile_seconds"] > 0
        assert cell["megabytes"] > 0
        assert cell["note"] == "", "the libraries agree"
    for own in (cells[:3], cells[3:]):
        floor, ours, theirs = (cell["quartiles"][1] for cell in own)
        assert [cell["ratio"] for cell in own] == [floor / ours, 1, theirs / ours]
        assert [cell["floor"] for cell in own] == [1, floor / ours, floor / theirs]

    printed = capsys.readouterr().out
    assert [row[0] for row in rows(printed, "shape (B, T, N, K)")] == ["tiny (2, 16, 2, 5)"]
    titles = {"grad": "loss + gradient", "loss": "loss alone"}
    entries = [row[:3] for row in rows(printed, "shape | task")]
    device = found["machine"]["device"]
    assert entries == [[shape, titles[task], f"{name} ({device})"] for shape, task, name in wanted]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_scaling(benchmark, tmp_path, capsys):
    figures, picture = tmp_path / "scaling.json", tmp_path / "scaling.png"
    command = ["--base", "tiny", "--axes", "T", "--octaves", "1", "--task", "loss"]
    command += ["--repeats", "2", "--json", str(figures), "--png", str(picture)]
    benchmark("scaling").main(command)
    found = json.loads(figures.read_text())
    assert found["base"] == [2, 16, 2, 5]
    (line,) = found["lines"]
    assert (line["axis"], line["task"], line["sizes"]) == ("T", "loss", [16, 32])
    (_, first, _), (_, second, _) = line["quartiles"]
    assert line["exponent"] == pytest.approx(np.log2(second / first))
    assert line["constant"] * 16 ** line["exponent"] == pytest.approx(first)
    ((axis, medians, exponent),) = rows(capsys.readouterr().out, "axis")
    assert axis == "T = 16, 32"
    assert medians == f"{first:.2f}, {second:.2f}"
    assert exponent == f"{line['exponent']:.2f}"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_shape_can_be_made(benchmark):
    shapes = benchmark("shapes")
    assert {name: shapes.SHAPES[name].sizes for name in shapes.GROUPS["design"]} == {
        "char": (64, 400, 60, 32),
        "bpe1k": (32, 1000, 200, 1024),
        "bpe5k": (8, 500, 100, 5000),
        "digits": (128, 64, 12, 12),
        "long": (1, 20000, 4000, 32),
    }
    for shape in shapes.SHAPES.values():
        batch = shapes.make_batch(shape._replace(classes=2))  # so that every label is a repeat
        assert batch.logits.shape == (shape.batch, shape.frames, 2)
        frames, labels = (
            (1 - paddings).sum(axis=1) for paddings in (batch.logit_paddings, batch.label_paddings)
        )
        assert (frames.max(), labels.max()) == (shape.frames, shape.labels)
        assert (2 * labels - 1 <= frames).all()
        assert ((batch.labels == 0) == (batch.label_paddings == 1)).all()
        is_ragged = shape.batch > 1 and shape.shortest < 1
        assert (frames.min() < shape.frames) == is_ragged
    with pytest.raises(ValueError, match="half the frames; got 9 and 16"):
        shapes.make_batch(shapes.SHAPES["tiny"]._replace(labels=9))


@pytest.mark.parametrize(
    ("module", "command", "line"),
    [
        ("loss", "--shapes chars", "argument --shapes: must be among design, models, char, "),
        ("loss", "--repeats 0", "argument --repeats: must be a positive integer; got '0'"),
        ("loss", "--json .", "argument --json: must be a file, not a folder; got '.'"),
        ("scaling", "--base tiny", "--octaves: must leave two frames to a label; got 4 from (2, "),
    ],
)
def test_a_bad_value_is_named(benchmark, capsys, module, command, line):
    with pytest.raises(SystemExit):
        benchmark(module).main(command.split())
    assert line in capsys.readouterr().err


def test_from_hidden(benchmark, capsys):
    benchmark("from_hidden").main(["--sizes", "2,16,2,40,6", "--repeats", "1"])
    printed = capsys.readouterr().out
    (ours, _, one, _), (theirs, _, other, _) = rows(printed, "loss + gradient")
    assert (ours, theirs) == ("ctc_loss_from_hidden", "ctc_loss of the logits")
    assert float(one) > 0
    assert float(other) == 1
    assert float(printed.split()[-1]) < 1e-5


def test_changes_and_prefixes(benchmark, capsys, monkeypatch):
    module = benchmark("changes_and_prefixes")
    sizes = {"FRAMES": 12, "CLASSES": 9, "BEAM": 3, "CANDIDATES": 4, "WINDOW": 5}
    for name, value in sizes.items():
        monkeypatch.setattr(module, name, value)
    for name, value in {"FRAMES": 10, "LABELS": 3, "CLASSES": 5}.items():
        monkeypatch.setattr(module, f"CHANGED_{name}", value)
    module.main(["--repeats", "1"])
    printed = capsys.readouterr().out
    steps, changes = printed.split("\nchanges, ")
    found = rows(steps, "what")
    assert [row[0] for row in found] == [
        "jaxctc, all 9 tokens",
        "jaxctc, 4 tokens",
        "all 9 tokens, window 5",
        "4 tokens, window 5",
        "as published, 4 tokens",
    ]
    exact, windowed, published = (float(found[place][4]) for place in (1, 3, 4))
    np.testing.assert_allclose(exact, published, rtol=1e-4)
    assert windowed <= exact, "what is outside of the window is missing"
    found = rows(changes, "what")
    assert [row[0] for row in found] == ["substitution_scores", "3 · 5 losses"]
    np.testing.assert_allclose(float(found[0][4]), float(found[1][4]), rtol=1e-4)


def test_arithmetic(benchmark, tmp_path, capsys):
    benchmark("arithmetic").main(["--frames", "300", "--labels", "45", "--output", str(tmp_path)])
    totals, zero, log_domain, wide = capsys.readouterr().out.splitlines()
    assert float(totals.split()[-2]) < 1e-6
    assert 0 < int(zero.split()[-2]) < 300
    assert float(wide.split()[-2]) < float(log_domain.split()[-2]) < 1e-3
    for name in ("meeting", "wide", "errors"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_lexicon(benchmark, tmp_path, capsys):
    rng = np.random.default_rng(0)
    words = {"".join(rng.choice(list("etaoins"), rng.integers(3, 9))) for _ in range(300)}
    (tmp_path / "words").write_text("\n".join(["1st", *sorted(words)]))
    command = ["--words", str(tmp_path / "words"), "--classes", "29", "40", "--repeats", "1"]
    benchmark("lexicon").main(command)
    for classes, row in zip((29, 40), rows(capsys.readouterr().out, "K"), strict=True):
        assert row[:2] == [str(classes), str(len(words))]
        states, kinds, megabytes, *times = (float(entry.split()[0]) for entry in row[2:8])
        assert len(words) < states < 9 * len(words)
        assert kinds < states
        assert megabytes < 0.1
        assert min(times) > 0
        without, beside = map(float, row[8].split(", "))
        assert beside < without, "a lexicon helps"


def test_cudnn_takes_what_torch_takes_without_padded_frames(benchmark):
    """On a CPU the loss is torch's; that cuDNN computes it on a GPU, only a GPU can show."""
    pytest.importorskip("torch", reason="needs the extra `compare`")
    shapes, peers = benchmark("shapes"), benchmark("peers")
    tiny = shapes.SHAPES["tiny"]
    even = shapes.make_batch(tiny._replace(shortest=1.0))
    assert not even.logit_paddings.any()
    losses = [peers.PEERS[name].prepare(even, "grad").call() for name in ("torch", peers.CUDNN)]
    for other, own in zip(*losses, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-6)
    with pytest.raises(ValueError, match="no frame must be padded"):
        peers.PEERS[peers.CUDNN].prepare(shapes.make_batch(tiny), "grad")


def test_on_device(benchmark, tmp_path, capsys, monkeypatch):
    on_device = benchmark("on_device")
    monkeypatch.setattr(on_device, "ACCURACY", [("×1", (100, 20))])
    command = ["--minutes", "3", "--shapes", "tiny", "--repeats", "1", "--output", str(tmp_path)]
    on_device.main([*command, "--suites", "tests/test_published_numbers.py"])
    figures, page = sorted(tmp_path.iterdir())
    found = json.loads(figures.read_text())
    assert found["tests"]["passed"] > 5
    assert found["tests"]["failed"] == []
    assert {"device", "platform version", "driver", "commit", "date", "versions"} <= set(
        found["device"]
    )
    (row,) = found["accuracy"]["rows"]
    for wrong, slope in row["errors"].values():
        assert wrong < 1e-3
        assert slope < 1e-3
    assert {cell["library"] for cell in found["losses"]["cells"]} >= {"jaxctc", "optax"}
    assert len(found["functions"]["rows"]) == 6
    assert all(found[step]["not done"] == [] for step in on_device.STEPS)
    printed = capsys.readouterr().out
    assert page.read_text() in printed
    assert f"Timed on 1 × {found['device']['device']}" in printed


def test_on_device_says_what_it_did_not_do(benchmark, tmp_path):
    on_device = benchmark("on_device")
    command = ["--minutes", "0", "--shapes", "tiny", "--output", str(tmp_path)]
    on_device.main([*command, "--suites", "tests/test_published_numbers.py"])
    _, page = sorted(tmp_path.iterdir())
    left = page.read_text().partition("## What there was no time for")[2]
    for what in ("tests/test_published_numbers.py", "×1 at (100, 20)", "- tiny", "- posteriors"):
        assert what in left
