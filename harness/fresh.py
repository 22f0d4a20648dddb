"""What is asked of a report before it is written: whether its place is free, and whether it is fresh and can stay."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from harness.errors import VtbenchError
from harness.papers import PUBLISHED
from harness.reading import LARGEST_RECORD, plain

CODE = Path(__file__).parent
KINDS = {".py", ".js", ".css", ".html", ".jinja"}
WRITTEN = {".png", ".csv", ".tex"}  # into the folder beside a report


def check_place(sweep_dir: Path, out: Path) -> None:
    """Refuse a place where the report's folder of figures would replace what no report wrote. Errors: VtbenchError."""
    sweep, target = sweep_dir.resolve(), (out / sweep_dir.resolve().name).resolve()
    if target.is_relative_to(sweep) or sweep.is_relative_to(target):
        raise VtbenchError(f"{target}: has the sweep's results; a report needs another folder")
    foreign = [path.name for path in target.iterdir() if path.suffix not in WRITTEN] if target.is_dir() else []
    if foreign:
        raise VtbenchError(f"{target}: has {sorted(foreign)[0]}, which no report wrote; a report needs another folder")


def fresh_report(folder: Path, shown: dict[str, Any], reports: Path) -> Path | None:
    """Return the report of a sweep's folder, None if it would be another one when written now.

    shown: what `Store.describe` would leave. Looks at times, of the results, of the papers' figures and of all code of
    the harness, for a report takes from many files of it; whether the report's own figures are there; and whether it is
    of these very trials, not of those in another folder.
    """
    report = reports / f"{folder.name}.md"
    written = [report, reports / f"{folder.name}.html", reports / f"{folder.name}.json"]
    try:
        if _json(folder / "sweep.json") != json.loads(json.dumps(shown)):
            return None
        made_of = [folder / "sweep.json", *folder.glob("*/record.json"), *folder.glob("*/failure.json")]
        started = [_json(folder / trial / "record.json")["provenance"]["started"] for trial in shown["trials"]]
        if _told(written[2], shown["trials"]) != started:
            return None
        results = max(map(_moment, made_of))
        gathered = _moment(folder / "trials.parquet") >= results
        oldest = min(map(_moment, [*written, *_figures(report)]))
        return report if gathered and oldest >= max(results, *map(_moment, _sources())) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, VtbenchError):
        return None


def _sources() -> Iterator[Path]:
    yield from PUBLISHED.glob("*.csv")
    yield from (path for path in CODE.rglob("*") if path.suffix in KINDS)


def _figures(report: Path) -> list[Path]:
    link = re.escape(quote(report.stem))
    names = re.findall(rf"\]\({link}/([^/)]+)\)", report.read_text(encoding="utf-8"))
    return [report.parent / report.stem / unquote(name) for name in names]


def _told(report: Path, trials: Iterable[str]) -> list[Any]:
    told = json.loads(report.read_text(encoding="utf-8"))["trials"]
    return [told[trial]["started"] if trial in told else None for trial in trials]


def _json(path: Path) -> Any:
    return json.loads(plain(path, LARGEST_RECORD).read_text(encoding="utf-8"))


def _moment(path: Path) -> int:
    return path.stat().st_mtime_ns
