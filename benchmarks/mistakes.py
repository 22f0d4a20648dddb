"""How long `vtbench run` takes to refuse each malformed sweep file of tests/hostile/sweeps, a process each.

Prints the seconds that passed and those of the processor, the slowest first. Goal: 2 s on an idle machine.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

CORPUS = Path(__file__).parents[1] / "tests" / "hostile" / "sweeps"
GOAL = 2.0


def seconds(file: Path, folder: str) -> tuple[float, float]:
    """Return the seconds that passed, and the processor's, from start to exit with code 2."""
    command = [sys.executable, "-c", "from harness.cli import main; main()", "run", str(file)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    passed, after = time.perf_counter() - began, os.times()
    assert done.returncode == 2, done.stderr
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return passed, used


def main() -> None:
    """Time every file once."""
    with TemporaryDirectory() as folder:
        seconds(CORPUS / "nan_parameter.yaml", folder)  # what is imported is read from disk once
        times = {file.stem: seconds(file, folder) for file in sorted(CORPUS.glob("*.yaml"))}
    print("passed  processor  file")
    for name, (passed, used) in sorted(times.items(), key=lambda entry: -entry[1][1]):
        print(f"{passed:5.2f} s    {used:5.2f} s  {name}")
    within = sum(passed <= GOAL for passed, _ in times.values())
    print(f"{within} of {len(times)} within {GOAL:g} s; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
