"""What the engine's scores and the methods' own reductions cost, beside the model that they work in.

1. The probe (`harness/model/probe.py`, under `attach`, with a stage that keeps every token) and eager attention with
   `output_attentions=True`: the extra time and peak bytes of each over plain SDPA, as a ratio of the one to the other.
2. Every method's `reduce`, at each of its cuts, as a share of the time of one LLM layer.

Weights are random, of LLaVA-1.5-7B's widths; batch 1, a prefill. What the numbers mean is in `benchmarks/README.md`.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlavaForConditionalGeneration

from harness.metrics.latency import device_to_itself, spread
from harness.model.attach import attach
from harness.model.load import RANDOM
from harness.model.plan import ATTENTION, KEYS, ROWS
from harness.provenance import provenance
from harness.store import write_json
from methods import TRAINING_FREE, method
from methods.interface import Cut, Method, Need, PseudoCLS, Reduced, Seam, Shape, Stage, View, Words
from methods.reduce import keep_all

PROBE_GOAL, REDUCE_GOAL = 0.2, 0.02
TOKENS = (577, 1088)  # of the LLM's prompt: an image of 576, and text before and behind it
LAYER_TOKENS = 576 + 64  # in the layer that a reduction is compared with
LAYERS, REPEATS = 3, 9

# A mean of 64 is beyond PyramidDrop; the last five are of reductions that a method has with these parameters only.
DEFAULTS: dict[str, dict[str, Any]] = {"full": {}, "pyramiddrop": {"tokens": 64, "budget": "kept"}}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, DEFAULTS.get(name, {"tokens": 64})) for name in TRAINING_FREE),
    ("prumerge", {}),
    ("prumerge+", {}),
    *(("ivtp-v", {"tokens": 64, "aggregation": aggregation}) for aggregation in ("mean", "max", "multiply")),
]

Call = Callable[[], Any]
Variants = dict[str, Callable[[], AbstractContextManager[Call]]]


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Widths of a LLaVA; the defaults are those of LLaVA-1.5-7B."""

    vit: int = 1024
    vit_heads: int = 16
    vit_mlp: int = 4096
    llm: int = 4096
    llm_heads: int = 32
    llm_mlp: int = 11008


TINY = Widths(vit=32, vit_heads=2, vit_mlp=48, llm=64, llm_heads=2, llm_mlp=96)


@dataclass(frozen=True, kw_only=True)
class KeepAll(Method):
    """Asks for scores and cuts nothing, so that what is measured is what asking costs."""

    name: ClassVar[str] = "keep-all"
    paper: ClassVar[str] = "none"

    seam: Seam
    before: tuple[int, ...]
    needs: frozenset[Need] = field(default_factory=frozenset)

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return one stage that keeps every patch before these layers."""
        cuts = tuple(Cut(layer, shape.patches) for layer in self.before)
        return (Stage(seam=self.seam, reduce=_keep_all, cuts=cuts, needs=self.needs),)

    def guide(self, words: Words) -> PseudoCLS:
        """Return the visual CLS: reading the question is no work of the probe's."""
        return PseudoCLS(words.projected_cls, [])


def _keep_all(view: View, n: int) -> Reduced:
    return keep_all(view)


class Unread:
    """A tokenizer that reads nothing, since `KeepAll` needs no question."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Return no text."""
        return ""


def build(widths: Widths, layers: int, device: torch.device) -> LlavaForConditionalGeneration:
    """Return a random LLaVA: `layers` in the ViT, all read, and one more in the LLM, so that a cut can follow them."""
    config = RANDOM["random:llava-1.5-7b"]()
    vision, text = config.vision_config, config.text_config
    vision.hidden_size, vision.num_attention_heads, vision.intermediate_size = (
        widths.vit,
        widths.vit_heads,
        widths.vit_mlp,
    )
    text.hidden_size, text.num_attention_heads, text.intermediate_size = widths.llm, widths.llm_heads, widths.llm_mlp
    text.num_key_value_heads, text.head_dim = widths.llm_heads, widths.llm // widths.llm_heads
    vision.num_hidden_layers, text.num_hidden_layers = layers, layers + 1
    config.vision_feature_layer = -1
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


