"""The examples as a user runs them: processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICKLY_COMPILED = "--xla_backend_optimization_level=0"
"""Of XLA: what runs for a few steps compiles for most of its time, which this halves."""


def run(script, *arguments, **environment):
    command = [sys.executable, EXAMPLES / script, *arguments]
    environment = os.environ | {"XLA_FLAGS": QUICKLY_COMPILED} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
