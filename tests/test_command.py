"""`python -m jaxctc`, as a user calls it: in this process, which is faster, and once in its own."""

import builtins
import io
import itertools
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from test_subtitles import read_ctm, read_srt, read_vtt, tiers_of

import jaxctc
from jaxctc import __main__ as command

TOKENS = ["<pad>", "|", *"abcdehlo"]
WORDS = ["hello", "bob", "cab"]
STARTS, ENDS, PATH = [], [], [0, 0]
for word in WORDS:
    if STARTS:
        PATH += [1, 0]
    STARTS.append(len(PATH))
    for sign in word:
        PATH += [TOKENS.index(sign)] * 2 + [0]
    ENDS.append(len(PATH) - 2)  # the last frame that is not a blank
LOGITS = 6.0 * np.eye(len(TOKENS), dtype=np.float32)[PATH]


@pytest.fixture
def talk(tmp_path, monkeypatch):
    """A folder with scores, a text of two lines and a vocabulary."""
    np.save(tmp_path / "talk.npy", LOGITS)
    (tmp_path / "talk.txt").write_text("hello bob\n\ncab\n")
    (tmp_path / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def align(*options, text="talk.txt", logits="talk.npy"):
    times = "--vocabulary", "tokens.txt", "--frame-seconds", "0.5"
    return command.main(["align", logits, text, *times, *options])


def decode(*options, logits="talk.npy"):
    return command.main(["decode", logits, "--vocabulary", "tokens.txt", *options])


def milliseconds(first, last=None):
    """Of words by number."""
    last = first if last is None else last
    return STARTS[first] * 500, (ENDS[last] + 1) * 500


def test_a_subtitle_is_one_command(talk, capsys):
    assert align("-o", "out.srt") == 0
    truth = [(*milliseconds(0, 1), "hello bob"), (*milliseconds(2), "cab")]
    assert list(read_srt(talk / "out.srt")) == truth
    assert align() == 0
    output = capsys.readouterr()
    assert output.out == (talk / "out.srt").read_text()
    assert output.err == ""


def test_every_format(talk):
    for name in ("a.vtt", "a.TextGrid", "a.ctm", "a.json"):
        assert align("-o", name, "--offset", "10") == 0
    assert [cue[0] for cue in read_vtt(talk / "a.vtt")] == [
        10_000 + milliseconds(word)[0] for word in (0, 2)
    ]
    grid, tiers = tiers_of(talk / "a.TextGrid")
    assert grid.maxTimestamp == 10 + len(PATH) / 2
    assert [entry[2] for entry in tiers["words"] if entry[2]] == WORDS
    assert [line[4] for line in read_ctm(talk / "a.ctm")] == WORDS
    spans = json.loads((talk / "a.json").read_text())["spans"]
    words = [part for span in spans for part in span["parts"]]
    assert [part["start"] for part in words] == [10 + start / 2 for start in STARTS]
    best = jaxctc.forced_align(
        LOGITS, None, jaxctc.Vocabulary(TOKENS, separator="|").encode(" ".join(WORDS)).labels, None
    )
    assert words[0]["confidence"] == pytest.approx(float(best.confidences[:5].min()), abs=1e-6)


def test_cues(talk):
    assert align("-o", "words.srt", "--cues", "words") == 0
    assert list(read_srt(talk / "words.srt")) == [
        (*milliseconds(place), word) for place, word in enumerate(WORDS)
    ]
    for seconds, texts in (("0.1", ["hello bob cab"]), ("0.5", WORDS)):  # seven are the most
        assert align("-o", "short.srt", "--cues", "short", "--frame-seconds", seconds) == 0
        assert [cue[2] for cue in read_srt(talk / "short.srt")] == texts


@pytest.mark.slow
def test_unknown_characters(talk, capsys):
    (talk / "talk.txt").write_text("Hello £5 cab")
    assert align() == 2
    refusal = capsys.readouterr().err
    assert refusal == (
        "python -m jaxctc: align: talk.txt must have a token for every character; got 'H' (1), "
        "'£' (1), '5' (1). See --case and --separator, or --unknown.\n"
    )
    options = "--case", "lower", "--cues", "words", "--wildcard-penalty", "3"
    assert align(*options, "--unknown", "wildcard", "-o", "a.srt") == 0
    assert "taken for wildcards: '£' (1), '5' (1)" in capsys.readouterr().err
    truth = [(*milliseconds(0), "Hello"), (*milliseconds(2), "cab")]
    hello, pounds, cab = read_srt(talk / "a.srt")
    assert [hello, cab] == truth
    assert hello[1] <= pounds[0] <= pounds[1] <= cab[0]
    assert milliseconds(1)[0] <= pounds[0] < pounds[1] <= milliseconds(1)[1] + 500
    assert align(*options, "--unknown", "drop", "-o", "a.srt") == 0
    assert [cue[2] for cue in read_srt(talk / "a.srt")] == ["Hello", "cab"]


def test_open_ends(talk):
    """The text is in the middle of what is said."""
    (talk / "talk.txt").write_text("bob")
    assert align("-o", "a.srt", "--open-ends") == 0
    assert list(read_srt(talk / "a.srt")) == [(*milliseconds(1), "bob")]


def test_log_probabilities_and_priors(talk, rng):
    """Scores that say little, so that both make a difference."""
    logits = 1.5 * LOGITS / 6 + rng.normal(size=LOGITS.shape).astype(np.float32)
    logits[:, 0] += 1.5
    priors = np.log(np.exp(logits).mean(axis=0) / np.exp(logits).mean(axis=0).sum())
    np.save(talk / "noise.npy", logits[None])
    np.save(talk / "priors.npy", priors)
    labels = jaxctc.Vocabulary(TOKENS, separator="|").encode(" ".join(WORDS)).labels
    found = []
    for options, arguments in (
        ([], {}),
        (["--log-probs"], {"logits_normalized": True}),
        (
            ["--priors", "priors.npy", "--prior-scale", "0.7"],
            {"label_priors": priors, "prior_scale": 0.7},
        ),
    ):
        assert align("-o", "a.json", "--cues", "words", *options, logits="noise.npy") == 0
        best = jaxctc.forced_align(logits, None, labels, None, **arguments)
        words = jaxctc.word_spans(best, labels, None, separator=1)
        truth = jaxctc.timed_spans(words, WORDS, frame_seconds=0.5)
        written = json.loads((talk / "a.json").read_text())["spans"]
        assert [(s["start"], s["end"]) for s in written] == [(s.start, s.end) for s in truth]
        found.append([(s["start"], s["end"], s["confidence"]) for s in written])
    assert found[0] != found[2]


@pytest.mark.parametrize("option", [(), ("--separator", "")])
def test_words_that_nothing_stands_between(talk, capsys, option):
    """As with the tokens of torchaudio's MMS_FA."""
    (talk / "tokens.txt").write_text("\n".join(token for token in TOKENS if token != "|"))
    np.save(talk / "talk.npy", np.delete(LOGITS, TOKENS.index("|"), axis=1))
    assert align("--cues", "words", "-o", "out.srt", *option) == 0
    truth = [(*milliseconds(place), word) for place, word in enumerate(WORDS)]
    assert list(read_srt(talk / "out.srt")) == truth
    assert capsys.readouterr().err == ""


def test_without_words_characters_have_times(talk):
    """As in scripts that leave no space; a line is a cue all the same."""
    tokens = [*TOKENS[:1], "、", *TOKENS[2:]]
    (talk / "tokens.txt").write_text("\n".join(tokens))
    (talk / "talk.txt").write_text("hello、bob、\ncab")
    assert align("-o", "a.json") == 0
    first, second = json.loads((talk / "a.json").read_text())["spans"]
    assert (first["text"], second["text"]) == ("hello、bob、", "cab")
    assert "".join(part["text"] for part in first["parts"]) == "hello、bob、"
    assert [part["start"] for part in first["parts"]][:2] == [STARTS[0] / 2, STARTS[0] / 2 + 1.5]
    assert second["start"] == STARTS[2] / 2
    assert decode("-o", "b.srt", "--frame-seconds", "0.1") == 0
    assert [cue[2] for cue in read_srt(talk / "b.srt")] == ["hello、bob、cab"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "a.txt"], "--output: path must end with .srt, .vtt, .textgrid, .ctm, .json; got"),
        (["-o", "none/a.srt"], "--output: none/a.srt must be in a folder that is there; got none"),
        (["--blank-id", "10"], "Vocabulary: blank_id must be a class id in [-10, 10); got 10"),
        (["--separator", "+"], "separator must be a token or begin some; got '+', which none is"),
        (["--priors", "talk.npy"], "align: talk.npy must have shape (10,); got (39, 10)"),
    ],
)
def test_bad_options(talk, capsys, options, message):
    assert align(*options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(os.listdir(talk)) == ["talk.npy", "talk.txt", "tokens.txt"]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def bad_inputs():
    yield "talk.npy", b"text", "align: talk.npy must be an array in NumPy's .npy format; got"
    yield "talk.npy", b"", "align: talk.npy must be an array in NumPy's .npy format; got"
    yield "talk.npy", npy(LOGITS)[:-1], "format; got a part of one, or objects. "
    yield "talk.npy", npy(LOGITS) + npy(LOGITS), "must hold one array; got 1688 bytes more, after"
    huge = npy(LOGITS).replace(b"(39, 10), }" + b" " * 12, b"(1000000000000, 10), }" + b" ")
    yield "talk.npy", huge, "format; got a part of one, or objects. "
    yield "talk.npy", None, "No such file or directory: 'talk.npy'"
    yield "talk.npy", LOGITS[:, :9], "must have shape [frames, 10], as there are 10 tokens; got"
    yield "talk.npy", b"PK\3\4", "of a tensor, take its .cpu().numpy()."
    yield "talk.npy", np.stack([LOGITS, LOGITS]), "got (2, 39, 10). It may hold one recording."
    yield "talk.npy", LOGITS.T, "got (10, 39). It is transposed."
    yield "talk.npy", LOGITS.astype(np.complex64), "must hold real numbers; got complex64"
    yield "talk.npy", LOGITS[:5], "talk.txt must be a text that fits into the frames; got one"
    yield "talk.npy", np.where(LOGITS > 5, np.nan, LOGITS), "logits must be finite or -inf in"
    yield "talk.npy", np.where(np.arange(10) == 2, -np.inf, LOGITS), "got a score of -inf nats"
    yield "talk.txt", b"\xff\xfe", "talk.txt must be text in UTF-8; got"
    yield "talk.txt", None, "No such file or directory: 'talk.txt'"
    yield "tokens.txt", b"a\na\n", "Vocabulary: tokens must differ; got 'a' 2 times"
    yield "tokens.txt", None, "No such file or directory: 'tokens.txt'"


@pytest.mark.parametrize(("name", "content", "message"), list(bad_inputs()))
def test_bad_inputs(talk, capsys, name, content, message):
    """One line each, and the old output stays."""
    path = talk / name
    (talk / "out.srt").write_text("old")
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    assert align("-o", "out.srt") == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m jaxctc: ")
    assert message in error
    assert error.count("\n") == 1
    assert (talk / "out.srt").read_text() == "old"


def test_a_file_is_never_written_in_part(talk, capsys, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert align("-o", "out.srt") == 2
    assert capsys.readouterr().err == "python -m jaxctc: disk full\n"
    assert sorted(os.listdir(talk)) == ["talk.npy", "talk.txt", "tokens.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["align", "a", "b"], "the following arguments are required: --vocabulary, --frame-"),
        (["align", "a", "b", "--frame-seconds", "0"], "must be a positive number; got '0'"),
        (["align", "a", "b", "--offset", "nan"], "must be a finite number; got 'nan'"),
        (["decode", "a", "--beam-width", "none"], "must be an integer from 1 on; got 'none'"),
        (["decode"], "the following arguments are required: LOGITS, --vocabulary"),
        ([], "the following arguments are required: align|decode"),
    ],
)
def test_bad_usage(capsys, arguments, message):
    with pytest.raises(SystemExit, match=r"^2$"):
        command.main(arguments)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_long_inputs_say_what_is_going_on(talk, capsys, monkeypatch):
    """And that it still is."""
    monkeypatch.setattr(command, "LONG", 30)
    assert align() == 0
    error = capsys.readouterr().err
    assert re.fullmatch(r"aligning 13 labels to 39 frames … \d\.\d s\n", error)
    monkeypatch.setattr(command, "PATIENCE", 0.01)
    with command._announced("sleeping", is_long=True):
        time.sleep(0.3)
    assert re.fullmatch(r"sleeping … (0 s … )+0\.\d s\n", capsys.readouterr().err)


@pytest.fixture
def doubtful(talk):
    """Scores by which "hello bod" is a little more likely than "hello bob"."""
    logits = LOGITS.copy()
    logits[ENDS[1]] = logits[0]  # a blank, so that the last letter has one frame
    logits[ENDS[1] - 1, TOKENS.index("d")] = 6.5
    np.save(talk / "talk.npy", logits)
    return talk


def test_decode_gives_the_best_with_scores(doubtful, capsys):
    """Those of `prefix_beam_search`, also where it goes on in chunks."""
    assert decode("--best", "2") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for _, text in rows] == ["hello bod cab", "hello bob cab"]
    best = jaxctc.prefix_beam_search(np.load("talk.npy"), None, num_hypotheses=2)
    np.testing.assert_allclose([float(score) for score, _ in rows], best.scores, atol=1e-3)


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_decode_reports_progress(doubtful, capsys, monkeypatch, has_tqdm):
    monkeypatch.setattr(command, "CHUNK", 15)
    known = builtins.__import__

    def without_tqdm(name, *arguments):
        if name == "tqdm" and not has_tqdm:
            raise ImportError(name)
        return known(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_tqdm)
    assert decode("-o", "out.txt") == 0
    output = capsys.readouterr()
    assert ("100%|" if has_tqdm else "66 % of the frames\n") in output.err
    assert output.out == ""
    assert (doubtful / "out.txt").read_text().split("\t")[1] == "hello bod cab\n"


