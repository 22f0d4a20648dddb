"""A sweep as a Ray job: `ray job submit` to a head, its trials on two other nodes."""

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from tests.cluster.nodes import BIN, checkout, cluster

pytestmark = pytest.mark.cluster  # minutes

SWEEP = """
model: pocket
tasks: [pocket_tiny]
tokens: [16, 64, 144, 256]
methods: [full, mine, topk, pooling]
limit: 4
measure: [accuracy, tokens, flops]
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Job(NamedTuple):
    """What `ray job submit` is called with."""

    folder: Path  # for all of a test
    source: Path  # what is submitted
    env: dict[str, str]

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), "job", *arguments]
        return subprocess.run(command, cwd=self.source, env=self.env, capture_output=True, text=True, timeout=600)

    def submit(self, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        carried = json.dumps({"env_vars": {"VTBENCH_COMMIT": COMMIT, "WANDB_MODE": "disabled"}})
        run = ["vtbench", "run", "mine.yaml", "--out", f"{self.folder}/out", "--reports", f"{self.folder}/reports"]
        given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        return self.ray("submit", "--working-dir", ".", "--runtime-env-json", carried, *given, *arguments, "--", *run)


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    """Yield a cluster, and a checkout with a method that the vtbench installed on its nodes has not."""
    with tempfile.TemporaryDirectory(prefix="vj", dir="/tmp", ignore_cleanup_errors=True) as name:  # short
        folder = Path(name)
        source = checkout(folder / "source")
        methods = source / "methods" / "__init__.py"
        there = methods.read_text(encoding="utf-8")
        methods.write_text(there.replace('    "random": Random,\n', '    "random": Random,\n    "mine": Random,\n'))
        (source / "mine.yaml").write_text(SWEEP)
        with cluster(folder, workers=2) as env:
            yield Job(folder, source, env)


def results(out: Path) -> dict[str, tuple[dict[str, Any], pd.DataFrame]]:
    """Return every trial's record and samples by its id."""
    found = sorted((out / "mine").glob("*/record.json"))
    return {
        path.parent.name: (json.loads(path.read_bytes()), pd.read_parquet(path.parent / "samples.parquet"))
        for path in found
    }


def test_a_job_stopped_and_submitted_again_gives_what_a_local_run_gives(job):
    begun = job.submit("--no-wait", submission_id="first")
    assert begun.returncode == 0, begun.stderr
    end = time.monotonic() + 300
    while not results(job.folder / "out"):
        assert time.monotonic() < end, job.ray("logs", "first").stdout
        time.sleep(0.2)
    job.ray("stop", "first")
    said = job.ray("logs", "first").stdout
    stopped = re.search(
        r"stopped: (\d+) trials done now, \d dropped as they ran, (\d+) left; the same command goes on", said
    )
    assert stopped, said
    done = int(stopped[1])
    assert 1 <= done == len(results(job.folder / "out")) and int(stopped[2]) == 13 - done

    again = job.submit()
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"mine: 13 trials, {13 - done} done now, {done} before, 0 failed" in again.stdout
    lines = re.findall(
        rf"^\[(\d+)/{13 - done}\] (?:full|mine|topk|pooling) .*on pocket_tiny: ", again.stdout, re.MULTILINE
    )
    assert lines == [str(number) for number in range(1, 14 - done)]
    assert (job.folder / "reports" / "mine.md").is_file()

    there = results(job.folder / "out")
    provenance = [record["provenance"] for record, _ in there.values()]
    assert {each["git_commit"] for each in provenance} == {COMMIT}
    listed = subprocess.run(
        [str(BIN / "ray"), "list", "nodes", "--format=json"],
        env=job.env | {"RAY_ADDRESS": job.env["RAY_API_SERVER_ADDRESS"]},
        capture_output=True,
        check=True,
    )
    workers = {node["node_id"] for node in json.loads(listed.stdout) if not node["is_head_node"]}
    assert {each["node"] for each in provenance} == workers and len(workers) == 2

    alone = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    alone |= {"PYTHONPATH": str(job.source), "WANDB_MODE": "disabled"}
    command = [str(BIN / "vtbench"), "run", "mine.yaml", "--out", str(job.folder / "local")]
    subprocess.run(command, cwd=job.source, env=alone, check=True, capture_output=True, timeout=600)
    here = results(job.folder / "local")
    assert here.keys() == there.keys()
    for trial, (record, samples) in here.items():
        del record["provenance"], there[trial][0]["provenance"]
        assert record == there[trial][0]
        pd.testing.assert_frame_equal(samples, there[trial][1])


def test_without_the_token_nobody_submits(job):
    stranger = {key: value for key, value in job.env.items() if not key.startswith("RAY_AUTH")} | {
        "HOME": str(job.folder)
    }
    refused = Job(job.folder, job.source, stranger).submit()
    assert refused.returncode != 0 and "authentication token" in refused.stdout + refused.stderr
