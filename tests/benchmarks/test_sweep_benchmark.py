"""Every part's arithmetic, and that what is compared is the same work; how long things take is not asserted."""

import json
from types import SimpleNamespace

import pytest
import typer

from benchmarks import batches, engine, finished, processes, sweep
from benchmarks.batches import OWN, RIVAL, Run
from benchmarks.engine import Ends, beside, efficient, sleeper
from benchmarks.processes import FAMILIES, compared, lmms_eval, spread_over, sweep_file
from benchmarks.sweep import PARTS, line, main
from harness.spec import load_sweep


def test_the_sweep_has_sixty_trials_of_accuracy_alone(tmp_path):
    trials = load_sweep(sweep_file(tmp_path, limit=3)).trials()
    assert len(trials) == 60 and {trial.task for trial in trials} == set(FAMILIES)
    assert {(trial.measure, trial.limit) for trial in trials} == {(("accuracy", "tokens"), 3)}


def test_a_sample_of_the_loop_has_every_task_and_many_cells(tmp_path):
    trials = load_sweep(sweep_file(tmp_path, limit=3)).trials()
    sample = spread_over(trials, 6)
    assert [trial.task for trial in sample] == list(FAMILIES)
    assert len({(trial.method, str(trial.parameters)) for trial in sample}) == 6
    assert spread_over(trials, 60) == trials


def test_a_process_is_told_what_makes_its_trial(tmp_path):
    (trial,) = [
        each
        for each in load_sweep(sweep_file(tmp_path, limit=3, tasks=FAMILIES[:1])).trials()
        if each.method == "fastv" and each.parameters["tokens"] == 64
    ]
    command = lmms_eval(trial, tmp_path / "out")
    told = dict(zip(command[3::2], command[4::2], strict=False))
    assert told["--model"] == "vtbench" and told["--tasks"] == "pocketvqa_attribute"
    assert told["--model_args"] == "model=pocket,method=fastv,seed=0,tokens=64,budget=kept"
    assert (told["--limit"], told["--batch_size"]) == ("3", "8")


def test_a_command_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)exit code 3\n.*no luck"):
        processes.timed(["bash", "-c", "echo no luck; exit 3"], tmp_path)


def test_some_processes_are_scaled_to_all():
    runs = [{"seconds": seconds, "equal": True} for seconds in (10.0, 14.0)]
    found = compared(60, 72.0, runs)
    assert (found["ratio"], found["loop_seconds"], found["equal"]) == (0.1, 720.0, True)
    assert "2 of 60 processes run, scaled up" in found["said"]
    assert "all 2 processes; scores DIFFER" in compared(2, 6.0, [*runs[:1], {"seconds": 14.0, "equal": False}])["said"]


def test_rays_overhead_leaves_the_start_out():
    plain = Ends(ends=[5.0, 6.0, 7.0], trials=[1.0, 0.9, 0.9])
    ray = Ends(ends=[15.0, 16.02, 17.04], trials=[3.0, 0.95, 0.95])
    found = beside([plain], [ray])
    assert found["overhead_ms"] == pytest.approx(20) and found["overhead_ms_by_round"] == pytest.approx([20])
    assert found["outside_ms"] == pytest.approx({"plain": 100, "ray": 70})
    assert found["startup_seconds"] == {"plain": 4, "ray": 12}


def test_efficiency_counts_from_the_first_worker_to_the_last_end():
    records = [
        {"came": 11.0, "ready": 12.0, "began": 12.0, "ended": 14.0, "slept": 2.0},
        {"came": 12.0, "ready": 12.1, "began": 12.5, "ended": 15.5, "slept": 3.0},
        {"came": 11.0, "ready": 12.0, "began": 14.0, "ended": 16.0, "slept": 2.0},
    ]
    found = efficient(records, workers=2, began=10.0)
    assert found["efficiency"] == 7 / (2 * 4)
    assert (found["startup_seconds"], found["workers_came_seconds"]) == (2, [1, 2])
    assert found["began_ended"] == [[0, 2], [0.5, 3.5], [2, 4]]


