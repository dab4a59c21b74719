"""The examples as a user runs them, in a short mode, and their data."""

import ast
import contextlib
import functools
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from scripts import EXAMPLES, QUICKLY_COMPILED, run

import jaxctc
from jaxctc import __main__ as command

pytestmark = pytest.mark.slow

PATIENCE = 300
"""Seconds for a process that needs twenty."""


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
def test_no_line_is_shown_twice():
    """The worst may be among the first: then it is the worst of the others."""
    shown_lines = importlib.import_module("train_digits").shown_lines
    assert shown_lines(np.array([0, 0, 9, 1, 0, 3, 2])) == [0, 1, 2, 5]
    assert shown_lines(np.array([0, 0, 0, 0, 7, 3, 2])) == [0, 1, 2, 4]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_ends_with_what_to_try_next(path):
    """Whatever runs on its own, in its `--help`."""
    text = path.read_text()
    if '__name__ == "__main__"' in text:
        assert re.search(
            "^What to try next: .", ast.get_docstring(ast.parse(text)) or "", re.MULTILINE
        )


@pytest.fixture
def train_linen(digit_lines):
    del digit_lines  # it has put the examples on the path
    return pytest.importorskip("train_linen", reason="needs the extra `examples`")


@pytest.mark.usefixtures("train_linen")
def test_train_linen_runs(refusal):
    done = run("train_linen.py", "--epochs", "2", "--lines", "6", "--batch-size", "4")
    assert done.returncode == 0, done.stderr
    row = r"^epoch (\d): \d+\.\d{3} nats per line, validation CER \d\.\d{4}, \d+% of the frames"
    assert re.findall(row, done.stdout, re.MULTILINE) == ["1", "2"]
    assert re.fullmatch(r"test CER: \d\.\d{4}", done.stdout.splitlines()[-1])
    assert refusal("train_linen", "--epochs", "0") == (
        "train_linen.py: argument --epochs: must be a positive integer; got '0'\n"
    )


def test_a_line_is_read_alike_in_any_bucket(train_linen, digit_lines):
    """In training, too: neither scores nor the averages of the batch norms see padding."""
    reader = train_linen.Reader(dropout=0.0)
    frames = np.random.default_rng(0).standard_normal((2, 48, digit_lines.HEIGHT), np.float32)
    frames = [frames[0], frames[1, :30]]
    found = []
    for bucket in train_linen.BUCKETS[:2]:
        batch = jaxctc.pad_to_bucket(frames, [[1], [2]], [bucket], batch_size=3)
        columns = batch.frames, batch.frame_paddings
        fresh = reader.init(jax.random.key(0), *columns, train=False)
        variables = jax.tree.map(lambda value: value + 0.1, fresh)  # no bias is 0
        (logits, no_frame), updates = reader.apply(
            variables, *columns, train=True, mutable=["batch_stats"]
        )
        assert jaxctc.paddings_to_lengths(no_frame).tolist() == [24, 15, 0]
        found.append((logits[~no_frame], updates))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *found)


def spans_by_command(folder):
    """The line that the example has saved, aligned anew: digits, with a column for a second."""
    inputs = [str(folder / name) for name in ("line.npy", "line.txt")]
    files = {"vocabulary": "tokens.txt", "priors": "priors.npy", "output": "line.json"}
    options = [f"--{option}={folder / name}" for option, name in files.items()]
    assert command.main(["align", *inputs, *options, "--frame-seconds=1", "--cues=words"]) == 0
    found = json.loads((folder / "line.json").read_text())["spans"]
    return [(span["text"], span["start"], span["end"]) for span in found]