def vit_variants(model: Any, layers: int) -> Variants:
    """Return the ways to run the ViT."""
    tower = model.model.vision_tower
    side = tower.config.image_size
    pixels = torch.randn(1, 3, side, side, device=model.device, dtype=model.dtype)
    run = partial(tower, pixel_values=pixels)

    @contextmanager
    def probed(before: tuple[int, ...], needs: frozenset[Need]) -> Iterator[Call]:
        with attach(model, KeepAll(seam="vit", before=before, needs=needs)):
            yield run

    every = tuple(range(1, layers + 1))
    return {
        "plain": partial(_plain, run),
        "cut": partial(probed, every, frozenset()),
        "row": partial(probed, every, frozenset({"cls_row"})),
        "rollout": partial(probed, every[-1:], frozenset({"cls_rollout", "value_norm"})),
        "eager": partial(_eager, tower, run, layers),
    }


def llm_variants(model: Any, layers: int, tokens: int) -> Variants:
    """Return the ways to run the LLM on so many tokens.

    The prompt's text but its last token stands before the image, where a rollout of the image has to go through it.
    """
    core, device = model.model, model.device
    side = core.vision_tower.config.image_size
    pixels = torch.randn(1, 3, side, side, device=device, dtype=model.dtype)
    image, patches = model.config.image_token_id, model.config.image_seq_length
    ids = torch.full((1, tokens), 5, device=device)
    ids[:, -1 - patches : -1] = image

    def prefill() -> Call:
        """Encode the image, which is not measured, and return the rest, as `generate` does."""
        encoded = {"image": core.get_image_features(pixel_values=pixels, return_dict=True)}
        mask = torch.ones_like(ids)
        return lambda **more: core(
            input_ids=ids, attention_mask=mask, mm_encoder_outputs=dict(encoded), use_cache=True, **more
        )

    @contextmanager
    def plain() -> Iterator[Call]:
        yield prefill()

    @contextmanager
    def probed(before: tuple[int, ...], needs: frozenset[Need]) -> Iterator[Call]:
        with attach(model, KeepAll(seam="llm", before=before, needs=needs), tokenizer=Unread()):  # type: ignore[arg-type]
            yield prefill()

    @contextmanager
    def eager() -> Iterator[Call]:
        with _eager(core.language_model, prefill(), layers + 1) as call:
            yield call

    every = tuple(range(1, layers + 1))
    return {
        "plain": plain,
        "cut": partial(probed, every, frozenset()),
        "row": partial(probed, every, frozenset({"last_row"})),
        "rider": partial(probed, every[-1:], frozenset({"cls"})),
        "rollout": partial(probed, every[-1:], frozenset({"rider_rollout", "value_norm"})),
        "eager": eager,
    }


@contextmanager
def _plain(run: Call) -> Iterator[Call]:
    yield run


@contextmanager
def _eager(tower: Any, run: Callable[..., Any], layers: int) -> Iterator[Call]:
    def call() -> Any:
        output = run(output_attentions=True)
        assert len(output.attentions) == layers and output.attentions[0] is not None
        return output

    tower.set_attn_implementation("eager")
    try:
        yield call
    finally:
        tower.set_attn_implementation("sdpa")


def timed(device: torch.device, call: Call) -> float:
    """Return a call's seconds: on CUDA between two events, the device being idle at the start; else of CPU time.

    One thread's CPU time is the time it would take on an idle machine, whatever others do on this one.
    """
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        output = call()
        end.record()
        torch.cuda.synchronize(device)
        seconds = start.elapsed_time(end) / 1000
    else:
        began = time.process_time()
        output = call()
        seconds = time.process_time() - began
    del output
    return seconds


