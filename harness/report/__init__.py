"""From a sweep's results folder to a markdown report with figures, and a page of the same. Imports no torch."""

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

from harness.errors import VtbenchError
from harness.fresh import check_place
from harness.reading import LARGEST_RECORD, plain
from harness.report import figures
from harness.report.cells import document
from harness.report.compared import Compared
from harness.report.differences import differences
from harness.report.export import write_tables
from harness.report.footer import failure_list, off_scale, provenance, state
from harness.report.page import render
from harness.report.published import published_tables
from harness.report.results import Results, read
from harness.report.tables import SAME, SHARED, TIED, grid_table, grids, main_table, scores_table, text
from harness.shown import Shown

MOST_GRIDS = 40
POCKET = (
    "The model is **pocket**, a small embedded LLaVA on procedurally made pictures. Its numbers compare methods on "
    "pocket alone and say nothing about LLaVA-1.5.\n"
)
TIMES = (
    "Time is that of one prompt alone: a prefill with its image encoding. Vision is the ViT and the projector, with "
    "what a method does there; the pruner's part, there and in the LLM, is the median difference from the same cuts "
    "made with indices that are known beforehand; less than 0 is noise. Of several tasks each number is the mean of "
    "theirs.\n"
)
NOT_ALONE = (
    f"{SHARED}: something else used the device meanwhile, so that times may be too long, and a difference of them "
    "either way.\n"
)
READING = (
    "Avg. is the mean over tasks of the mean score, with its 95 % bootstrap interval over images; the best of a budget "
    f"is bold. Avg. rate is the mean over tasks of the task's score against the full model's, without tasks on which "
    f"that scores 0. {SAME}: not distinguishable from the full model; {TIED}: not distinguishable from the best of its "
    "budget, which does not say that they are equal (McNemar's exact test on the same samples; where an image has "
    "several, tasks have unequally many or scores are graded the sign-flip permutation test by image, a p below 0.0001 "
    "by its normal approximation; Holm's correction over all comparisons of averages, those with a best counted as if "
    "each were compared with each; 5 %; each task's p is in the JSON). "
    "The percentage beside the FLOPs is the change from the full model. KV MB and tokens count visual tokens. "
    "Tokens are realised: those that entered the LLM, and their mean over its layers.\n"
)
SCORES = (
    "The mean score of a task's samples, which its own metric is not always (F1, a sum); bootstrap over images. Of a "
    "score of 0 or 100 every resample is the same: that its interval has no width does not make it sure. "
    f"{SAME}: not distinguishable from the full model's on the same samples, as above, with a correction of their own "
    "over all rows and tasks, which few samples of a task seldom pass: it does not say that the scores are equal.\n"
)
SPENT = (
    "The percentage beside the FLOPs is the change from the full model. KV MB and tokens count visual tokens. Tokens "
    "are realised: those that entered the LLM, and their mean over its layers.\n"
)
COSTS = (
    "Costs of a prompt with one image and so many text tokens, one of them in front of the image. The percentage "
    "beside the FLOPs is the change from the full model. KV MB and tokens count visual tokens: those that enter the "
    "LLM, and their mean over its layers.\n"
)


def write(
    sweep_dir: Path,
    out: Path,
    shown: Shown | None = None,
    *,
    trials: Collection[str] | None = None,
    formats: Collection[str] = (),
) -> Path:
    """Write `<out>/<sweep>.md`, `.html`, its numbers as `.json`, and a folder of figures; same results, same bytes.

    shown: by default what the latest run of the sweep left; trials: ids of those to report, for the folder may hold
    older ones; by default all. formats: of `export.FORMATS`, in which its tables are written beside the figures.
    Errors: VtbenchError when there are no results; then nothing is written. OSError where it cannot be written.
    """
    results = read(sweep_dir, trials)
    check_place(sweep_dir, out)
    shown = _left(sweep_dir / "sweep.json") if shown is None else shown
    asked = shown.trials if trials is None else trials
    compared = Compared(results)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as partial:
        folder = Path(partial) / results.name
        folder.mkdir()
        body = _body(results, compared, folder, shown, asked)
        markdown = Path(partial) / "report.md"
        markdown.write_text(body, encoding="utf-8")
        numbers = Path(partial) / "report.json"
        numbers.write_text(document(results, compared, shown.convention, asked), encoding="utf-8")
        page = Path(partial) / "report.html"
        page.write_text(render(results, body, Path(partial)), encoding="utf-8")
        for kind in formats:
            write_tables(body, folder, kind)
        shutil.rmtree(out / results.name, ignore_errors=True)
        _put(folder, out / results.name)
        _put(page, out / f"{results.name}.html")
        _put(numbers, out / f"{results.name}.json")
        _put(markdown, out / f"{results.name}.md")
    return out / f"{results.name}.md"


def _put(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:  # it names the source, which nobody knows
        raise OSError(error.errno, error.strerror, str(target)) from None


def _left(path: Path) -> Shown:
    try:
        return Shown.model_validate_json(plain(path, LARGEST_RECORD).read_bytes())
    except FileNotFoundError:
        return Shown()
    except (ValueError, OSError, VtbenchError):
        raise VtbenchError(f"{path}: is not what vtbench run leaves; remove it, or name the sweep's file") from None


def _body(results: Results, compared: Compared, folder: Path, shown: Shown, asked: Collection[str]) -> str:
    link = quote(results.name)
    parts = [f"# {text(results.name)}\n"]
    if shown.description:
        parts.append(f"{text(shown.description)}\n")
    parts += [done] if (done := state(results, asked)) else []
    if any(row.model == "pocket" for row in results.rows):
        parts.append(POCKET)
    if shown.published and results.rows:
        parts += [f"## Published beside ours, convention `{shown.convention}`\n"]
        parts.append(published_tables(results, compared, shown.published, shown.convention, asked))
    if results.rows:
        title = "Accuracy and cost" if results.asks("accuracy") else "Cost"
        parts += [f"## {title}\n", main_table(results, compared, shown.convention)]
        parts.append(READING if results.asks("accuracy") else COSTS if results.asked else SPENT)
        parts += [left_out] if (left_out := off_scale(results)) else []
        parts += [TIMES] if results.asks("latency") else []
        parts += [NOT_ALONE] if not all(row.alone for row in results.rows) else []
    drawn = figures.section(results, compared, folder, link, shown.convention)
    parts += [drawn] if drawn else []
    kept = figures.kept_section(results, compared, folder, link)
    parts += [kept] if kept else []
    if compared.average:
        scores = scores_table(results, compared, shown.convention)
        parts += ["## Scores with 95 % intervals\n", scores, SCORES] if scores else []
        apart = differences(results, compared)
        parts += ["## Which differences are real\n", apart] if apart else []
        found = grids(results, compared)
        if found:
            parts += ["## Grids\n", "Average (95 % interval); the best is bold.\n"]
        if len(found) > MOST_GRIDS:
            parts += [f"The first {MOST_GRIDS} of {len(found)} grids; the JSON beside this report has all.\n"]
        for number, grid in enumerate(found[:MOST_GRIDS], start=1):
            parts.append(grid_table(grid))
            if min(map(len, grid.values)) > 1:
                figures.heat_map(grid, folder / f"grid_{number}.png")
                parts.append(f"![{text(grid.title)}]({link}/grid_{number}.png)\n")
    if results.failures or results.unreadable:
        parts += ["## Failed or unreadable\n", failure_list(results)]
    parts += ["## Provenance\n", provenance(results, shown.convention)]
    return "\n".join(parts)
