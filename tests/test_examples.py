"""The examples as a user runs them, in a short mode, and their data."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxctc import read_arpa

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script, *arguments):
    command = [sys.executable, EXAMPLES / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def digit_lines(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return pytest.importorskip("digit_lines", reason="needs the extra `examples`")


@pytest.mark.usefixtures("digit_lines")
def test_train_digits_runs_and_draws(tmp_path):
    done = run("train_digits.py", "--steps", "3", "--batch-size", "4", "--output", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"test CER: \d\.\d{4}", done.stdout.splitlines()[-1])
    assert (tmp_path / "new" / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"3/3 .*CER=\d\.\d+, loss=\d+", done.stderr), "a progress bar with both"


@pytest.mark.usefixtures("digit_lines")
def test_align_runs_and_draws(tmp_path):
    done = run("align.py", "--steps", "3", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^boundaries within 1 column: 0\.\d{4}, within 2: 0", done.stdout, re.MULTILINE
    )
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")
    bad = run("align.py", "--prior-scale", "2")
    assert (bad.returncode, bad.stderr) == (
        2,
        "align.py: argument --prior-scale: must be a number from 0 to 1; got '2'\n",
    )


@pytest.mark.usefixtures("digit_lines")
def test_decode_runs_and_draws(tmp_path):
    done = run("decode.py", "--steps", "3", "--lines", "8", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^([a-z+ -]+?) +\d\.\d{4} +\d +\d +\d$", done.stdout, re.MULTILINE)
    assert rows == ["greedy", "beam", "beam + n-gram", "beam + n-gram + hot words"]
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")
    bad = run("decode.py", "--lines", "0")
    assert (bad.returncode, bad.stderr) == (
        2,
        "decode.py: argument --lines: must be a positive integer; got '0'\n",
    )


@pytest.fixture
def decode(digit_lines):
    del digit_lines  # it has put the examples on the path
    return pytest.importorskip("decode", reason="needs the extra `examples`")


def test_n_grams_are_distributions(decode, tmp_path):
    texts = ["19690720", "19691224", "20000101", "11"]
    path = tmp_path / "few.arpa"
    decode.write_arpa(decode.estimate(texts), path)
    model = read_arpa(path, decode.NAMES)
    for text in ["", *texts, "1969", "77", "02000"]:
        state = model.initial_state
        for sign in text:
            _, state = model.score_and_advance(state, decode.NAMES.index(sign))
        digits = [model.score_and_advance(state, digit)[0] for digit in range(1, 11)]
        total = np.exp([*digits, model.final_score(state)]).sum()
        np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_register_has_known_and_other_dates(decode):
    texts = decode.draw_texts(20, np.random.default_rng(0))
    others = [set(part) - set(decode.RECURRING) for part in texts]
    assert [len(part) for part in others] == [decode.SAMPLE, 10, 10]
    assert len(set.union(*others)) == decode.SAMPLE + 20, "no other date serves two purposes"
    assert [len(part) for part in texts] == [decode.SAMPLE, 20, 20]


@pytest.mark.usefixtures("digit_lines")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--steps", "0"], "argument --steps: must be a positive integer; got '0'"),
        (["--steps", "many"], "argument --steps: must be a positive integer; got 'many'"),
        (["--seed", "-1"], "argument --seed: must be an integer that is not negative; got '-1'"),
        (["--batch-size", "1.5"], "argument --batch-size: must be a positive integer; got '1.5'"),
        (
            ["--output", __file__],
            f"argument --output: must be a folder to write to; got {__file__!r}",
        ),
        (["--epochs", "3"], "unrecognized arguments: --epochs 3"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_bad_value_gets_one_line(arguments, line):
    done = run("train_digits.py", *arguments)
    assert done.returncode == 2
    assert done.stderr == f"train_digits.py: {line}\n"


def test_splits_are_disjoint_and_complete(digit_lines):
    splits = {name: digit_lines.load_scans(name) for name in ("train", "validation", "test")}
    assert sum(len(scans.digits) for scans in splits.values()) == 1797
    seen = [(image.shape, image.tobytes()) for scans in splits.values() for image in scans.images]
    assert len(set(seen)) == len(seen), "no scan twice, within a split or across two"


def test_lines_are_what_they_say(digit_lines):
    scans = digit_lines.load_scans("test")
    lines = digit_lines.make_lines(scans, 200, np.random.default_rng(0))
    assert lines.images.shape == (200, digit_lines.WIDTH, digit_lines.HEIGHT)
    counts = (~lines.label_paddings).sum(axis=1)
    assert counts.min() == 3
    assert counts.max() == digit_lines.MAX_DIGITS
    assert ((lines.labels > 0) == ~lines.label_paddings).all()
    # Behind the end of a line there is nothing but noise.
    behind = np.where(lines.image_paddings[..., None], np.abs(lines.images), 0)
    assert behind.max() < 0.5
    # Where a digit is said to stand there is ink; the columns are its own, in order.
    starts, ends = lines.starts, lines.ends
    in_use = ~lines.label_paddings
    assert ((starts >= 0) == in_use).all()
    assert ((ends >= 0) == in_use).all()
    assert (starts[in_use] < ends[in_use]).all()
    follows = in_use[:, 1:]
    assert (starts[:, 1:] > starts[:, :-1])[follows].all()
    assert (ends[in_use] < (~lines.image_paddings).sum(axis=1).repeat(counts)).all()
    rows = np.arange(200).repeat(counts)
    middles = ((starts + ends) // 2)[in_use]
    assert (lines.images[rows, middles].max(axis=-1) > 0.4).mean() > 0.95
    again = digit_lines.make_lines(scans, 200, np.random.default_rng(0))
    np.testing.assert_array_equal(lines.images, again.images)


def test_given_texts_are_written(digit_lines):
    texts = ["19690720", "7", "0000000000"]
    lines = digit_lines.write_lines(digit_lines.load_scans("test"), texts, np.random.default_rng(0))
    read = ["".join(str(label - 1) for label in row if label) for row in lines.labels]
    assert read == texts
    assert (lines.label_paddings == (lines.labels == 0)).all()
    assert lines.images.shape == (3, digit_lines.WIDTH, digit_lines.HEIGHT)


def test_crowded_lines_fit_the_paper(digit_lines):
    scans = digit_lines.Scans([np.ones((8, 8))], np.array([8]))
    lines = digit_lines.make_lines(scans, 100, np.random.default_rng(0))
    assert (~lines.image_paddings).sum(axis=1).max() == digit_lines.WIDTH
