"""The examples of speech and print, in a short mode, on real recordings where there are any."""

import functools
import itertools
import os
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pysrt
import pytest
import scipy.signal
from scripts import EXAMPLES, run

import jaxctc

pytestmark = pytest.mark.slow

needs_examples = functools.partial(pytest.importorskip, reason="needs the extra `examples`")


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    """On the path, and with what JAX promotes by default: Flax's layers promote ranks."""
    monkeypatch.syspath_prepend(EXAMPLES)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def sounds():
    """Where the packages with the recordings lie: `.ci/run` unpacks them below a folder."""
    root = Path(os.environ.get("JAXCTC_SOUNDS", "/"))
    if not (root / "usr/share/asterisk/sounds/en_US_f_Allison").is_dir():
        pytest.skip(
            "needs Debian's asterisk-core-sounds-en-wav and asterisk-core-sounds-en, installed, "
            "or unpacked below $JAXCTC_SOUNDS"
        )
    return root


@pytest.fixture(scope="session")
def trained(sounds, tmp_path_factory):
    """A network after a few steps on a few prompts, and what training it has printed."""
    pytest.importorskip("orbax.checkpoint", reason="needs the extra `examples`")
    folder = tmp_path_factory.mktemp("speech")
    options = ["--sounds", sounds, "--prompts", "128", "--steps", "3", "--output", folder]
    done = run("train_speech.py", *options, "--prior-scale", "0.4", "--consistency", "0.2")
    return folder, done


def test_train_speech_reads_and_draws(trained):
    folder, done = trained
    assert done.returncode == 0, done.stderr
    assert re.search(r"3/3 .*CER=\d\.\d+, loss=\d+", done.stderr), "a progress bar with both"
    rows = r'^(always ".*"|greedy|beam|beam \+ n-gram) +(\d\.\d{4})  (\d\.\d{4}) +\d+$'
    found = re.findall(rows, done.stdout, re.MULTILINE)
    assert [name for name, *_ in found][1:] == ["greedy", "beam", "beam + n-gram"]
    assert float(found[0][1]) > 0.9, "no sentence is an answer to everything"
    assert re.search(r"^REF  ", done.stdout, re.MULTILINE)
    assert (folder / "speech.png").read_bytes().startswith(b"\x89PNG")


def test_align_speech_measures_and_writes(trained, sounds, tmp_path):
    folder, training = trained
    assert training.returncode == 0, training.stderr
    options = ["--sounds", sounds, "--model", folder / "listener", "--minutes", "1"]
    done = run("align_speech.py", *options, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    texts = "whole", "lines missing", "lines wrong", "* in their place"
    for text in texts:
        for priors in ("no priors", "priors"):
            row = rf"^{re.escape(text)}, {priors} .*%$"
            assert len(re.findall(row, done.stdout, re.MULTILINE)) == 1, (text, priors)
    assert (tmp_path / "align_speech.png").read_bytes().startswith(b"\x89PNG")
    cues = pysrt.open(tmp_path / "speech.srt")
    (lines,) = re.findall(r" (\d+) lines, (\d+) words", done.stdout)
    assert len(cues) == int(lines[0])
    words = (tmp_path / "speech.ctm").read_text().splitlines()
    assert len(words) == int(lines[1])
    for ending in ("vtt", "TextGrid"):
        assert (tmp_path / f"speech.{ending}").stat().st_size > 1000


def test_a_network_that_is_not_there(sounds, refusal, tmp_path):
    needs_examples("align_speech")
    said = refusal("align_speech", "--sounds", sounds, "--model", tmp_path)
    assert said == (
        "align_speech.py: argument --model: must be the folder of a trained network; got "
        f"'{tmp_path}'. Run train_speech.py --output first; it writes listener there.\n"
    )


def test_missing_recordings_get_one_line(refusal, tmp_path):
    said = refusal("train_speech", "--sounds", tmp_path)
    assert said.count("\n") == 1
    assert said.endswith(
        f"got '{tmp_path}'. On Debian and Ubuntu: "
        "apt-get install asterisk-core-sounds-en-wav asterisk-core-sounds-en\n"
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Press 1, then #.", ()),
        ("Please press 1 -- or 2!", ("please press one or two",)),
        ("I am sorry.  Please try again...", ("i am sorry", "please try again")),
        ("O'clock", ("o'clock",)),
        ("dash [-]", ("dash",)),
        ("[this is a simple beep tone]", ()),
        ("Dial 500 to attempt an Inter-Asterisk Exchange", ()),
        ("The IAX channel", ()),
        ("A.M.", ()),
    ],
)
def test_what_a_text_says(written, said):
    assert needs_examples("telephone_prompts").spoken(written) == said


