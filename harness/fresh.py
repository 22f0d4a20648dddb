"""Whether a sweep's report is newer than all it is made of, so that a run that has nothing to do can leave it."""

import json
from pathlib import Path
from typing import Any


def fresh_report(folder: Path, shown: dict[str, Any], reports: Path) -> Path | None:
    """Return the report of a sweep's folder, None if it would be another one when written now.

    shown: what `Store.describe` would leave. Looks at times, of the results and of the code that writes reports.
    """
    report = reports / f"{folder.name}.md"
    written = [report, reports / f"{folder.name}.html", reports / f"{folder.name}.json"]
    code = [path for path in Path(__file__).with_name("report").rglob("*.*") if path.suffix != ".pyc"]
    try:
        if json.loads((folder / "sweep.json").read_text(encoding="utf-8")) != json.loads(json.dumps(shown)):
            return None
        made_of = [folder / "sweep.json", *folder.glob("*/record.json"), *folder.glob("*/failure.json")]
        results = max(map(_moment, made_of))
        gathered = _moment(folder / "trials.parquet") >= results
        oldest = min(map(_moment, written))
        return report if gathered and oldest >= max(results, *map(_moment, code)) else None
    except (OSError, ValueError):
        return None


def _moment(path: Path) -> int:
    return path.stat().st_mtime_ns
