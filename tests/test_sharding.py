"""What runs on eight devices runs in a process of its own, which has them from the start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import QUICKLY_COMPILED

pytestmark = pytest.mark.slow


PROGRAMS = "on_eight_devices", "on_explicit_axes", "train_on_eight_devices"


@pytest.mark.parametrize("program", PROGRAMS)
def test_on_eight_devices(program):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {QUICKLY_COMPILED}",
    }
    path = str(Path(__file__).with_name(f"{program}.py"))
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
