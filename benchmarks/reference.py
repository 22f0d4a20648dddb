"""Writes reports/reference.md: what speedup.py and prefill.py measured on a GPU (results/reference/) and on a CPU."""

import csv
import json
from pathlib import Path
from typing import Any

from benchmarks import prefill, speedup

ROOT = Path(__file__).parents[1]
MISSING = "not measured: no GPU was at hand. `benchmarks/gpu.sh` measures it on one in at most 9 minutes."


def markdown(lines: list[list[str]]) -> str:
    """Return a table."""
    headings, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, ["---"] * len(headings), *rest])


def published(papers: Path) -> list[list[str]]:
    """Return ATP-LLaVA's own Table 3, of its supplement."""
    with papers.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[:2] == ["atp", "S3"]]
    metrics = ["avg_tokens", "accuracy_rate", "cuda_ms", "cuda_reduction_pct"]
    values = {(row[3], row[5]): row[6] for row in rows}
    found = [[name, *(values.get((name, each), "–") for each in metrics)] for name in dict.fromkeys(r[3] for r in rows)]
    return [["method", "avg. tokens", "accuracy (%)", "CUDA time (ms)", "Δ (%)"], *found]


def report(root: Path) -> str:
    """Return the report of what is there; what is not is "not measured"."""

    def found(pattern: str) -> list[tuple[str, Any]]:
        return [(path.parent.name, json.loads(path.read_text())) for path in sorted(root.glob(pattern))]

    parts = [
        "# Time and memory at real size",
        "Made by `python -m benchmarks.reference`; what the numbers mean is in [benchmarks/README.md](../benchmarks/"
        "README.md). Weights are random: they have no bearing on time.",
        "## Realised ÷ FLOPs-ideal speed-up of a prefill",
    ]
    cuda = found("results/reference/*/speedup.json")
    for name, result in cuda:
        parts += [f"### {name}", markdown(speedup.table(result)), speedup.source(result)]
    if not cuda:
        parts += ["### CUDA", MISSING]
    cpu = found("results/benchmarks/speedup-cpu.json")
    parts += ["### CPU"]
    for _, result in cpu:
        parts += [markdown(speedup.table(result)), speedup.source(result)]
    if not cpu:
        parts += ["not measured: `python -m benchmarks.speedup` does."]
    parts += ["## All methods and budgets, in the layout of ATP-LLaVA's Table 3"]
    tables = found("results/reference/*/prefill.json")
    for name, result in tables:
        parts += [f"### {name}", markdown(prefill.table(result)), prefill.source(result)]
    if not tables:
        parts += ["### CUDA", MISSING]
    own = published(root / "results" / "published" / "papers.csv")
    parts += ["### Published, on one A100", markdown(own)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    path = ROOT / "reports" / "reference.md"
    path.write_text(report(ROOT))
    print(path)