def test_nothing_is_said_on_two_sides(sounds):
    prompts = needs_examples("telephone_prompts")
    loaded = prompts.load_prompts(sounds)
    split = prompts.split_prompts(loaded)
    names = [prompt.name for part in split for prompt in part]
    assert Counter(names) == Counter(prompt.name for prompt in loaded)
    assert len(loaded) == 512
    assert [len(part) for part in split] == [410, 51, 51]
    said = [set() for _ in split]
    for part, phrases in zip(split, said, strict=True):
        for prompt in part:
            words = prompt.text.split()
            phrases |= set(prompt.sentences)
            phrases |= {tuple(words[place : place + 5]) for place in range(len(words) - 4)}
    for one, other in itertools.combinations(said, 2):
        assert not one & other


def test_joined_prompts_are_where_they_are_said_to_be(rng):
    prompts = needs_examples("telephone_prompts")
    silent, loud = np.zeros(400, np.float32), rng.uniform(0.1, 0.5, 800).astype(np.float32)
    prompt = prompts.Prompt("p", ("hello", "bob"), np.concatenate([silent, loud, silent]))
    np.testing.assert_array_equal(prompts.trim(prompt.samples), loud)
    found = prompts.join([prompt, prompt], np.array([0.5, 0.25, 1.0]))
    np.testing.assert_allclose(found.starts, [0.5, 0.85])
    np.testing.assert_allclose(found.ends, [0.6, 0.95])
    assert found.text == "hello bob hello bob"
    heard = np.flatnonzero(found.samples)
    assert (heard[0], heard[-1] + 1, len(found.samples)) == (4000, 7600, 15600)
    np.testing.assert_array_equal(found.samples[6800:7600], loud)


def test_spectra_are_those_of_scipy(rng):
    features = needs_examples("speech_features")
    samples = rng.standard_normal((2, 1234)).astype(np.float32)
    found = features.power_spectra(samples)
    assert found.shape == (2, features.num_frames(1234), 129) == (2, 16, 129)
    before = (features.WINDOW - features.HOP) // 2  # so that a window is about the middle of a hop
    padded = np.pad(samples.astype(np.float64), [(0, 0), (before, features.WINDOW)])
    options = {"nperseg": features.WINDOW, "nfft": features.POINTS, "boundary": None}
    overlap = features.WINDOW - features.HOP
    _, _, spectra = scipy.signal.stft(padded, 8000, "hann", noverlap=overlap, **options)
    # SciPy divides by the sum of the window, which is half as much as it has samples.
    expected = np.abs(spectra * features.WINDOW / 2) ** 2
    np.testing.assert_allclose(found, expected.swapaxes(1, 2)[:, :16], rtol=1e-3, atol=1e-3)


def test_filters_are_triangles_on_the_mel_scale():
    features = needs_examples("speech_features")
    filters = features.mel_filters(8000)
    assert filters.shape == (129, features.BANDS)
    inner = filters[4:122]
    np.testing.assert_allclose(inner.sum(axis=1), 1, atol=1e-6)
    peaks = filters.argmax(axis=0)
    assert (np.diff(peaks) >= 0).all()


def test_filters_are_those_of_keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # read when Keras is first imported
    features = needs_examples("speech_features")
    keras = pytest.importorskip("keras", reason="needs the extra `compare`")
    options = {"num_mel_bins": features.BANDS, "sampling_rate": 8000}
    layer = keras.layers.MelSpectrogram(**options)
    expected = layer.linear_to_mel_weight_matrix(
        **options, num_spectrogram_bins=129, lower_edge_hertz=60.0, upper_edge_hertz=4000.0
    )
    np.testing.assert_allclose(features.mel_filters(8000), np.asarray(expected), atol=1e-5)


def test_silence_has_the_least_features(rng):
    features = needs_examples("speech_features")
    silence = features.log_mel(np.zeros((1, 800), np.float32), 8000)
    np.testing.assert_allclose(silence, np.log(features.FLOOR), rtol=1e-6)
    noise = features.log_mel(rng.standard_normal((1, 800)).astype(np.float32), 8000)
    assert (noise > silence).all()
    tone = np.sin(2 * np.pi * 1000 / 8000 * np.arange(8000)).astype(np.float32)
    band = int(np.asarray(features.log_mel(tone, 8000))[50].argmax())
    edges = features.mel_filters(8000)[:, band].nonzero()[0] * 8000 / features.POINTS
    assert edges[0] < 1000 < edges[-1]


def test_stretches_are_hidden_where_frames_are():
    features = needs_examples("speech_features")
    no_frame = np.arange(400) >= np.array([[400], [100]])
    whole = np.ones((2, 400, features.BANDS), np.float32)
    shares = []
    for key in jax.random.split(jax.random.key(0), 20):
        hidden = np.asarray(features.hide_stretches(key, whole, no_frame)) == 0
        in_time, in_bands = hidden.all(axis=2), hidden.all(axis=1)
        np.testing.assert_array_equal(hidden, in_time[:, :, None] | in_bands[:, None, :])
        assert (in_bands.sum(axis=1) <= 16).all()
        assert not in_time[1, 130:].any(), "a stretch begins among the frames in use"
        shares.append(in_time[0].mean())
    assert 0.05 < np.mean(shares) < 0.15
    assert len(set(shares)) > 10