@pytest.mark.usefixtures("digit_lines")
def test_align_runs_and_draws(tmp_path, refusal):
    done = run("align.py", "--steps", "3", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^boundaries within 1 column: 0\.\d{4}, within 2: 0", done.stdout, re.MULTILINE
    )
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")
    rows = re.findall(r"^ +(\d) +\S+ +(\d+)–(\d+) ", done.stdout, re.MULTILINE)
    assert len(rows) > 2
    assert spans_by_command(tmp_path) == [(digit, int(a), int(b) + 1) for digit, a, b in rows]
    assert refusal("align", "--prior-scale", "2") == (
        "align.py: argument --prior-scale: must be a number from 0 to 1; got '2'\n"
    )


@pytest.mark.usefixtures("digit_lines")
def test_joint_decoding_runs(refusal):
    done = run("joint_decoding.py", "--steps", "3", "--lines", "8")
    assert done.returncode == 0, done.stderr
    tried = re.search(r"^validation CER by the weight of CTC: (.*)$", done.stdout, re.MULTILINE)
    assert tried is not None
    assert re.findall(r"(0\.\d): \d\.\d{4}", tried[1]) == ["0.1", "0.3", "0.5", "0.7"]
    rows = re.findall(r"^  (\w+), .* \d\.\d{4}$", done.stdout, re.MULTILINE)
    assert rows == ["CTC", "attention", "both"]
    assert refusal("joint_decoding", "--lines", "0") == (
        "joint_decoding.py: argument --lines: must be a positive integer; got '0'\n"
    )


@pytest.mark.usefixtures("digit_lines")
def test_decode_runs_and_draws(tmp_path, refusal):
    done = run("decode.py", "--steps", "3", "--lines", "8", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^([a-z+ -]+?) +\d\.\d{4} +\d +\d +\d$", done.stdout, re.MULTILINE)
    assert rows == ["greedy", "beam", "beam + n-gram", "beam + n-gram + hot words"]
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")
    assert refusal("decode", "--lines", "0") == (
        "decode.py: argument --lines: must be a positive integer; got '0'\n"
    )


@pytest.mark.usefixtures("digit_lines")
def test_evaluate_vmap_judges_every_line():
    """Two batches of five, so that the ten worst lines are all there are."""
    done = run("evaluate_vmap.py", "--steps", "3", "--batch-size", "5", "--lines", "10")
    assert done.returncode == 0, done.stderr
    assert re.match(r"10 lines: \d+\.\d{3} nats per line, \d+\.\d% without", done.stdout)
    summary = r"^CER: \d\.\d{4}, (\d+) in (\d+)$"
    ((errors, digits),) = re.findall(summary, done.stdout, re.MULTILINE)
    row = r"^ +(\d+) +\d+\.\d\d  (\d\.\d{3})  \d from column \d+ on, confidence [01]\.\d{3}$"
    rows = re.findall(row, done.stdout, re.MULTILINE)
    title = r"^example (\d+): (\d+) errors? in (\d+) tokens "
    titles = re.findall(title, done.stdout, re.MULTILINE)
    assert len(rows) == len(titles) == 10
    assert sorted(int(place) for place, _ in rows) == [*range(10)]
    assert [(p, float(cer)) for p, cer in rows] == [
        (p, round(int(e) / int(d), 3)) for p, e, d in titles
    ]
    assert sum(int(e) for _, e, _ in titles) == int(errors)
    assert sum(int(d) for _, _, d in titles) == int(digits)


@pytest.mark.usefixtures("digit_lines")
def test_evaluate_vmap_says_the_same_on_any_number_of_devices():
    """Ten lines over one device and over 8, the last of which get padding to judge."""
    said = set()
    for devices in "1", "8":
        options = "--steps", "3", "--batch-size", "2", "--lines", "10", "--beam-width", "3"
        done = run("evaluate_vmap.py", *options, JAX_NUM_CPU_DEVICES=devices)
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    assert len(said) == 1


@pytest.fixture
def train_sharded(digit_lines):
    del digit_lines  # it has put the examples on the path
    return pytest.importorskip("train_sharded", reason="needs the extra `examples`")


@contextlib.contextmanager
def training(folder, count, *options, **environment):
    """So many processes of one short training; what is left of them at the end is killed."""
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    if count > 1:
        environment["JAX_COORDINATOR_ADDRESS"] = address
    environment["XLA_FLAGS"] = QUICKLY_COMPILED
    command = [sys.executable, EXAMPLES / "train_sharded.py", "--checkpoints", folder]
    command += ["--steps", "12", "--save-every", "2", "--batch-size", "2", *options]
    with contextlib.ExitStack() as stack:
        processes = []
        for process in range(count):
            place = ["--processes", str(count), "--process", str(process)] if count > 1 else []
            log = stack.enter_context(log_of(folder, process).open("w"))
            started = subprocess.Popen(
                command + place, stdout=log, stderr=log, env=os.environ | environment
            )
            stack.callback(started.wait)
            stack.callback(started.kill)
            processes.append(started)
        yield processes


def log_of(folder, process):
    return folder.with_name(f"{folder.name}-{process}.log")


def last_step(folder):
    """Of the checkpoints that are complete: the others have longer names."""
    return max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0)


