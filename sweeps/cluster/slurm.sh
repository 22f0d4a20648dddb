#!/usr/bin/env bash
# A sweep on Slurm: Ray's head on the first node, a worker on each other one, the driver beside the head.
#
#   sbatch sweeps/cluster/slurm.sh sweeps/mine.yaml --out /shared/results --reports /shared/reports
#
# In a clone on a folder that all nodes have, after `make install`. Ran out of time: the same command goes on.
#SBATCH --job-name=vtbench
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=2-00:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
export PATH="$PWD/.venv/bin:$PATH"

# In the environment, so on no command line, where other users of a node would see it.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

ip=$(hostname -I | cut -d ' ' -f 1) # by its name a node may find its loopback
export RAY_ADDRESS=$ip:$((20000 + SLURM_JOB_ID % 10000)) # two jobs do not meet
workers=$((SLURM_JOB_NUM_NODES - 1))
trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT

first=${SLURMD_NODENAME:-$(hostname -s)}
srun --overlap --cpu-bind=none --kill-on-bad-exit --nodes=1 --ntasks=1 --nodelist="$first" \
  env -u RAY_ADDRESS ray start --head --block --node-ip-address="$ip" --port="${RAY_ADDRESS#*:}" \
  --include-dashboard=false --disable-usage-stats --temp-dir="/tmp/ray-$SLURM_JOB_ID" &
if ((workers > 0)); then
  srun --overlap --cpu-bind=none --kill-on-bad-exit --nodes="$workers" --ntasks="$workers" --exclude="$first" \
    env -u RAY_ADDRESS ray start --block --address="$RAY_ADDRESS" --disable-usage-stats &
fi

# vtbench takes as many workers as there is room for when it starts.
python - << 'END' &
import os, time
import ray

end = time.monotonic() + 600
while time.monotonic() < end:
    try:
        ray.init(logging_level="error", log_to_driver=False)
        if sum(node["Alive"] for node in ray.nodes()) >= int(os.environ["SLURM_JOB_NUM_NODES"]):
            break
        ray.shutdown()
    except Exception:  # of no type of its own while they come up
        ray.shutdown()
    time.sleep(2)
else:
    raise SystemExit("not all nodes came up within ten minutes")
END
wait -n # for the nodes, or for one that fails

# Slurm's TERM comes to this shell alone. The driver drops what runs, keeps what is done, and exits with 143.
vtbench run "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM
code=0
while kill -0 "$driver" 2> /dev/null; do wait "$driver" && code=0 || code=$?; done
exit "$code"
