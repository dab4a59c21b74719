"""The fuzz lane, for a moment; and that it would find something."""

from typing import Any

import fuzz
import numpy as np
import pytest

pytestmark = pytest.mark.slow
SETTING = fuzz.Setting((3, 5, 3, 3))


def test_nothing_is_found():
    lines = []
    assert fuzz.run(seed=0, minutes=0.5, show=lines.append) == 0
    assert lines[-1].endswith(": 0 faults")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("gradient", lambda gradient: gradient * 1.01),
        ("loss", lambda loss: loss + 1e-3),
        ("entropy", lambda entropy: np.where(entropy > 1, 1, entropy)),
    ],
)
def test_a_fault_is_found_and_made_simple_and_printed(part, change, monkeypatch):
    right = fuzz.compiled

    def wrong(setting):
        def call(*arguments):
            found = right(setting)(*arguments)
            return found | {part: change(found[part])}

        return call

    rng = np.random.default_rng(1)
    drawn = [fuzz.draw_inputs(rng, SETTING)[1] for _ in range(20)]
    assert not any(fuzz.fault("paths", SETTING, inputs) for inputs in drawn)
    monkeypatch.setattr(fuzz, "compiled", wrong)
    inputs = next(inputs for inputs in drawn if fuzz.fault("paths", SETTING, inputs))
    small = fuzz.shrink("paths", SETTING, inputs, seconds=5)
    message = fuzz.fault("paths", SETTING, small)
    assert message
    assert sum(map(np.count_nonzero, small[1::2])) >= sum(map(np.count_nonzero, inputs[1::2]))
    printed = fuzz.as_test("paths", SETTING, small, message)
    names: dict[str, Any] = {"fuzz": fuzz, "np": np}
    exec(printed, names)
    with pytest.raises(AssertionError, match=part):
        names["test_found_by_fuzzing"]()
    monkeypatch.undo()
    names["test_found_by_fuzzing"]()
