"""What others left in a results folder, and a sweep that is not done: clear words, and the rest is reported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from harness import report
from harness.errors import VtbenchError
from harness.report.results import read
from harness.shown import Shown
from tests.report.scored import TASKS, add, cells, rewrite, written
from tests.test_cli import vtbench

BAD = f"{2:016x}"


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "results" / "mine"
    add(folder, 1, "full", {}, right=0.9)
    add(folder, 2, "topk", {"tokens": 64}, right=0.5)
    return folder


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(trial: Path) -> None:
        record = json.loads((trial / "record.json").read_text())
        change(record)
        (trial / "record.json").write_text(json.dumps(record))

    return damage


def cut(name: str) -> Callable[[Path], None]:
    return lambda trial: (trial / name).write_bytes((trial / name).read_bytes()[:100])


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda trial: (trial / name).write_bytes(content)


def samples(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    path = "samples.parquet"
    return lambda trial: change(pd.read_parquet(trial / path)).to_parquet(trial / path, index=False)


def gone(*names: str) -> Callable[[Path], None]:
    return lambda trial: [(trial / name).unlink() for name in names] and None


def failed(failure: bytes, trial_yaml: bytes) -> Callable[[Path], None]:
    def damage(trial: Path) -> None:
        gone("record.json")(trial)
        (trial / "failure.json").write_bytes(failure)
        (trial / "trial.yaml").write_bytes(trial_yaml)

    return damage


DAMAGES = {
    "truncated record": (cut("record.json"), "record.json cannot be read: Unterminated"),
    "empty record": (put("record.json", b""), "record.json cannot be read: Expecting value"),
    "record not UTF-8": (
        put("record.json", b'{"id": "\xff"}'),
        "record.json cannot be read: 'utf-8' codec can't decode",
    ),
    "record with NaN": (put("record.json", b'{"id": NaN}'), "record.json cannot be read: NaN is not possible"),
    "record is a list": (put("record.json", b"[1]"), "record.json: it: Input should be a valid"),
    "record lacks scores": (edit(lambda r: r.pop("scores")), "record.json: scores: Field required"),
    "record lacks the method": (edit(lambda r: r["trial"].pop("method")), "record.json: trial.method: Field required"),
    "another schema": (edit(lambda r: r.update(schema=2)), "record.json: schema: Input should be 1"),
    "words for a number": (
        edit(lambda r: r["tokens"].update(into_llm="many")),
        "record.json: tokens.into\\_llm: Input should be a valid number",
    ),
    "a number in quotes": (
        edit(lambda r: r["tokens"].update(into_llm="64")),
        "record.json: tokens.into\\_llm: Input should be a valid number",
    ),
    "a score in quotes": (
        edit(lambda r: r["scores"][TASKS[0]].update(exact_match="0.5")),
        f"record.json: scores.{TASKS[0]}.exact_match: Input should be a valid number".replace("_", "\\_"),
    ),
    "a budget in quotes": (
        edit(lambda r: r["trial"]["parameters"].update(tokens="64")),
        "record.json: trial.parameters.tokens: Input should be a valid integer",
    ),
    "a budget below 0": (
        edit(lambda r: r["trial"]["parameters"].update(tokens=-64)),
        "record.json: trial.parameters.tokens: Input should be greater than or equal to 1",
    ),
    "a time that is true": (
        edit(lambda r: r["latency"]["prefill_ms"].update(median=True)),
        "record.json: latency.prefill\\_ms.median: Input should be a valid number",
    ),
    "patches that are no integer": (
        edit(lambda r: r["tokens"].update(patches=576.0)),
        "record.json: tokens.patches: Input should be a valid integer",
    ),
    "fewer than no patches": (
        edit(lambda r: r["tokens"].update(patches=-1)),
        "record.json: tokens.patches: Input should be greater than or equal to 0",
    ),
    "layers that are a number": (
        edit(lambda r: r["tokens"].update(vit=576)),
        "record.json: tokens.vit: Input should be a valid list",
    ),
    "no layers": (
        edit(lambda r: r["tokens"].update(llm=[])),
        "record.json: tokens.llm: List should have at least 1 item",
    ),
    "layers of words": (
        edit(lambda r: r["tokens"].update(llm=["64"] * 6)),
        "record.json: tokens.llm.0: Input should be a valid number",
    ),
    "an infinite number": (
        lambda trial: put("record.json", (trial / "record.json").read_bytes().replace(b'"CPU time"', b"1e999"))(trial),
        "record.json cannot be read: Out of range float values are not JSON compliant",
    ),
    "half a surrogate pair": (
        edit(lambda r: r["trial"].update(method="top\ud800")),
        "record.json cannot be read: 'utf-8' codec can't encode",
    ),
    "a copy": (edit(lambda r: r.update(id="other")), "record.json is of trial 'other'"),
    "truncated samples": (cut("samples.parquet"), "samples.parquet cannot be read: "),
    "no samples": (gone("samples.parquet"), "has scores and no samples.parquet"),
    "samples without columns": (
        samples(lambda frame: frame.drop(columns=["score", "image_id"])),
        "samples.parquet has no image\\_id, score",
    ),
    "scores in words": (
        samples(lambda frame: frame.assign(score="good")),
        "samples.parquet has a score that is no number",
    ),
    "infinite scores": (
        samples(lambda frame: frame.assign(score=float("inf"))),
        "samples.parquet has an infinite score",
    ),
    "no task": (
        samples(lambda frame: frame.assign(task=frame.task.where(frame.index != 3))),
        "samples.parquet has a question without task",
    ),
    "no document": (
        samples(lambda frame: frame.assign(doc_id=frame.doc_id.where(frame.index != 3))),
        "samples.parquet has a question without doc\\_id",
    ),
    "no image": (
        samples(lambda frame: frame.assign(image_id=None)),
        "samples.parquet has a question without image\\_id",
    ),
    "tasks that are numbers": (
        samples(lambda frame: frame.assign(task=range(200))),
        "samples.parquet has a task that is no text",
    ),
    "documents that are lists": (
        samples(lambda frame: frame.assign(doc_id=[[number] for number in range(200)])),
        "samples.parquet has a doc\\_id that is no text or number",
    ),
    "patches in no list": (
        samples(lambda frame: frame.assign(kept=5)),
        "samples.parquet has under kept what is no list of lists of integers",
    ),
    "patches of no picture": (
        samples(lambda frame: frame.assign(kept=[[1, 2]] * 200)),
        "samples.parquet has under kept what is no list of lists of integers",
    ),
    "patches that are not there": (
        samples(lambda frame: frame.assign(kept=[[[1, None]]] * 200)),
        "samples.parquet has under kept what is no list of lists of integers",
    ),
    "pictures in no list": (
        samples(lambda frame: frame.assign(pictures=7)),
        "samples.parquet has under pictures what is no list of texts",
    ),
    "words that are numbers": (
        samples(lambda frame: frame.assign(words=[[7]] * 200)),
        "samples.parquet has under words what is no list of texts",
    ),
    "merged is a list": (
        samples(lambda frame: frame.assign(merged=[[True]] * 200)),
        "samples.parquet has under merged what is no truth value",
    ),
    "a question twice": (samples(lambda f: f.assign(doc_id=0)), "samples.parquet has a question twice"),
    "half-written": (gone("record.json"), "has neither record.json nor failure.json: it is not finished"),
    "no trial.yaml": (gone("trial.yaml"), "has no trial.yaml, so that it is no trial's folder"),
    "failure cut": (failed(b'{"err', b"method: topk"), "failure.json cannot be read: "),
    "failure without error": (failed(b"{}", b"{method: topk, parameters: {}}"), "failure.json has no error"),
    "trial.yaml cut": (failed(b'{"error": "no"}', b"method: [topk"), "trial.yaml cannot be read"),
    "trial.yaml not UTF-8": (failed(b'{"error": "no"}', b"method: \xff"), "trial.yaml cannot be read"),
    "trial.yaml with a date": (
        failed(b'{"error": "no"}', b"{method: topk, parameters: {}, when: 2026-01-01}"),
        "trial.yaml cannot be read",
    ),
    "trial.yaml of others": (failed(b'{"error": "no"}', b"kind: Pod"), "trial.yaml: method: Field required"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_bad_trial_is_one_line_and_the_others_are_reported(folder, tmp_path, name):
    damage, line = DAMAGES[name]
    damage(folder / BAD)
    markdown = written(folder, tmp_path)
    part = markdown.partition("## Failed or unreadable\n\n")[2].partition("\n\n")[0]
    assert part.startswith(f"- {BAD}: {line}") and "\n" not in part
    assert len(cells(markdown, "full")) == 14 and "| topk" not in markdown
    held = json.loads((tmp_path / "reports" / "mine.json").read_text())
    assert list(held["unreadable"]) == [BAD] and [row["method"] for row in held["rows"]] == ["full"]


def test_whole_numbers_and_what_a_sample_may_lack_are_good(folder):
    def plain(record, frame):
        record["tokens"] |= {"into_llm": 64, "patches": 576, "mean_llm": None}
        record["flops"]["total"]["flops"] = 10**9
        kept, merged = [None, [[1, 2]], [[]], [[-1], []]] * 50, [None, True, False, None] * 50
        columns = {"kept": kept, "merged": merged, "words": [None, [], ["a"], []] * 50, "pictures": [["a"]] * 200}
        return frame.assign(**columns, question=None, target=float("nan"))

    rewrite(folder, 2, plain)
    rewrite(folder, 1, lambda record, frame: frame.assign(kept=None, words=[[]] * 200, merged=float("nan")))
    assert read(folder).unreadable == []


def test_foreign_files_are_named_and_hidden_ones_and_our_own_are_not(folder, tmp_path):
    (folder / "notes <b>.txt").write_text("hello")
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "empty").mkdir()
    os.mkdir(os.fsencode(folder) + b"/\xff")
    for name in (".DS_Store", "sweep.json", "trials.parquet", "wandb"):
        (folder / name).write_text("{}")
    found = dict(read(folder).unreadable)
    assert found.pop("notes <b>.txt") == found.pop("broken") == found.pop("loop") == "is no trial's folder"
    assert found.pop("empty") == "has no trial.yaml, so that it is no trial's folder"
    markdown = report.write(folder, tmp_path / "reports").read_text()
    assert len(found) == 1 and "- notes &lt;b&gt;.txt: is no trial's folder\n" in markdown


def test_a_linked_trial_is_a_trial(folder, tmp_path):
    (folder / BAD).rename(tmp_path / BAD)
    (folder / BAD).symlink_to(tmp_path / BAD)
    assert [row.method for row in read(folder).rows] == ["full", "topk"]


def test_a_trial_of_two_folders_is_reported_once(folder):
    subprocess.run(["cp", "-r", folder / BAD, folder / "copy"], check=True)
    results = read(folder)
    assert results.unreadable == [("copy", f"record.json is of trial '{BAD}'")] and len(results.rows) == 2


def test_scores_that_no_judge_gave_are_not_measured(folder, tmp_path):
    def none(record, samples):
        record["scores"] = {task: {"exact_match": None, "n": 100} for task in TASKS}
        return samples.assign(score=None)

    rewrite(folder, 2, none)
    markdown = written(folder, tmp_path)
    assert cells(markdown, "topk")[1:6] == ["not measured"] * 3 + ["", ""]


def test_a_column_that_nobody_measured_says_so(tmp_path):
    folder = tmp_path / "results" / "mine"
    add(folder, 1, "full", {}, right=0.9, measured=False)
    markdown = written(folder, tmp_path)
    assert cells(markdown, "full")[6:12] == ["not measured"] * 3 + ["", "not measured", "not measured"]


def test_long_lists_of_what_is_bad_are_cut_and_the_json_has_all(folder, tmp_path):
    for number in range(40):
        (folder / f"stray{number}").touch()
    markdown = report.write(folder, tmp_path / "reports").read_text()
    assert markdown.count("- stray") == 30 and "- and 10 more, which the JSON beside this report lists\n" in markdown
    assert len(json.loads((tmp_path / "reports" / "mine.json").read_text())["unreadable"]) == 40


@pytest.mark.parametrize("left", ["nothing", "strays", "no folder"])
def test_nothing_to_report_is_one_line(folder, tmp_path, left):
    (folder / "sweep.json").write_text("{}")
    name = "mine"
    if left == "no folder":
        name, reason = "other", "run the sweep first; there are mine"
    else:
        subprocess.run(["rm", "-r", folder / BAD, folder / f"{1:016x}"], check=True)
        reason = "run the sweep first"
        if left == "strays":
            (folder / "stray").touch()
            reason = "stray is no trial's folder"
    results = tmp_path / "results"
    with pytest.raises(VtbenchError) as caught:
        report.write(results / name, tmp_path / "reports")
    assert str(caught.value) == f"{results / name}: no results to report; {reason}"
    assert not (tmp_path / "reports").exists()


def test_the_command_says_it_in_one_line_and_exits_with_2(tmp_path):
    code = "from harness.cli import main; main()"
    command = [sys.executable, "-c", code, "report", "none", "--results", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"vtbench: {tmp_path / 'none'}: no results to report; run the sweep first\n"


def test_a_sweep_that_is_not_done_says_how_far_it_is(folder, tmp_path):
    asked = [f"{number:016x}" for number in (1, 2, 3, 4, 5)]
    failing = folder / asked[2]
    failing.mkdir()
    (failing / "trial.yaml").write_text(yaml.safe_dump({"method": "tome", "parameters": {"tokens": 9}, "task": "t"}))
    (failing / "failure.json").write_text(json.dumps({"error": "no"}))
    add(folder, 9, "evit", {"tokens": 64}, right=0.5)
    (folder / "sweep.json").write_text(Shown(description="words", trials=tuple(asked)).model_dump_json())
    lines = report.write(folder, tmp_path / "reports").read_text().splitlines()
    expected = "**2 of 5 trials done, 1 failed, 2 not run.** 1 more are from an earlier run."
    assert lines[:5] == ["# mine", "", "words", "", expected]
    held = json.loads((tmp_path / "reports" / "mine.json").read_text())
    assert held["state"] == {"asked": 5, "done": 2, "failed": 1, "not_run": 2, "others": 1}


def test_a_trial_that_cannot_be_read_has_run_and_one_that_was_cut_short_has_not(folder, tmp_path):
    add(folder, 3, "evit", {"tokens": 64}, right=0.5)
    put("record.json", b"")(folder / BAD)
    gone("record.json")(folder / f"{3:016x}")
    asked = tuple(f"{number:016x}" for number in range(1, 5))
    report.write(folder, tmp_path / "reports", Shown(trials=asked))
    state = json.loads((tmp_path / "reports" / "mine.json").read_text())["state"]
    assert state["done"] == 1 and state["failed"] == 0 and state["not_run"] == 2


@pytest.mark.parametrize("where", ["a file", "in a file", "a folder for the page", "a file for the figures"])
def test_a_report_that_cannot_be_written_is_one_line(folder, tmp_path, monkeypatch, capsys, where):
    out = tmp_path / "out"
    place = {"a folder for the page": out / "mine.html", "a file for the figures": out / "mine"}.get(where, out)
    if where == "a folder for the page":
        (place / "in it").mkdir(parents=True)
    else:
        place.parent.mkdir(exist_ok=True)
        place.write_text("mine")
    given = out / "in it" if where == "in a file" else out
    assert vtbench(monkeypatch, "report", "mine", "--results", folder.parent, "--out", given) == 2
    said, err = capsys.readouterr()
    named = given if given != out else place
    assert said == "" and err.startswith(f"vtbench: {named}: ") and err.count("\n") == 1
    assert place.is_dir() or place.read_text() == "mine"


def test_a_sweep_json_that_is_a_folder_is_one_line(folder, tmp_path):
    (folder / "sweep.json").mkdir()
    with pytest.raises(VtbenchError, match=r"sweep\.json: is not what vtbench run leaves; remove it"):
        report.write(folder, tmp_path / "reports")


def test_a_sweep_that_is_done_says_nothing_of_it(folder, tmp_path):
    asked = tuple(f"{number:016x}" for number in (1, 2))
    assert " of 2 trials" not in report.write(folder, tmp_path / "reports", Shown(trials=asked)).read_text()


def test_rows_that_lack_tasks_are_named_at_the_top(folder, tmp_path):
    def lack(record, samples):
        del record["scores"][TASKS[1]]
        return samples[samples.task == TASKS[0]]

    rewrite(folder, 2, lack)
    head = report.write(folder, tmp_path / "reports").read_text().partition("## ")[0]
    assert "Rows that lack tasks, so that their averages are over fewer: topk at 64 tokens (where).\n" in head
    held = json.loads((tmp_path / "reports" / "mine.json").read_text())
    assert [row["lacks"] for row in held["rows"]] == [[], [TASKS[1]]]