@pytest.mark.slow
def test_decode_with_hot_words_and_n_grams(doubtful, capsys):
    """Either is enough to hear "bob"."""
    (doubtful / "words.arpa").write_text(
        "\\data\\\nngram 1=4\n\\1-grams:\n-1 hello\n-1 bob\n-1 cab\n-4 <unk>\n\\end\\\n"
    )
    (doubtful / "hot.txt").write_text("bob\nhello\t0.5\n")
    for options in (["--arpa", "words.arpa"], ["--hot-words", "hot.txt"]):
        assert decode(*options) == 0
        assert capsys.readouterr().out.split("\t")[1] == "hello bob cab\n"
    assert decode("--arpa", "words.arpa", "--max-bytes", "1000") == 2
    assert "max_bytes must be at least 2000 to read the 4 n-grams" in capsys.readouterr().err
    assert decode("--arpa", "words.arpa", "--lm-weight", "0") == 0
    assert capsys.readouterr().out.split("\t")[1] == "hello bod cab\n"


@pytest.mark.slow
def test_decode_with_a_lexicon(doubtful, capsys):
    """Only its words are heard, in either case of letters; or others, if they are worth it."""
    (doubtful / "words.txt").write_text("CAB\nBOB\nHELLO\nX-ray\n")
    (doubtful / "spelt.txt").write_text("hello h e l l o |\nbod b o b |\ncab c a b |\n")
    words = ["--lexicon", "words.txt", "--case", "lower", "--unknown", "drop"]
    for options in (words, ["--lexicon", "spelt.txt"]):
        assert decode(*options) == 0
        assert capsys.readouterr().out.split("\t")[1] == "hello bob cab\n"
    assert decode(*words, "--unknown-score", "-0.1") == 0
    assert capsys.readouterr().out.split("\t")[1] == "hello bod cab\n"


