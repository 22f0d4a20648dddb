"""The files in sweeps/cluster/ are what Ray, KubeRay and Slurm take, as far as this machine can tell."""

import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.nodes import BIN, ROOT

FILES = ROOT / "sweeps" / "cluster"

# of KubeRay 1.5.1's API reference, as far as the file uses it
RAYJOB = {"entrypoint", "runtimeEnvYAML", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"}
RAYCLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}

# Runs what it is given as often as there are tasks; nodes on one machine need their own ports.
SRUN = """#!/usr/bin/env bash
for option; do
  [[ $option == --* ]] || break
  [[ $option == --ntasks=* ]] && tasks=${option#*=}
  shift
done
trap 'kill $(jobs -p); wait; exit 143' TERM
for ((task = 0; task < tasks; task++)); do
  mapfile -t ports < <(python -c '
from tests.cluster.nodes import agent_ports
print(*agent_ports(), sep="\\n")')
  "$@" "${ports[@]}" --num-cpus=1 --object-store-memory=104857600 &
done
for ((task = 0; task < tasks; task++)); do
  wait -n || { code=$?; kill $(jobs -p); wait; exit $code; }
done
"""
SWEEP = """
model: pocket
tasks: [pocket_tiny]
tokens: [16, 64, 144, 256]
methods: [full, topk, pooling]
limit: 4
measure: [accuracy, tokens]
"""


def load(name: str) -> Any:
    return yaml.safe_load((FILES / name).read_text(encoding="utf-8"))


def test_ray_up_takes_the_cluster_file():
    config = prepare_config(load("ray-up.yaml"))
    validate_config(config)
    assert config["max_workers"] == 2
    commands = "\n".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert commands.count("RAY_AUTH_MODE=token ray start") == 2 and "--dashboard-host=127.0.0.1" in commands


def test_the_rayjob_has_kuberay_s_fields():
    job = load("rayjob.yaml")
    assert (job["apiVersion"], job["kind"], job.keys()) == (
        "ray.io/v1",
        "RayJob",
        {"apiVersion", "kind", "metadata", "spec"},
    )
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec.keys() == RAYJOB and cluster.keys() == RAYCLUSTER
    assert cluster["authOptions"] == {"mode": "token"} and cluster["rayVersion"] == ray.__version__
    assert yaml.safe_load(spec["runtimeEnvYAML"]).keys() == {"env_vars"}
    assert cluster["headGroupSpec"].keys() == {"rayStartParams", "template"}
    assert all(isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() == WORKERS
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {mount["name"] for mount in container.get("volumeMounts", [])} == {
            each["name"] for each in pod.get("volumes", [])
        }


def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", FILES / "slurm.sh"], check=True)
    assert (FILES / "slurm.sh").stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("name", ["README.md", "ray-up.yaml", "rayjob.yaml", "slurm.sh"])
def test_the_files_name_options_that_there_are(name):
    text = (FILES / name).read_text(encoding="utf-8")
    helped = subprocess.run(
        [BIN / "vtbench", "run", "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    for command in re.findall(r"vtbench run [^\n`]*(?:\\\n[^\n]*)*", text):
        for option in re.findall(r"(?<!\S)--[a-z-]+", command):
            assert option in helped.stdout


@pytest.fixture
def job_id() -> Iterator[str]:
    """Yield a Slurm job's number; Ray's logs of it go."""
    yield str(os.getpid())
    shutil.rmtree(f"/tmp/ray-{os.getpid()}", ignore_errors=True)


@pytest.mark.cluster
def test_the_slurm_script_runs_a_sweep_ends_in_order_and_goes_on(tmp_path, job_id):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    (tmp_path / "mine.yaml").write_text(SWEEP)
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env |= {"PATH": f"{tmp_path / 'bin'}:{BIN}:{env['PATH']}", "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    env |= {"SLURM_JOB_ID": job_id, "SLURM_JOB_NUM_NODES": "2", "SLURM_SUBMIT_DIR": str(tmp_path)}
    command = [FILES / "slurm.sh", "mine.yaml", "--out", "shared"]

    def records() -> list[Path]:
        return list((tmp_path / "shared" / "mine").glob("*/record.json"))

    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as batch:
        end = time.monotonic() + 400
        while not records():
            assert batch.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.2)
        batch.send_signal(signal.SIGTERM)
        assert batch.wait(120) == 143
    said = (tmp_path / "log").read_text()
    done = len(records())
    assert f"stopped: {done} trials done now, " in said and f"{9 - done} left; the same command goes on" in said
    assert not [
        each
        for each in psutil.process_iter(["cmdline"])
        if f"/tmp/ray-{job_id}" in " ".join(each.info["cmdline"] or ())
    ]

    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"mine: 9 trials, {9 - done} done now, {done} before, 0 failed" in again.stdout
    assert len(records()) == 9
