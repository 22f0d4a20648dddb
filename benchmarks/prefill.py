"""Time and memory of every method at every budget on this device, in the layout of ATP-LLaVA's Table 3.

Random weights of LLaVA-1.5's shapes, one image and a prompt of 64 text tokens, batch 1. What the numbers mean is in
`benchmarks/README.md`.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.shapes import build, device_of, prompt, text_encoder, tokenizer
from benchmarks.speedup import BUDGETS, Variant, show, variant
from harness.errors import VtbenchError
from harness.metrics.latency import measure
from harness.metrics.memory import memory, peak
from harness.model.anatomy import shape_of_config
from harness.model.attach import attach
from harness.model.attention import FLASH, attentions
from harness.model.guide import forget
from harness.provenance import provenance
from harness.store import write_json
from methods import TRAINING_FREE
from methods.full import Full
from methods.interface import Method

MODELS = ("llava-1.5-7b", "llava-1.5-13b")
TEXT_TOKENS = 64
ATTENTIONS = ("eager", "sdpa", FLASH)
WARMUP, REPEATS, DECODED = 1, 5, 2
HEADINGS = (
    "model",
    "method",
    "attention",
    "avg. tokens",
    "time (ms)",
    "Δ",
    "vision",
    "pruner",
    "per token",
    "KV visual (MiB)",
    "peak (GiB)",
    "reserved",
)


def cell(model: Any, name: str, tokens: int, *, warmup: int, repeats: int) -> dict[str, Any]:
    """Return what a method takes on a model; the full one is the model itself. Errors: VtbenchError; out of memory."""
    inputs, words, shape = prompt(model, TEXT_TOKENS), tokenizer(), shape_of_config(model.config)
    full = name == "full"
    picked = Variant(name=name, parameters={}, method=Full()) if full else variant(name, tokens, shape)
    chosen = picked.method
    encoder = text_encoder(model) if chosen.reads_clip else None
    entered = [(shape.patches,) * shape.llm_layers]

    @contextmanager
    def attached(each: Method) -> Iterator[None]:
        if full:
            yield
            return
        with attach(model, each, text_encoder=encoder, tokenizer=words) as work:
            yield
        entered[:] = [work.ledger.tokens.image(0).llm]

    gc.collect()  # an earlier cell's text encoder, whose memory would count
    with peak(model.device) as highest:
        latency = measure(
            model,
            inputs,
            method=chosen,
            attached=attached,
            warmup=warmup,
            repeats=repeats,
            decoded=DECODED,
            forget=partial(forget, encoder),
        )
    return {
        "parameters": picked.parameters,
        "llm_tokens": list(entered[0]),
        "latency": latency.record(),
        "memory": memory(entered[0], TEXT_TOKENS, model.config, highest).record(),
    }


def benchmark(
    device: torch.device, models: tuple[str, ...], *, dtype: torch.dtype, seconds: float, warmup: int, repeats: int
) -> dict[str, Any]:
    """Return everything measured within so many seconds, raw samples included; each model has its share of them.

    The full model comes first, with every attention, then the methods. What cannot be, or there was no time for, has
    a reason instead.
    """
    began = time.monotonic()
    possible = [each for each in ATTENTIONS if each in attentions()]
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(models):
        until = time.monotonic() + (began + seconds - time.monotonic()) / (len(models) - number)
        model = build(name, device, dtype)
        pruned = [(each, tokens) for each in TRAINING_FREE if each != "full" for tokens in BUDGETS]
        cells = [(attention, "full", 0) for attention in possible]
        cells += [(attention, *each) for attention in (*possible[1:], *possible[:1]) for each in pruned]
        for attention, method_name, tokens in cells:
            row: dict[str, Any] = {"model": name, "attention": attention, "method": method_name, "tokens": tokens}
            rows.append(row)
            if time.monotonic() > until:
                row["not_measured"] = "no time was left"
                continue
            try:
                model.set_attn_implementation(attention)
                row |= cell(model, method_name, tokens, warmup=warmup, repeats=repeats)
            except (VtbenchError, torch.OutOfMemoryError) as error:
                row["not_measured"] = str(error).splitlines()[0]
        del model
    return {
        "provenance": provenance(device),
        "settings": {
            "dtype": str(dtype).removeprefix("torch."),
            "text_tokens": TEXT_TOKENS,
            "attentions": list(attentions()),
            "warmup": warmup,
            "repeats": repeats,
            "seconds": round(time.monotonic() - began, 1),
        },
        "rows": rows,
    }


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return the table's lines, headings first; Δ as ATP: less time than the full model takes with eager attention.

    Milliseconds are medians; vision and pruner are parts of the time, per token is decoding.
    """
    found = [list(HEADINGS)]
    eager = {
        row["model"]: row["latency"]["prefill_ms"]["median"]
        for row in result["rows"]
        if (row["method"], row["attention"]) == ("full", "eager") and "latency" in row
    }
    for row in result["rows"]:
        label = row["method"] if row["method"] == "full" else f"{row['method']} {row['tokens']}"
        line = [row["model"], label, row["attention"]]
        if "latency" not in row:
            found.append([*line, "", f"not measured: {row['not_measured']}", *[""] * (len(HEADINGS) - 5)])
            continue
        ms = {key: spread["median"] for key, spread in row["latency"].items() if isinstance(spread, dict)}
        held, base = row["memory"], eager.get(row["model"])
        found.append(
            [
                *line,
                f"{sum(row['llm_tokens']) / len(row['llm_tokens']):.1f}",
                f"{ms['prefill_ms']:.1f}",
                "not measured" if base is None else f"{1 - ms['prefill_ms'] / base:.1%}",
                f"{ms['vision_ms']:.1f}",
                f"{ms['pruner_ms']:.1f}" if "pruner_ms" in ms else "–",
                f"{ms['decode_ms']:.1f}",
                f"{held['kv_visual_bytes'] / 2**20:.1f}",
                f"{held['peak_bytes'] / 2**30:.2f}",
                "–" if held["reserved_bytes"] is None else f"{held['reserved_bytes'] / 2**30:.2f}",
            ]
        )
    return found