def test_decode_writes_times(doubtful):
    times = "--frame-seconds", "0.5"
    assert decode("-o", "a.srt", *times) == 0
    assert [cue[2] for cue in read_srt(doubtful / "a.srt")] == ["hello", "bod", "cab"]
    assert decode("-o", "a.json", "--best", "2", *times) == 0
    found = json.loads((doubtful / "a.json").read_text())["hypotheses"]
    assert [hypothesis["text"] for hypothesis in found] == ["hello bod cab", "hello bob cab"]
    for hypothesis in found:
        words = list(itertools.chain(*(span["parts"] for span in hypothesis["spans"])))
        assert [word["start"] for word in words] == [start / 2 for start in STARTS]
    assert decode("-o", "b.json") == 0
    (best,) = json.loads((doubtful / "b.json").read_text())["hypotheses"]
    assert best.keys() == {"score", "text"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "a.srt"], "decode: --frame-seconds must be given for .srt; got None"),
        (["--best", "20"], "decode: --best must be at most 16; got 20. See --beam-width."),
        (["--arpa", "tokens.txt"], "read_arpa: line 11 of tokens.txt must be \\data\\"),
        (["--hot-words", "hot.txt"], "decode: hot.txt must have numbers after tabs; got 'bob\\tx'"),
        (["--lexicon", "tokens.txt"], "read_lexicon: tokens.txt must have tokens that spell each"),
        (["--lexicon", "empty.txt"], "read_lexicon: empty.txt must have words; got none"),
        (["--lexicon", "none.txt"], "No such file or directory: 'none.txt'"),
        (
            ["--lexicon", "hot.txt", "--unknown-score", "1"],
            "read_lexicon: line 1 of hot.txt must have tokens after the word; got 'x'.",
        ),
        (
            ["--lexicon", "words.txt", "--unknown-score", "1"],
            "read_lexicon: unknown_score must be a number below 0; got 1.0",
        ),
        (
            ["--lexicon", "long.txt", "--beam-width", "1"],
            "decode: talk.npy must give some text a probability; got none in the beam. See --beam-",
        ),
        (["--hot-words", "talk.md"], "talk.md must have a token for every character; got 'X' (1)"),
    ],
)
def test_decode_refuses(talk, capsys, options, message):
    (talk / "hot.txt").write_text("bob\tx\n")
    (talk / "talk.md").write_text("X\n")
    (talk / "words.txt").write_text("bob\n")
    (talk / "empty.txt").write_text("\n")
    (talk / "long.txt").write_text("hellohello" * 10)
    assert decode(*options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_as_a_process(talk):
    arguments = "talk.npy talk.txt --vocabulary tokens.txt --frame-seconds 0.5 -o out.vtt"
    called = [sys.executable, "-m", "jaxctc", "align", *arguments.split()]
    done = subprocess.run(called, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert [cue[2] for cue in read_vtt(talk / "out.vtt")] == ["hello bob", "cab"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxctc", "decode", "none.npy", "--vocabulary", "tokens.txt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
