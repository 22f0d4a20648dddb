#!/usr/bin/env bash
# Everything that is measured on a GPU, in one command of at most 9 minutes: the tests that need one, speedup.py, of
# which the rounds that half the time is enough for, and prefill.py. Needs torch, transformers >= 5.23 and what the
# table in benchmarks/README.md names; no ray, lmms-eval or fvcore. Wheels in .whl/ are installed beside, for a machine
# without a network. Writes results/reference/<device>/{speedup.json, prefill.json, log.txt}, or
# into $OUT where that is set.
# VTBENCH_DEVICE=cpu runs it end to end on a CPU with tiny shapes, to see that it works.
set -uo pipefail
cd "$(dirname "$0")/.."
device=${VTBENCH_DEVICE:-cuda}
limit=${VTBENCH_SECONDS:-510}
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TOKENIZERS_PARALLELISM=false
if compgen -G ".whl/*.whl" >/dev/null; then
  site=$(mktemp -d)
  $python -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl || exit
  export PYTHONPATH=$site:$PYTHONPATH
fi
name=$($python - "$device" <<'PYTHON'
import re, sys, torch, transformers
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
    sys.exit(f"transformers {transformers.__version__} is too old; allowed is 5.23 or later")
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("no CUDA device here; allowed is VTBENCH_DEVICE=cpu, which only shows that this runs")
print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()) if sys.argv[1] == "cuda" else "cpu-quick")
PYTHON
) || exit 2
folder=${OUT:-results/reference}/$name
mkdir -p "$folder"
quick=()
[ "$device" = cpu ] && quick=(--quick)
failed=0
left() { # seconds, so many percent of what is left
  local seconds=$(((limit - SECONDS) * $1 / 100))
  echo $((seconds > 1 ? seconds : 1))
}
{
  timeout "$(left 25)" $python -m pytest -q -p no:cacheprovider -W default -m gpu \
    tests/metrics/test_latency.py tests/metrics/test_memory.py || failed=1
  timeout "$(left 50)" $python -m benchmarks.speedup --device "$device" --out "$folder/speedup.json" "${quick[@]}" ||
    failed=1
  $python -m benchmarks.prefill --device "$device" --out "$folder/prefill.json" "${quick[@]}" \
    --seconds $((limit - SECONDS > 41 ? limit - SECONDS - 40 : 1)) || failed=1
  echo "$folder in $SECONDS s"
  exit $failed
} 2>&1 | tee "$folder/log.txt"
