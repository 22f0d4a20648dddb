"""What stands around the tables: how far the sweep is, failed trials, and where the numbers come from."""

from collections import defaultdict
from collections.abc import Collection

from harness.metrics.conventions import CONVENTIONS
from harness.report.results import Results, dig, rank
from harness.report.rows import row_name, varied
from harness.report.tables import NOT_MEASURED, short_names, text

MOST = 30  # entries of a list; the JSON has all


def state(results: Results, asked: Collection[str]) -> str:
    """Return how far the sweep is and which rows lack tasks; empty when it is done."""
    found = results.state(asked)
    parts = []
    if found.done < found.asked:
        others = f" {found.others} more are from an earlier run." if found.others else ""
        parts.append(
            f"**{found.done} of {found.asked} trials done, {found.failed} failed, {found.not_run} not run.**{others}"
        )
    partial = [row for row in results.rows if any(record["scores"] for record in row.records) and results.lacks(row)]
    names = short_names(results.tasks)
    rows = [
        text(f"{row_name(results, row)} at {row.budget} ({', '.join(names[task] for task in results.lacks(row))})")
        for row in partial[:MOST]
    ]
    if rows:
        parts.append(
            f"Rows that lack tasks, so that their averages are over fewer: {'; '.join(rows)}{_more(len(partial))}."
        )
    return "\n\n".join(parts) + "\n" if parts else ""


def off_scale(results: Results) -> str:
    """Return which tasks the averages leave out; empty for none."""
    found = [text(name) for task, name in short_names(results.tasks).items() if task in results.off_scale]
    samples = "samples are scored outside 0 to 1, and nothing tells how much that is of a full mark"
    return f"Avg. and the comparisons leave out {', '.join(found)}: {samples}.\n" if found else ""


def failure_list(results: Results) -> str:
    """Return the failed trials and what could not be read, and why."""
    trials = [trial for trial, _ in results.failures]
    several = len({row.model for row in results.rows} | {trial["model"] for trial in trials if "model" in trial}) > 1
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    ran = [(each.method, each.parameters) for each in results.rows]
    for method, parameters in [*ran, *((trial["method"], trial["parameters"]) for trial in trials)]:
        for key, value in parameters.items():
            values[method, key].add(str(value))
    lines = []
    for trial, error in results.failures:
        method, tokens = trial["method"], trial["parameters"].get("tokens", "")
        budget = "adaptive" if tokens is None else tokens
        differs = [str(trial.get("model"))] if several else []
        for key, value in trial["parameters"].items():
            differs += [f"{key} {value}"] if key != "tokens" and len(values[method, key]) > 1 else []
        which = f" ({', '.join(differs)})" if differs else ""
        on = trial.get("task") or f"{trial.get('text_tokens')} text tokens"
        lines.append(f"- {text(f'{method} {budget}{which} on {on}: {error}')}")
    lines += [f"- {text(name)}: {text(why)}" for name, why in results.unreadable]
    more = _more(len(lines))
    return "\n".join([*lines[:MOST], *([f"- {more.strip()}"] if more else [])]) + "\n" if lines else ""


def _more(count: int) -> str:
    return f" and {count - MOST} more, which the JSON beside this report lists" if count > MOST else ""


def _parameters(results: Results, method: str) -> str:
    """Write the parameters that a method had throughout."""
    first = next(row.parameters for row in results.rows if row.method == method)
    same = [f"{key} {value}" for key, value in first.items() if key not in ("tokens", *varied(results)[method])]
    return text(f"{method} ({', '.join(same)})" if same else method)


def provenance(results: Results, convention: str) -> str:
    """Return where the numbers come from; values that differ between trials are all listed."""
    records = [record for row in results.rows for record in row.records]
    if not records:
        return "No trial is done.\n"

    def every(*path: str) -> str:
        found = {str(value): value for record in records if (value := dig(record, *path)) is not None}
        return ", ".join(text(value) for value in sorted(found.values(), key=rank)) or NOT_MEASURED

    shared = sum((record["latency"] or {}).get("exclusive") is False for record in records)
    started = sorted(str(record["provenance"]["started"]) for record in records)
    versions = ("vtbench", "python", "torch", "transformers", "lmms_eval", "fvcore")
    lines = {
        "trials": f"{len(records)} done, {len(results.failures)} failed; {text(started[0])} to {text(started[-1])}",
        "model": every("trial", "model"),
        "tasks": f"{every('trial', 'task')}; samples of each row: "
        + ", ".join(str(count) for count in sorted({len(row.samples) for row in results.rows})),
        "limit of samples a task": ", ".join(
            sorted({"all" if (limit := record["trial"]["limit"]) is None else str(limit) for record in records})
        ),
        "text tokens": every("trial", "text_tokens"),
        "device": f"{every('provenance', 'device')} ({every('provenance', 'cpu_or_gpu_name')})",
        "dtype, attention, torch.compile": "; ".join(every("trial", key) for key in ("dtype", "attention", "compile")),
        "seed": every("trial", "seed"),
        "parameters": "; ".join(_parameters(results, method) for method in varied(results)),
        "FLOPs": f"prefill, convention `{convention}` ({CONVENTIONS[convention].source}), counted by fvcore "
        f"over {every('flops', 'tokens_basis')}",
        "time": f"{every('latency', 'clock')}; trials that shared the device: {shared}",
        "memory": f"KV cache of visual tokens in bf16 by arithmetic; peak as {every('memory', 'peak_kind')}",
        "versions": ", ".join(f"{name} {every('provenance', name)}" for name in versions),
        "git commit": every("provenance", "git_commit"),
        "protocol": every("provenance", "protocol"),
    }
    asks = {"FLOPs": "flops", "time": "latency"}
    gone = {line for line, measure in asks.items() if not results.asks(measure)}
    gone |= {"tasks", "limit of samples a task"} if results.asked else {"text tokens"}
    if not any(results.asks(measure) for measure in ("accuracy", "latency")):
        gone |= {"device", "dtype, attention, torch.compile", "seed"}  # nothing ran
    return "\n".join(f"- {name}: {value}" for name, value in lines.items() if name not in gone) + "\n"
