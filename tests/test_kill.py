"Runs that are killed and resumed: a few here, twenty by `python tests/kill.py`."
import os, subprocess, sys
from pathlib import Path
import pytest

@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_runs_end_as_if_nothing_had_happened():
    said = subprocess.run([sys.executable, Path(__file__).with_name("kill.py"), "--runs", "1"], capture_output=True, text=True, timeout=300)
    assert said.returncode == 0 and "1 of 1 runs ended with the same weights" in said.stdout, said.stdout + said.stderr