@pytest.fixture
def listener():
    """One that has not learnt anything, with features of about the right size."""
    needs_examples("orbax.checkpoint")
    speech = needs_examples("train_speech")
    model = speech.Listener(rngs=speech.nnx.Rngs(0))
    model.mean[...] -= 5.0
    model.eval()
    return speech, model


def test_an_utterance_is_heard_alike_in_any_bucket(listener, rng):
    speech, model = listener
    samples = (0.1 * rng.standard_normal(8111)).astype(np.float32)
    found = []
    for size in (8111, 9000, 20000):
        batch = jaxctc.pad_to_bucket([samples], [[3]], [(size, 1)])
        logits, no_frame = speech.score(model, batch)
        assert jaxctc.paddings_to_lengths(no_frame).tolist() == [34]  # of 102 frames of features
        found.append(np.asarray(logits)[0, :34])
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    np.testing.assert_allclose(found[2], found[0], atol=1e-4)


def test_chunks_are_scored_as_the_whole_is(listener, rng, monkeypatch):
    align_speech = needs_examples("align_speech")
    speech, model = listener
    samples = (0.1 * rng.standard_normal(50_000)).astype(np.float32)
    whole, _ = speech.score(model, jaxctc.pad_to_bucket([samples], [[3]], [(50_000, 1)]))
    monkeypatch.setattr(align_speech, "CHUNK", 150)
    found = align_speech.score_in_chunks(model, samples)
    assert found.shape == (209, 29)
    np.testing.assert_allclose(found, whole[0], atol=1e-4)


def test_a_frame_stands_for_the_middle_of_its_time(listener, rng):
    """What is heard in a short burst is felt by as many frames before it as after it."""
    speech, model = listener
    silence = np.zeros(24_000, np.float32)
    burst = silence.copy()
    frame = 50
    start = round(frame * speech.FRAME_SECONDS * speech.RATE)
    burst[start : start + 240] = 0.3 * rng.standard_normal(240)
    scores = []
    for samples in (silence, burst):
        logits, _ = speech.score(model, jaxctc.pad_to_bucket([samples], [[3]], [(24_000, 1)]))
        scores.append(np.asarray(logits)[0])
    (felt,) = np.nonzero(np.abs(scores[1] - scores[0]).max(axis=1) > 1e-6)
    assert abs((felt[0] + felt[-1]) / 2 - frame) <= 0.5, (felt[0], felt[-1])


def test_a_network_is_restored_as_it_was_saved(listener, tmp_path):
    speech, model = listener
    speech.save(model, tmp_path / "listener")
    batch = jaxctc.pad_to_bucket([np.ones(4000, np.float32)], [[3]], [(4000, 1)])
    restored = speech.restore(tmp_path / "listener")
    np.testing.assert_array_equal(speech.score(restored, batch)[0], speech.score(model, batch)[0])


def test_every_example_of_a_batch_is_one_of_the_prompts(sounds):
    speech = needs_examples("train_speech")
    prompts = speech.load_prompts(sounds)[:40]
    texts = {prompt.text for prompt in prompts}
    batches = speech.endless_batches(prompts, np.random.default_rng(0))
    for batch in itertools.islice(batches, 3):
        assert batch.frames.shape[1:] in {bucket[:1] for bucket in speech.BUCKETS}
        assert not batch.example_paddings.any()
        decoded = speech.VOCABULARY.decode(np.where(batch.label_paddings, -1, batch.labels))
        assert all(any(text.startswith(known) for known in texts) for text in decoded)


@pytest.fixture
def elsewhere():
    needs_examples("PIL")
    return needs_examples("logits_from_elsewhere")


def test_boxes_meet_between_characters(elsewhere):
    path = jnp.array([0, 1, 0, 0, 2, 2, 0])
    alignment = jaxctc.forced_align(9.0 * jax.nn.one_hot(path, 3), None, jnp.array([1, 2]), None)
    assert elsewhere.boxes(alignment, 8.0).tolist() == [-2.0, 24.0, 54.0]


def test_logits_from_elsewhere_are_read(elsewhere, tmp_path, refusal):
    del elsewhere
    pytest.importorskip("rapidocr_onnxruntime", reason="needs the extra `ocr`")
    text = "CTC, 2006: ICML"
    done = run("logits_from_elsewhere.py", "--text", text, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"greedy: {text}" in done.stdout.splitlines()
    assert "CER of the beam: 0.0000" in done.stdout.splitlines()
    rows = re.findall(r"^ +'(.)' +\d+–\d+ +\d+–\d+ +[01]\.\d{3}$", done.stdout, re.MULTILINE)
    assert "".join(rows) == text
    (inside,) = re.findall(r"inside the character: (\d\.\d+)", done.stdout)
    assert float(inside) >= 0.9
    assert (tmp_path / "print.png").read_bytes().startswith(b"\x89PNG")
    assert refusal("logits_from_elsewhere", "--text", "☃") == (
        "logits_from_elsewhere.py: argument --text: must have characters that the network knows; "
        "got '☃'\n"
    )
