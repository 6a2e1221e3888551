"""A dashboard ends at once and in order, whatever its threads were about to do."""

import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import sys
from analyzer.dashboard.app import create_app
client = create_app([sys.argv[1]]).server.test_client()
for page in ("/", "/flow", "/compare", "/findings", "/"):
    client.get(page + "?run=plain&run=residual", headers={"Host": "127.0.0.1:8050"})
"""


def test_a_program_that_ends_while_figures_are_drawn_ends_in_order(runs_dir: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(runs_dir)]
    for _ in range(3):
        start = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert time.perf_counter() - start < 30
