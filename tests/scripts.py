"""The examples as a user runs them: processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script, *arguments, **environment):
    command = [sys.executable, EXAMPLES / script, *arguments]
    environment = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
