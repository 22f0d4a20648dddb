"""Whether a sweep's report is newer than all it is made of, so that a run that has nothing to do can leave it."""

import json
from pathlib import Path
from typing import Any


def fresh_report(folder: Path, shown: dict[str, Any], reports: Path) -> Path | None:
    """Return the report of a sweep's folder, None if it would be another one when written now.

    shown: what `Store.describe` would leave. Looks at times, of the results and of the code that writes reports.
    """
    report = reports / f"{folder.name}.md"
    written = [report, reports / f"{folder.name}.html", reports / f"{folder.name}.json", folder / "trials.parquet"]
    try:
        if json.loads((folder / "sweep.json").read_text(encoding="utf-8")) != json.loads(json.dumps(shown)):
            return None
        results = [folder / "sweep.json", *folder.glob("*/record.json"), *folder.glob("*/failure.json")]
        code = [path for path in Path(__file__).with_name("report").rglob("*.*") if path.suffix != ".pyc"]
        newest = max(path.stat().st_mtime_ns for path in [*results, *code])
        return report if min(path.stat().st_mtime_ns for path in written) >= newest else None
    except (OSError, ValueError):
        return None
