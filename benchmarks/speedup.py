"""How much of the speed-up that the FLOPs promise is there: of a prefill, by pruning, on this machine.

Realised: the full prompt's prefill time over the pruned one's, image encoding included, in the same round of one
process. Ideal: the same ratio of what their matrix products cost, the method's own work not counted, so that it stands
between. What the numbers mean is in `benchmarks/README.md`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import LlavaConfig

from benchmarks.shapes import BEFORE_IMAGE, SHAPES, build, device_of, prompt, text_encoder, tokenizer
from harness.metrics.latency import device_to_itself, spread, timed_prompt, watch
from harness.model.anatomy import shape_of_config
from harness.model.attach import attach
from harness.model.guide import forget
from harness.model.replay import recorded
from harness.provenance import provenance
from harness.store import write_json
from methods import method
from methods.interface import Method, Shape
from methods.schedule import TokensPerLayer

METHODS = ("topk", "fastv", "ivtp")
BUDGETS = (64, 128, 192)
TEXT_TOKENS = (64, 512)
GOAL = {"cuda": 0.95, "cpu": 0.9}
MODEL = {"cuda": "llava-1.5-7b", "cpu": "clip-l+llama-1.1b"}
WARMUP, REPEATS = {"cuda": 2, "cpu": 0}, {"cuda": 10, "cpu": 2}  # rounds; on a CPU one takes minutes
HEADINGS = (
    "method",
    "tokens",
    "text",
    "full ms",
    "pruned ms",
    "speed-up",
    "ideal",
    "realised",
    "IQR",
    "without pruner",
    "pruner's share",
    "goal",
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A method at a budget, with what it took in every round, in milliseconds."""

    name: str
    parameters: dict[str, Any]
    method: Method
    tokens: list[TokensPerLayer] = field(default_factory=list)  # that really entered every layer
    method_ms: list[float] = field(default_factory=list)
    replay_ms: list[float] = field(default_factory=list)


def variant(name: str, tokens: int, shape: Shape) -> Variant:
    """Return a method at a budget: that of the mean over the LLM's layers, where the method counts so and it can be."""
    parameters: dict[str, Any] = {"tokens": tokens}
    chosen = method(name, **parameters)
    try:
        chosen.stages(shape)
    except ValueError:
        if hasattr(chosen, "budget"):
            parameters["budget"] = "kept"
    return Variant(name=name, parameters=parameters, method=method(name, **parameters))