def peak_bytes(device: torch.device, call: Call) -> int:
    """Return the most bytes that torch's allocator held during a call beyond those it held before.

    On the CPU from the allocator's own events, in order: exact, the same in every run, and with what kernels allocate
    inside, as on CUDA; only what MKL and oneDNN take for themselves is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        output = call()
        torch.cuda.synchronize(device)
        del output
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints a line whenever a profile starts and ends
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        output = call()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    held = np.cumsum([0, *(event.nbytes() for event in events)])
    del output
    return int(held.max())


@dataclass(frozen=True, kw_only=True)
class Run:
    """One tower on so many tokens, the ways to run it, and what was found."""

    tower: str
    width: int
    tokens: int
    layers: int  # probed
    eager_layers: int  # whose attention eager gives
    variants: Variants
    peaks: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def note_peaks(self, device: torch.device) -> None:
        """Measure every variant's peak."""
        for name, variant in self.variants.items():
            with variant() as call:
                self.peaks[name] = peak_bytes(device, call)

    def note_seconds(self, device: torch.device, repeats: int) -> None:
        """Time the variants by turns, a round's order being the reverse of the last one's; the first round warms up."""
        for turn in range(1 + repeats):
            for name in list(self.variants)[:: 1 if turn % 2 else -1]:
                with self.variants[name]() as call, device_to_itself(device):
                    seconds = timed(device, call)
                if turn:
                    self.seconds[name].append(seconds)

    def record(self) -> dict[str, Any]:
        """Return what was found, with the ratios.

        Both extras are of `layers` layers: eager's, which takes every layer there is, is scaled down. A round's time is
        compared with the same round's plain run, and eager's with its median over the rounds. "row alone" is what the
        row adds to the cuts that ask for it.
        """
        share = self.layers / self.eager_layers
        plain = np.array(self.seconds["plain"])
        extra = {name: np.array(taken) - plain for name, taken in self.seconds.items() if name != "plain"}
        extra_bytes = {name: peak - self.peaks["plain"] for name, peak in self.peaks.items() if name != "plain"}
        extra["row alone"] = extra["row"] - extra["cut"]
        extra_bytes["row alone"] = extra_bytes["row"] - extra_bytes["cut"]
        eager_seconds, eager_bytes = float(np.median(extra["eager"])) * share, extra_bytes["eager"] * share
        probes = [name for name in extra if name != "eager"]
        return {
            "tower": self.tower,
            "width": self.width,
            "tokens": self.tokens,
            "layers": self.layers,
            "eager_layers": self.eager_layers,
            "seconds": {name: spread(tuple(taken)) for name, taken in self.seconds.items()},
            "extra_seconds": {name: spread(tuple(taken.tolist())) for name, taken in extra.items()},
            "peak_bytes": self.peaks,
            "extra_bytes": extra_bytes,
            "time_ratio": {name: spread(tuple((extra[name] / eager_seconds).tolist())) for name in probes},
            "bytes_ratio": {name: extra_bytes[name] / eager_bytes for name in probes},
        }


class OneToken(nn.Module):
    """A module for one token, which the pseudo CLS is on its way through the LLM; more of them pass by."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, T, D], through the module where T is 1."""
        return self.module(x) if x.shape[1] == 1 else x


def leave_out_weights(model: Any) -> None:
    """Let all tokens of a prompt, and all patches, pass by the MLPs and the attention's projections.

    What they do is the same in every variant and takes nine tenths of the time, so that its noise would hide what
    differs. Queries, keys and values are as many and as wide without them.
    """
    for layer in (*model.model.vision_tower.encoder.layers, *model.model.language_model.layers):
        layer.mlp = OneToken(layer.mlp)
        for name, module in list(layer.self_attn.named_children()):
            setattr(layer.self_attn, name, OneToken(module))


