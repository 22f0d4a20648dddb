"""The command line, `vtbench run`, `report`, `compare`, `flops` and others. Imports wait for their command."""

import json
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import VtbenchError

if TYPE_CHECKING:
    from harness.costs import Costs
    from harness.spec import Sweep, Trial
    from harness.store import Store
    from methods.interface import Shape, Stage

app = typer.Typer(
    help="Benchmark visual-token pruning and merging in large vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A sweep file, see sweeps/README.md.")]
Results = Annotated[str, typer.Option(help="The folder of all sweeps' results, or a URL that fsspec knows.")]
Reports = Annotated[Path, typer.Option(help="The folder of all reports.")]
Yes = Annotated[bool, typer.Option("--yes", help="A grid of more than 10,000 trials is meant.")]


def main() -> None:
    """Run the command line: a mistake is one line and exit code 2."""
    try:
        app()
    except VtbenchError as error:
        print(f"vtbench: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def run(
    file: File,
    out: Results = "results",
    address: Annotated[str, typer.Option(envvar="RAY_ADDRESS", help="A Ray cluster, or local.")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the trials.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples a task, instead of the file's.")] = None,
    yes: Yes = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also trials that failed before.")] = False,
    reports: Reports = Path("reports"),
) -> None:
    """Run what is missing of a sweep, then write its report. Exit code 1 when a trial failed."""
    from harness.spec import MANY, load_sweep

    sweep = load_sweep(file, limit=limit, most=None if yes else MANY, look=True)

    from harness.check import check
    from harness.remote import opened
    from harness.run import run_sweep

    with opened(out, sweep.name) as store:
        if dry_run:
            check(sweep)
            print_trials(sweep, store)
        else:
            run_sweep(sweep, store, address, reports, retry_failed=retry_failed)


@app.command()
def report(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP_OR_FILE", help="A sweep's name or its file.")],
    results: Results = "results",
    out: Reports = Path("reports"),
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="csv or latex: its tables so too, beside the figures.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Write a sweep's report from its results. Of a file, what it asks for; by name, all that is there."""
    from harness.remote import sweep_folder
    from harness.report import write
    from harness.report.export import FORMATS
    from harness.run import cannot_write, write_report

    for name in formats or ():
        if name not in FORMATS:
            raise VtbenchError(f"--format: {name!r} is not possible; allowed are {', '.join(FORMATS)}")

    try:
        if Path(sweep).suffix in (".yaml", ".yml"):
            from harness.spec import MANY, load_sweep

            loaded = load_sweep(Path(sweep), most=None if yes else MANY)
            with sweep_folder(results, loaded.name) as folder:
                print(write_report(loaded, folder, out, formats or ()))
        else:
            with sweep_folder(results, sweep) as folder:
                print(write(folder, out, formats=formats or ()))
    except OSError as error:
        raise VtbenchError(cannot_write(str(out), error)) from None


@app.command()
def compare(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's name.")],
    one: Annotated[str, typer.Argument(metavar="A", help="name or name:key=value,key=value")],
    other: Annotated[str, typer.Argument(metavar="B", help="What it is compared with.")],
    results: Results = "results",
) -> None:
    """Compare two methods of a sweep on the same samples, with examples that one alone gets right."""
    from harness.remote import sweep_folder
    from harness.report.compare import compare
    from harness.report.results import read

    with sweep_folder(results, sweep) as folder:
        print(compare(read(folder), one, other))


@app.command()
def published() -> None:
    """Check the papers' printed figures: averages and percentages against their cells, and table against table."""
    from harness.report.published import page

    print(page(), end="")


@app.command()
def flops(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A known shape, or a folder with a config.")],
    method: Annotated[str, typer.Option(help="See vtbench methods.")] = "full",
    tokens: Annotated[int | None, typer.Option(help="The method's budget of visual tokens.")] = None,
    text_tokens: Annotated[int, typer.Option(help="All other tokens of the prompt.")] = 64,
    convention: Annotated[str, typer.Option(help="What is counted, as whose papers.")] = "flops",
    given: Annotated[list[str] | None, typer.Option("--set", help="key=value, a method's parameter.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count what a prompt with one image costs a model under a method. Needs no weights."""
    from harness.costs import costs

    given = given or []
    found = costs(model, method=method, tokens=tokens, text_tokens=text_tokens, convention=convention, given=given)
    if as_json:
        print(json.dumps(found.record()))
    else:
        print_costs(found, given)


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the methods: paper, where they cut, what they do, parameters."""
    from harness.catalogue import catalogue

    entries = catalogue()
    if as_json:
        print(json.dumps(entries, indent=2))
        return
    for entry in entries:
        trained = ", trained" if entry["trained"] else ""
        print(f"{entry['name']:<12}{entry['paper']}; cuts at: {', '.join(entry['seams']) or 'nothing'}{trained}")
        print(f"{'':<12}{entry['summary']}")
        for parameter in entry["parameters"]:
            value = parameter["default"]
            written = value if isinstance(value, str) else json.dumps(value)
            default = "required" if parameter["required"] else f"default {written}"
            limits = f" ({parameter['allowed']})" if isinstance(parameter["allowed"], str) else ""
            print(f"{'':<12}  {parameter['name']}: {parameter['type']}{limits}, {default}")


@app.command()
def show(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    question: Annotated[str, typer.Option(help="What the model is asked about it.")],
    method: Annotated[list[str], typer.Option(help="name or name:key=value,key=value; once for each picture.")],
    tokens: Annotated[int | None, typer.Option(min=1, help="The budget of methods that set none themselves.")] = None,
    out: Annotated[Path, typer.Option(help="Where the figure goes: a png, pdf or svg.")] = Path("kept.png"),
    model: Annotated[str, typer.Option(help="pocket, a local folder or a hub id.")] = "pocket",
    text_encoder: Annotated[str | None, typer.Option(help="The CLIP that reads the question.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="For methods that draw.")] = 0,
) -> None:
    """Draw the patches that methods keep of an image, with the words that guide them."""
    from harness import show

    show.show(image, question, method, out, tokens=tokens, model=model, text_encoder=text_encoder, seed=seed)
    print(out)


def print_trials(sweep: "Sweep", store: "Store") -> None:
    """Print every trial with its id, its state and the visual tokens that enter each layer.

    From the first cut on that adapts to the image they are upper bounds.
    """
    from harness.model.load import shape_of
    from methods.schedule import tokens_per_layer

    trials = sweep.trials()
    done = sum(store.done(trial.id) for trial in trials)
    print(f"{sweep.name}: {len(trials)} trials, {done} done, {len(trials) - done} to run")
    shapes = {name: shape_of(name, trust_remote_code=sweep.axes.trust_remote_code) for name in sweep.axes.model}
    rows = [("id", "state", "model", "trial", "tokens into ViT layers", "tokens into LLM layers")]
    for trial in trials:
        shape = shapes[trial.model]
        stages = trial.make_method().stages(shape)
        tokens = tokens_per_layer(stages, shape)
        vit, llm = exact_layers(stages, shape)
        written = runs(tokens.vit, exact=vit), runs(tokens.llm, exact=llm)
        rows.append((trial.id, state(trial, store), trial.model, trial.label, *written))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_costs(found: "Costs", given: list[str]) -> None:
    """Print every part's cost beside the full model's, and the visual tokens that enter each layer."""
    from rich.console import Console
    from rich.table import Table

    from harness.metrics.conventions import CONVENTIONS

    rule = CONVENTIONS[found.convention]
    name = " ".join([found.method.name, *given])
    prefix, scale = ("T", 1e12) if found.full.total(found.convention) > 1e10 else ("G", 1e9)
    unit = f"{prefix}FLOPs" if rule.per_mac == 2 else f"{prefix}MACs, which papers call {prefix}FLOPs"
    table = Table("part", "full", f"{name}, at most" if found.adaptive else name, "less")
    for part, full, here in found.rows():
        less = f"{100 * (1 - here / full):.1f} %" if full else ""
        style = "bold" if part == "total" else None
        table.add_row(part, f"{full / scale:.4f}", f"{here / scale:.4f}", less, style=style)
    for column in table.columns[1:]:
        column.justify = "right"
    print(f"{found.model}: prefill of one image and {found.text_tokens} text tokens, 1 before the image, in {unit}")
    print(f"convention {found.convention}: {rule.source}")
    Console(highlight=False, markup=False).print(table)
    vit, llm = exact_layers(found.method.stages(found.shape), found.shape)
    print(f"visual tokens into ViT layers: {runs(found.entering.vit, exact=vit)}")
    print(f"visual tokens into LLM layers: {runs(found.entering.llm, exact=llm)}")
    if found.adaptive:
        print("The method adapts to each image: it costs at most this.")


def state(trial: "Trial", store: "Store") -> str:
    """Return done, failed or waiting."""
    if store.done(trial.id):
        return "done"
    return "failed" if (store.folder / trial.id / "failure.json").exists() else "waiting"


def exact_layers(stages: "Iterable[Stage]", shape: "Shape") -> tuple[int, int]:
    """Return in how many ViT and LLM layers, from the first, no cut has adapted to the image."""
    adaptive = [(stage.seam, cut.layer + stage.inside) for stage in stages if stage.adaptive for cut in stage.cuts]
    vit = min((layer for seam, layer in adaptive if seam == "vit"), default=shape.vit_layers)
    llm = min((layer if seam == "llm" else 0 for seam, layer in adaptive), default=shape.llm_layers)
    return vit, llm


def runs(lengths: tuple[int, ...], exact: int | None = None) -> str:
    """Write 576, 576, 64 as `576×2 64`; those behind the `exact` first ones are upper bounds: `576 ≤145×2`."""
    exact = len(lengths) if exact is None else exact
    written = []
    for (n, is_exact), same in groupby(enumerate(lengths), lambda entry: (entry[1], entry[0] < exact)):
        times = len(list(same))
        written.append(f"{'' if is_exact else '≤'}{n}" + (f"×{times}" if times > 1 else ""))
    return " ".join(written)