def flops(config: LlavaConfig, tokens: TokensPerLayer, text_tokens: int) -> int:
    """Return the FLOPs of a prefill's matrix products, 2 a multiply-add, attention over all N², as it is run here.

    All layers of the vision tower, the one that nothing reads too; lm_head on the last position only. tokens: those of
    the one image that enter each layer; as many leave the ViT as enter the LLM.
    """
    vision, text = config.vision_config, config.text_config
    d, m, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    D, M = text.hidden_size, text.intermediate_size
    width = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    patches, features = (vision.image_size // patch) ** 2, tokens.llm[0]
    unread = vision.num_hidden_layers - len(tokens.vit)
    seen = [n + 1 for n in (*tokens.vit, *[features] * unread)]  # with CLS
    read = [n + text_tokens for n in tokens.llm]
    macs = patches * d * 3 * patch**2
    macs += sum(n * (4 * d * d + 2 * d * m) + 2 * n * n * d for n in seen)
    macs += features * (d * D + D * D)
    macs += sum(n * (2 * D * width + 2 * D * keys + 3 * D * M) + 2 * n * n * width for n in read)
    macs += D * text.vocab_size
    return int(2 * macs)


@torch.no_grad()
def prefills(
    model: Any, text_tokens: int, variants: list[Variant], *, warmup: int, repeats: int
) -> Iterator[list[float]]:
    """Time every variant, and its replay, once a round; yield after each the full model's milliseconds, one a round.

    A round's order, the full model's place in it too, is the reverse of the last one's: drift loads no side.
    """
    inputs, encoder, words = prompt(model, text_tokens), text_encoder(model), tokenizer()

    def run(each: Method) -> tuple[float, TokensPerLayer]:
        forget(encoder)
        with attach(model, each, text_encoder=encoder, tokenizer=words) as attached:
            taken, _ = timed_prompt(model, inputs)
        return taken, attached.ledger.tokens.image(0)

    timed_prompt(model, inputs)
    replays = []
    for each in variants:  # each length once, too: oneDNN prepares every product that it has not seen
        noted = recorded(each.method)
        each.tokens[:] = [run(noted)[1]]
        replays.append(noted.replay())
    full_ms: list[float] = []
    pairs = list(zip(variants, replays, strict=True))
    for turn in range(-warmup, repeats):
        for pair in [None, *pairs][:: -1 if turn % 2 else 1]:
            if pair is None:
                full, _ = timed_prompt(model, inputs)
                if turn >= 0:
                    full_ms.append(full)
                continue
            each, replay = pair
            method_ms, tokens = run(each.method)
            replay_ms, again = run(replay)
            assert [tokens] == [again] == each.tokens
            if turn >= 0:
                each.method_ms.append(method_ms)
                each.replay_ms.append(replay_ms)
        if turn >= 0:
            yield full_ms


def row(config: LlavaConfig, each: Variant, text_tokens: int, full_ms: list[float], goal: float) -> dict[str, Any]:
    """Return what was found of one variant; ratios are of two times of one round."""
    shape, (tokens,) = shape_of_config(config), each.tokens
    whole = TokensPerLayer((shape.patches,) * shape.vit_layers, (shape.patches,) * shape.llm_layers)
    whole_flops, pruned_flops = flops(config, whole, text_tokens), flops(config, tokens, text_tokens)
    ideal = whole_flops / pruned_flops
    full, pruned, replay = (np.array(ms) for ms in (full_ms, each.method_ms, each.replay_ms))
    realised = spread(tuple((full / pruned / ideal).tolist()))
    return {
        "method": each.name,
        "parameters": each.parameters,
        "text_tokens": text_tokens,
        "visual_tokens": {"vision": list(tokens.vit), "llm": list(tokens.llm)},
        "flops": {"full": whole_flops, "pruned": pruned_flops},
        "full_ms": spread(tuple(full_ms)),
        "pruned_ms": spread(tuple(each.method_ms)),
        "replay_ms": spread(tuple(each.replay_ms)),
        "pruner_share": spread(tuple(((pruned - replay) / pruned).tolist())),
        "ideal": ideal,
        "speedup": spread(tuple((full / pruned).tolist())),
        "realised": realised,
        "realised_without_pruner": spread(tuple((full / replay / ideal).tolist())),
        "held": realised["median"] >= goal,
    }


def benchmark(
    device: torch.device, model_name: str, *, dtype: torch.dtype, warmup: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """Yield everything measured so far, raw samples and what it was measured on included, after every round."""
    began = time.perf_counter()
    model, goal, where = build(model_name, device, dtype), GOAL[device.type], provenance(device)
    rows: list[dict[str, Any]] = []
    with device_to_itself(device):
        used_by_others = watch(device)
        for text_tokens in TEXT_TOKENS:
            shape, earlier = shape_of_config(model.config), rows
            variants = [variant(name, tokens, shape) for name in METHODS for tokens in BUDGETS]
            for full_ms in prefills(model, text_tokens, variants, warmup=warmup, repeats=repeats):
                rows = earlier + [row(model.config, each, text_tokens, full_ms, goal) for each in variants]
                yield {
                    "provenance": where,
                    "settings": {
                        "model": model_name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "attention": "sdpa",
                        "warmup": warmup,
                        "repeats": repeats,
                        "before_image": BEFORE_IMAGE,
                        "clock": "CUDA events" if device.type == "cuda" else "CPU time",
                        "exclusive": not used_by_others(),
                        "goal": goal,
                        "seconds": round(time.perf_counter() - began, 1),
                    },
                    "rows": rows,
                }


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return the table's lines, headings first; times and ratios are medians; alone: the device to itself."""
    found = [list(HEADINGS)]
    to_itself = ", alone" if result["settings"]["exclusive"] else ", not alone"
    for each in result["rows"]:
        counted = [f"{key}={value}" for key, value in each["parameters"].items() if key != "tokens"]
        realised = each["realised"]
        found.append(
            [
                " ".join([each["method"], *counted]),
                str(each["parameters"]["tokens"]),
                str(each["text_tokens"]),
                f"{each['full_ms']['median']:.1f}",
                f"{each['pruned_ms']['median']:.1f}",
                f"{each['speedup']['median']:.2f}",
                f"{each['ideal']:.2f}",
                f"{realised['median']:.3f}",
                f"{realised['q25']:.3f} to {realised['q75']:.3f}, n={len(realised['raw'])}",
                f"{each['realised_without_pruner']['median']:.3f}",
                f"{each['pruner_share']['median']:.1%}",
                ("held" if each["held"] else "not held") + to_itself,
            ]
        )
    return found


def source(result: dict[str, Any]) -> str:
    """Return what it was measured on, in a line."""
    settings, where = result["settings"], result["provenance"]
    others = "" if settings["exclusive"] else ", which others used meanwhile"
    return (
        f"{settings['model']}, random weights, {settings['dtype']}, {settings['attention']}; {settings['clock']} of "
        f"{where['cpu_or_gpu_name']}{others}, {where['host_threads']} threads; {settings['repeats']} rounds in "
        f"{settings['seconds']:.0f} s; torch {where['torch']}, transformers {where['transformers']}, commit "
        f"{where['git_commit']}; goal ≥ {settings['goal']:g}."
    )


def show(lines: list[list[str]], title: str, console: Console) -> None:
    """Print a table."""
    headings, *rest = lines
    shown = Table(*headings, title=title)
    for line in rest:
        shown.add_row(*line)
    console.print(shown)


def main(
    out: Annotated[Path | None, typer.Option(help="results/benchmarks/speedup-<device>.json unless given")] = None,
    device: str = "cpu",
    model: Annotated[str | None, typer.Option(help="llava-1.5-7b on CUDA, clip-l+llama-1.1b on a CPU")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32")] = "bfloat16",
    repeats: Annotated[int | None, typer.Option(min=1, help="timed rounds: 10 on CUDA, 2 on a CPU")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="on the CPU; all unless given")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a tiny shape and two rounds, to see that it works")] = False,
) -> None:
    """Measure, write the JSON after every round and print the table."""
    chosen = device_of(device)
    shape = "tiny" if quick else model or MODEL[chosen.type]
    for option, value, allowed in (("model", shape, SHAPES), ("dtype", dtype, ("bfloat16", "float32"))):
        if value not in allowed:
            raise typer.BadParameter(f"{option}: {value!r} is not possible; allowed are {', '.join(allowed)}")
    if threads is not None:
        torch.set_num_threads(threads)
    name = f"speedup-{chosen.type}{'-quick' if quick else ''}.json"
    path = out or Path(__file__).parents[1] / "results" / "benchmarks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for result in benchmark(
        chosen,
        shape,
        dtype=getattr(torch, dtype),
        warmup=WARMUP[chosen.type],
        repeats=2 if quick else repeats or REPEATS[chosen.type],
    ):
        write_json(path, result)  # what is killed leaves its rounds
    console = Console(width=170)
    show(table(result), "Realised ÷ FLOPs-ideal speed-up of a prefill", console)
    console.print(source(result))
    print(path)


if __name__ == "__main__":
    typer.run(main)
