"""The report shows what was measured, and says so of what was not."""

import json
import shutil

import pytest

from benchmarks.reference import MISSING, ROOT, published, report

PAPERS = "results/published/papers.csv"


@pytest.fixture
def root(tmp_path):
    (tmp_path / PAPERS).parent.mkdir(parents=True)
    shutil.copy(ROOT / PAPERS, tmp_path / PAPERS)
    return tmp_path


def spread(median):
    return {"median": median, "q25": median, "q75": median, "raw": [median]}


PROVENANCE = {"cpu_or_gpu_name": "NVIDIA X", "host_threads": 2, "torch": "2", "transformers": "5", "git_commit": None}
SPEEDUP = {
    "provenance": PROVENANCE,
    "settings": {
        "model": "llava-1.5-7b",
        "dtype": "bfloat16",
        "attention": "sdpa",
        "clock": "CUDA events",
        "exclusive": False,
        "repeats": 1,
        "seconds": 3.0,
        "goal": 0.95,
    },
    "rows": [
        {
            "method": "fastv",
            "parameters": {"tokens": 64, "budget": "kept"},
            "text_tokens": 512,
            **{key: spread(40.0) for key in ("full_ms", "pruned_ms")},
            **{key: spread(0.5) for key in ("speedup", "realised", "realised_without_pruner", "pruner_share")},
            "ideal": 2.0,
            "held": False,
        }
    ],
}


def test_without_a_gpu_it_says_not_measured(root):
    shown = report(root)
    assert shown.count(MISSING) == 2 and shown.count("not measured") == 3


def test_the_published_table_is_atps(root):
    assert published(root / PAPERS)[1:] == [
        ["U.B. w/o flash attn", "576.0", "100.0", "432.7", "–"],
        ["U.B. w/ flash attn", "576.0", "100.0", "398.6", "7.9"],
        ["ATP w/o flash attn", "144.0", "98.1", "266.4", "38.4"],
        ["ATP w/ flash attn", "144.0", "98.1", "237.7", "45.1"],
    ]


def test_what_was_measured_is_shown_by_device(root):
    for folder in ("nvidia-x", "nvidia-y"):
        path = root / "results" / "reference" / folder / "speedup.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(SPEEDUP))
    shown = report(root)
    assert "### nvidia-x" in shown and "### nvidia-y" in shown
    assert "| fastv budget=kept | 64 | 512 | 40.0 | 40.0 | 0.50 | 2.00 | 0.500 |" in shown
    assert "which others used meanwhile" in shown and shown.count(MISSING) == 1