def checkpoint(folder, step):
    """Every array of a checkpoint, by its name."""
    checkpointer = pytest.importorskip("orbax.checkpoint")
    path = folder / str(step) / "default"
    with checkpointer.PyTreeCheckpointer() as reader:
        names = reader.metadata(path).item_metadata.tree
        as_numpy = checkpointer.RestoreArgs(restore_type=np.ndarray)
        tree = reader.restore(path, restore_args=jax.tree.map(lambda _: as_numpy, names))
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(name): leaf for name, leaf in leaves}


@pytest.mark.usefixtures("train_sharded")
def test_a_killed_training_ends_as_if_it_had_not_been(tmp_path):
    """One of two processes is killed, then both start again, against two devices of one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with training(whole, 1, JAX_NUM_CPU_DEVICES="2") as (alone,):
        assert alone.wait(PATIENCE) == 0, log_of(whole, 0).read_text()
    with training(killed, 2) as (_, second):
        give_up = time.monotonic() + PATIENCE
        while second.poll() is None and last_step(killed) == 0 and time.monotonic() < give_up:
            time.sleep(0.02)
        second.kill()
        assert second.wait() == -signal.SIGKILL, log_of(killed, 1).read_text()
    reached = last_step(killed)
    assert 0 < reached < 12
    with training(killed, 2) as both:
        assert [process.wait(PATIENCE) for process in both] == [0, 0], log_of(killed, 0).read_text()
    log = log_of(killed, 0).read_text()
    assert f"| {reached}/12 " in log, "the bar goes on where the last checkpoint was"
    assert re.search(r"^test CER: \d\.\d{4}$", log, re.MULTILINE)
    assert "CER" not in log_of(killed, 1).read_text(), "only the first process speaks"
    expected, found = checkpoint(whole, 12), checkpoint(killed, 12)
    assert expected["['1']['step']['value']"] == 12
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.usefixtures("train_sharded")
def test_a_training_goes_on_with_kernels_on_another_mesh(tmp_path):
    """One more step, by the emulated kernel of a TPU, with the classes on two devices."""
    whole, other = tmp_path / "whole", tmp_path / "other"
    steps = "--steps", "2", "--save-every", "1"
    kernel = "--implementation", "pallas", "--mesh", "data=1,model=2"
    with training(whole, 1, *steps, JAX_NUM_CPU_DEVICES="2") as (alone,):
        assert alone.wait(PATIENCE) == 0, log_of(whole, 0).read_text()
    shutil.copytree(whole, other)
    shutil.rmtree(other / "2")
    environment = {"JAX_NUM_CPU_DEVICES": "2", "JAXCTC_PALLAS_INTERPRET": "tpu"}
    with training(other, 1, *steps, *kernel, **environment) as (alone,):
        assert alone.wait(PATIENCE) == 0, log_of(other, 0).read_text()
    assert "| 1/2 " in log_of(other, 0).read_text(), "the bar goes on where the checkpoint was"
    before, expected, found = checkpoint(whole, 1), checkpoint(whole, 2), checkpoint(other, 2)
    assert set(found) == set(expected)
    assert any((before[name] != array).any() for name, array in found.items())
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-6, err_msg=name)


OF_A_RUN = "{{'steps': {}, 'seed': 0, 'batch_size': 32, 'size': 'digits', 'learning_rate': 0.005}}"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            [],
            f"--checkpoints: must be of this run, {OF_A_RUN.format(900)}; got {{'steps': 9}}",
        ),
        (
            ["--mesh", "data=3,model=1"],
            "--batch-size: must be a multiple of 3, data x microbatches; got '32'",
        ),
        (
            ["--mesh", "data=1,model=3"],
            "--mesh: must have a divisor of 4 along model, the heads of 'digits'; "
            "got 'data=1,model=3'",
        ),
        (
            ["--mesh", "data=2,model=1"],
            "--mesh: must have as many devices as there are, 1; got 'data=2,model=1'",
        ),
        (["--mesh", "data=2"], "--mesh: must be like 'data=8,model=2'; got 'data=2'"),
        (["--learning-rate", "0"], "--learning-rate: must be a positive number; got '0'"),
        (
            ["--compile-for", "v5e"],
            "--compile-for: must be like 'v5e:16x16' or 'h100x8', of v4, v5e, v5p, v6e, h100, "
            "a100; got 'v5e'",
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_training_that_does_not_fit(
    train_sharded, tmp_path, monkeypatch, refusal, arguments, line
):
    train_sharded.ocp.CheckpointManager(tmp_path, metadata={"steps": 9}).close()
    devices = 3 if "3" in "".join(arguments) else 1
    monkeypatch.setattr(train_sharded.jax, "device_count", lambda: devices)
    said = refusal("train_sharded", "--checkpoints", tmp_path, *arguments)
    assert said == f"train_sharded.py: argument {line}\n"


def test_buckets_change_no_line(train_sharded, digit_lines):
    """A batch is of one bucket, and lines are as long on average as without buckets."""
    scans = digit_lines.load_scans("train")
    widths = []
    for step in range(200):
        _, bucket = train_sharded.line_in(scans, np.random.default_rng([0, step]))
        line, found = train_sharded.line_in(scans, np.random.default_rng([0, step, 0]), bucket)
        assert found == bucket == line.frames.shape[1]
        widths.append(int((~line.frame_paddings).sum()))
    lines = digit_lines.make_lines(scans, 2000, np.random.default_rng(0))
    expected = (~lines.image_paddings).sum(axis=1)
    error = np.sqrt(expected.var() * (1 / 200 + 1 / 2000))
    assert abs(np.mean(widths) - expected.mean()) < 4 * error


@pytest.mark.usefixtures("train_sharded")
def test_one_of_several_processes_needs_an_address(tmp_path):
    done = run("train_sharded.py", "--checkpoints", tmp_path, "--processes", "2", "--process", "0")
    assert done.returncode == 2
    assert done.stderr == (
        "train_sharded.py: --coordinator, --processes, --process: "
        "coordinator_address should be defined.\n"
    )


@pytest.fixture
def decode(digit_lines):
    del digit_lines  # it has put the examples on the path
    return pytest.importorskip("decode", reason="needs the extra `examples`")


def test_n_grams_are_distributions(decode, tmp_path):
    texts = ["19690720", "19691224", "20000101", "11"]
    path = tmp_path / "few.arpa"
    decode.write_arpa(decode.estimate(texts, decode.DIGITS, decode.ORDER), path)
    model = jaxctc.read_arpa(path, decode.NAMES)
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
def test_a_bad_value_gets_one_line(refusal, arguments, line):
    assert refusal("train_digits", *arguments) == f"train_digits.py: {line}\n"


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