def test_a_sleeper_sleeps_when_all_have_come(tmp_path):
    execute = sleeper(tmp_path, 1, {"a": 0.01})("cpu")
    record = execute(SimpleNamespace(id="a")).record
    assert record["came"] <= record["ready"] <= record["began"] <= record["ended"] - 0.01
    assert record["slept"] == 0.01 and len(list(tmp_path.iterdir())) == 1


def test_a_sleeper_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "PATIENCE", 0)
    with pytest.raises(TimeoutError, match="not all 2 workers have come up in 0 s"):
        sleeper(tmp_path, 2, {})("cpu")


@pytest.mark.filterwarnings("ignore")  # of what lmms-eval imports
def test_the_finished_store_is_that_of_its_sweep(tmp_path):
    path = finished.sweep_file(tmp_path, trials=25)
    store = finished.store_of(path, tmp_path / "results" / path.stem)
    trials = load_sweep(path).trials()
    assert len(trials) == 25 and all(store.done(trial.id) for trial in trials)
    records = store.records()
    assert {record["id"] for record in records} == {trial.id for trial in trials}
    for record in records[:3]:
        samples = store.samples(record["id"])
        scores = samples.groupby("task")["score"].mean().to_dict()
        assert scores == {task: each["exact_match"] for task, each in record["scores"].items()}
        assert len(samples) == 7 * 12
    assert len({str(record["scores"]) for record in records}) > 20


def test_a_thousand_is_a_thousand(tmp_path):
    assert len(load_sweep(finished.sweep_file(tmp_path, trials=1000)).trials()) == 1000


def test_samples_a_second_are_compared_within_a_round():
    answers = {("task", 0): "yes", ("task", 1): "no"}
    runs = {
        RIVAL: [Run(8.0, 6.0, answers), Run(12.0, 9.0, answers)],
        OWN: [Run(2.0, 1.0, answers, 1), Run(4.0, 1.0, answers, 1)],
        "ours batch 16": [Run(1.0, 1.0, answers), Run(1.0, 1.0, {**answers, ("task", 1): "yes"})],
    }
    found = batches.compared(runs, {1: 2.0, 8: 1.25})
    assert (found["ratio"], found["samples"], found["pictures"], found["equal"]) == (3.5, 2, 1, False)
    assert found["variants"][RIVAL]["samples_per_second"] == 0.2
    assert found["variants"][OWN]["ratio_answering"] == 7.5
    assert [each["different_answers"] for each in found["variants"].values()] == [0, 0, 1]
    assert batches.compared({name: runs[name] for name in (RIVAL, OWN)}, {1: 1.0})["equal"] is True


def test_a_line_has_goal_and_value():
    assert line("a", {"ratio": 0.2, "equal": True, "said": "raw"}) == (
        "a  60 trials: vtbench run ÷ a process of lmms_eval each: 0.2, goal ≤ 0.25: held (raw)"
    )
    assert "0.2, goal ≤ 0.25: NOT held" in line("a", {"ratio": 0.2, "equal": False, "said": ""})
    assert "60 ms, goal ≤ 50: NOT held" in line("b", {"overhead_ms": 60, "said": ""})
    assert "0.96, goal ≥ 0.95: held" in line("c", {"efficiency": 0.96, "said": ""})


def test_parts_are_written_one_by_one_and_stay(tmp_path, monkeypatch, capsys):
    def measures(folder, *, whole, quick):
        assert folder.is_dir() and (whole, quick) == (True, False)
        return {name: lambda part=part: {part.key: part.goal, "said": "raw"} for name, part in PARTS.items()}

    monkeypatch.setattr(sweep, "measures", measures)
    path = tmp_path / "made" / "sweep.json"
    main(only="e,b", out=path, whole=True)
    main(only="a", out=path, whole=True)
    written = json.loads(path.read_text())
    assert list(written) == ["a", "b", "e"] and written["e"]["ratio"] == 3 and written["b"]["goal"] == "≤ 50 ms"
    assert set(written["a"]) >= {"what", "goal", "seconds", "provenance", "load_before"}
    assert capsys.readouterr().out.count("held (raw)") == 3


def test_another_part_is_one_line(tmp_path):
    with pytest.raises(typer.BadParameter, match="only: 'f' is not possible; allowed are a, b, c, d, e"):
        main(only="a,f", out=tmp_path / "sweep.json")