def example(stage: Stage, entering: int, widths: Widths, device: torch.device) -> View:
    """Return a random view of so many tokens with what the stage needs, of the width where it runs."""
    width = {"image": 3 * 14 * 14, "vit": widths.vit, "input": widths.llm, "llm": widths.llm}[stage.seam]
    heads = widths.vit_heads if stage.seam == "vit" else widths.llm_heads
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    needs = stage.needs

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, *shape, device=device)

    return View(
        x=normal(entering, width).to(dtype),
        size=torch.ones(1, entering, device=device),
        attention=normal(entering).softmax(dim=-1) if needs & ATTENTION else None,
        rows=normal(LAYERS, entering).softmax(dim=-1) if needs & ROWS else None,
        value_norm=normal(entering).abs() if "value_norm" in needs else None,
        keys=normal(entering, width if "next_keys" in needs else width // heads) if needs & KEYS else None,
        cls=normal(width).to(dtype) if "cls" in needs else None,
        random=torch.rand(1, entering, device=device) if "random" in needs else None,
    )


def reductions(model: Any, widths: Widths, device: torch.device, repeats: int) -> tuple[list[float], list[Any]]:
    """Return the seconds of one LLM layer, and of every method's reductions their share of it, round by round."""
    language = model.model.language_model
    x = torch.randn(1, LAYER_TOKENS, widths.llm, device=device, dtype=model.dtype)
    embeddings = language.rotary_emb(x, torch.arange(LAYER_TOKENS, device=device)[None])
    layer = partial(language.layers[0], x, position_embeddings=embeddings)

    shape = Shape(576, 23, 32)
    found: list[dict[str, Any]] = []
    calls: list[tuple[Call, list[float]]] = []
    for name, parameters in VARIANTS:
        entering, stages = shape.patches, []
        for stage in method(name, **parameters).stages(shape):
            cuts = []
            for cut in stage.cuts:
                taken: list[float] = []
                calls.append((partial(stage.reduce, example(stage, entering, widths, device), cut.tokens), taken))
                cuts.append({"layer": cut.layer, "entering": entering, "leaving": cut.tokens, "seconds": taken})
                entering = cut.tokens
            function = getattr(stage.reduce, "func", stage.reduce).__name__
            stages.append({"seam": stage.seam, "reduce": function, "cuts": cuts})
        found.append({"method": name, "parameters": parameters, "stages": stages})
    layer_seconds: list[float] = []
    with device_to_itself(device):
        for turn in range(1 + repeats):
            seconds = timed(device, layer)
            if turn:
                layer_seconds.append(seconds)
            for call, taken in calls:
                seconds = timed(device, call)
                if turn:
                    taken.append(seconds)
    for stage in (stage for each in found for stage in each["stages"]):
        for cut in stage["cuts"]:
            shares = np.array(cut.pop("seconds")) / np.array(layer_seconds)
            cut["share"] = spread(tuple(shares.tolist()))
        stage["worst"] = max(stage["cuts"], key=lambda cut: cut["share"]["median"])
        stage["all_cuts_share"] = sum(cut["share"]["median"] for cut in stage["cuts"])
    return layer_seconds, found


@torch.inference_mode()
def benchmark(
    device: torch.device, *, widths: Widths = Widths(), layers: int = LAYERS, repeats: int = REPEATS
) -> dict[str, Any]:
    """Return everything measured, raw samples included, with what it was measured on."""
    torch.manual_seed(0)
    model = build(widths, layers, device)
    runs = [
        Run(
            tower="vit",
            width=widths.vit,
            tokens=577,
            layers=layers,
            eager_layers=layers,
            variants=vit_variants(model, layers),
        )
    ]
    runs += [
        Run(
            tower="llm",
            width=widths.llm,
            tokens=tokens,
            layers=layers,
            eager_layers=layers + 1,
            variants=llm_variants(model, layers, tokens),
        )
        for tokens in TOKENS
    ]
    cuda = device.type == "cuda"
    layer_seconds, found = reductions(model, widths, device, repeats)
    for run in runs:
        run.note_peaks(device)
    if not cuda:
        leave_out_weights(model)
    for run in runs:
        run.note_seconds(device, repeats)
    return {
        "provenance": provenance(device),
        "settings": {
            "widths": asdict(widths),
            "layers": layers,
            "repeats": repeats,
            "dtype": str(model.dtype).removeprefix("torch."),
            "clock": "CUDA events" if cuda else "CPU time of the process",
            "weights_timed": cuda,
            "peak": "torch.cuda.max_memory_allocated" if cuda else "allocator events of torch.profiler",
        },
        "probe": [run.record() for run in runs],
        "layer": {"tokens": LAYER_TOKENS, "seconds": spread(tuple(layer_seconds))},
        "reduce": found,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    table = Table(
        title=f"Extra over plain SDPA as a ratio of eager's extra; goal ≤ {PROBE_GOAL:g} of each, for a row alone"
    )
    for column in (
        "tower",
        "tokens",
        "probe",
        "time",
        "IQR",
        "bytes",
        "probe ms",
        "eager ms",
        "probe MiB",
        "eager MiB",
    ):
        table.add_column(column, justify="left" if column in ("tower", "probe") else "right")
    for run in result["probe"]:
        share = run["layers"] / run["eager_layers"]
        for kind in run["time_ratio"]:
            ratio, extra, size = run["time_ratio"][kind], run["extra_seconds"], run["extra_bytes"]
            table.add_row(
                f"{run['tower']} {run['width']}",
                str(run["tokens"]),
                kind,
                f"{ratio['median']:.3f}",
                f"{ratio['q25']:.3f} to {ratio['q75']:.3f}",
                f"{run['bytes_ratio'][kind]:.3f}",
                f"{1000 * extra[kind]['median']:.1f}",
                f"{1000 * extra['eager']['median'] * share:.1f}",
                f"{size[kind] / 2**20:.1f}",
                f"{size['eager'] * share / 2**20:.1f}",
            )
    console.print(table)

    table = Table(
        title=f"A method's reduction as a share of one LLM layer's time; goal ≤ {REDUCE_GOAL:.0%} at its worst cut"
    )
    for column in ("method", "seam", "reduce", "worst cut", "share", "IQR", "all cuts", "goal"):
        table.add_column(column, justify="right" if column in ("share", "all cuts") else "left")
    for each in result["reduce"]:
        others = [f"{key}={value}" for key, value in each["parameters"].items() if key != "tokens"]
        adaptive = ["adaptive"] if each["method"] != "full" and "tokens" not in each["parameters"] else []
        label = " ".join([each["method"], *others, *adaptive])
        if not each["stages"]:
            table.add_row(label, "—", "—", "—", "—", "—", "—", "met")
        for stage in each["stages"]:
            worst = stage["worst"]
            share = worst["share"]
            table.add_row(
                label,
                stage["seam"],
                stage["reduce"],
                f"{worst['entering']} → {worst['leaving']}",
                f"{share['median']:.2%}",
                f"{share['q25']:.2%} to {share['q75']:.2%}",
                f"{stage['all_cuts_share']:.2%}",
                "met" if share["median"] <= REDUCE_GOAL else "missed",
            )
    console.print(table)
    median = result["layer"]["seconds"]["median"]
    where = result["provenance"]
    console.print(
        f"One LLM layer on {result['layer']['tokens']} tokens: {1000 * median:.2f} ms. {where['cpu_or_gpu_name']}, "
        f"{where['host_threads']} threads, {result['settings']['dtype']}, torch {where['torch']}, "
        f"transformers {where['transformers']}, commit {where['git_commit']}."
    )


def main(
    out: Annotated[Path | None, typer.Option(help="results/benchmarks/probe-<device>.json unless given")] = None,
    device: str = "cpu",
    layers: Annotated[int, typer.Option(min=1, help="layers that are probed")] = LAYERS,
    repeats: Annotated[int, typer.Option(min=1, help="timed rounds")] = REPEATS,
    threads: Annotated[int, typer.Option(min=1, help="on the CPU")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="tiny widths and two rounds, to see that it works")] = False,
) -> None:
    """Measure, write the JSON and print the tables."""
    chosen = torch.device(device)
    torch.set_num_threads(threads)
    result = (
        benchmark(chosen, widths=TINY, layers=layers, repeats=2)
        if quick
        else benchmark(chosen, layers=layers, repeats=repeats)
    )
    name = f"probe-{chosen.type}{'-quick' if quick else ''}.json"
    path = out or Path(__file__).parents[1] / "results" / "benchmarks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    show(result, Console(width=150))
    print(path)


if __name__ == "__main__":
    typer.run(main)