def source(result: dict[str, Any]) -> str:
    """Return what it was measured on, in a line."""
    settings, where = result["settings"], result["provenance"]
    clocks = {row["latency"]["clock"] for row in result["rows"] if "latency" in row}
    shared = sum(not row["latency"]["exclusive"] for row in result["rows"] if "latency" in row)
    missing = [each for each in ATTENTIONS if each not in settings["attentions"]]
    return (
        f"Random weights, {settings['dtype']}, {settings['text_tokens']} text tokens; {', '.join(clocks) or 'no time'} "
        f"of {where['cpu_or_gpu_name']}, {settings['repeats']} repeats; others used it in {shared} cells; "
        + "".join(f"{each}: not installed; " for each in missing)
        + f"torch {where['torch']}, transformers {where['transformers']}, commit {where['git_commit']}."
    )


def main(
    out: Annotated[Path | None, typer.Option(help="results/benchmarks/prefill-<device>.json unless given")] = None,
    device: str = "cuda",
    seconds: Annotated[float, typer.Option(min=0, help="what has not begun by then is not measured")] = 400,
    quick: Annotated[bool, typer.Option("--quick", help="a tiny shape, one repeat, to see that it works")] = False,
) -> None:
    """Measure, write the JSON and print the table."""
    chosen = device_of(device)
    result = benchmark(
        chosen,
        ("tiny",) if quick else MODELS,
        dtype=torch.bfloat16 if chosen.type == "cuda" else torch.float32,
        seconds=seconds,
        warmup=0 if quick else WARMUP,
        repeats=1 if quick else REPEATS,
    )
    name = f"prefill-{chosen.type}{'-quick' if quick else ''}.json"
    path = out or Path(__file__).parents[1] / "results" / "benchmarks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    console = Console(width=170)
    show(table(result), "Time and memory of a prompt, image encoding included", console)
    console.print(source(result))
    print(path)


if __name__ == "__main__":
    typer.run(main)
