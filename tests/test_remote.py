import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from harness.errors import VtbenchError
from harness.remote import Remote, opened, sweep_folder
from harness.spec import Trial, load_sweep
from harness.store import Result, Store
from tests.ftp import PASSWORD, served, somewhere
from tests.test_cli import vtbench
from tests.test_store import SAMPLES, record

COUNTED = "model: llava-1.5-7b\ntext_tokens: 64\ntokens: 64\nmethods: [full, topk]\n"


@pytest.fixture(params=["memory", "ftp"])
def url(request, tmp_path) -> Iterator[str]:
    with somewhere(request.param, tmp_path) as there:
        yield there


@pytest.fixture
def trials(tmp_path) -> list[Trial]:
    path = tmp_path / "x.yaml"
    path.write_text("model: m\ntasks: t\ntokens: 64\nmethods: [full, topk, random]\n")
    return load_sweep(path).trials()


def test_what_one_process_writes_the_next_one_has(url, trials):
    full, topk, random = trials
    with opened(url, "x") as store:
        store.tidy()
        store.describe({"description": "é"})
        store.write(full, Result(record(full), SAMPLES, {"a": b"1", "b": b"2"}))
        store.fail(topk, "ValueError: no", "Traceback …")
        store.gather()
        assert store.folder.exists() and store.shown == re.sub("me:.*@", "", url) + "/x"
    assert not store.folder.exists()
    names = {"sweep.json", "trials.parquet", "images/a.webp", "images/b.webp"}
    names |= {f"{full.id}/{name}" for name in ("trial.yaml", "samples.parquet", "record.json")}
    names |= {f"{topk.id}/{name}" for name in ("trial.yaml", "failure.json")}
    remote = Remote(url) / "x"
    assert remote.names().keys() == names

    remote.write(f"{random.id}/.record.json.k3_x", b"half")
    with opened(url, "x") as store:
        assert [store.done(trial.id) for trial in trials] == [True, False, False]
        assert store.failure(topk.id) == "ValueError: no" and store.records() == [record(full)]
        pd.testing.assert_frame_equal(store.samples(full.id), SAMPLES)
        store.tidy()
        store.write(topk, Result(record(topk), None, {"b": b"2"}))
        assert store.failures() == []
    names |= {f"{topk.id}/record.json"}
    assert remote.names().keys() == names - {f"{topk.id}/failure.json"}
    with sweep_folder(url, "x") as folder:
        assert {record["id"] for record in Store(folder).records()} == {full.id, topk.id}


def test_what_others_did_before_the_claim_is_taken_over(url, trials):
    with opened(url, "x") as late:
        with opened(url, "x") as early:
            early.write(trials[0], Result(record(trials[0]), None))
            early.fail(trials[1], "ValueError: no", "")
        assert not late.done(trials[0].id)
        late.tidy()
        assert late.done(trials[0].id) and late.failure(trials[1].id) == "ValueError: no"
        with opened(url, "x") as other:
            other.write(trials[1], Result(record(trials[1]), None))
        late.tidy()
        assert late.failures() == [] and late.done(trials[1].id)


def test_a_trial_s_record_goes_up_last(url, trials, monkeypatch):
    written, write = [], Remote.write

    def note(self, name, content):
        written.append(name.rpartition("/")[2])
        if len(written) == fails_at:
            raise OSError("no space left on device")
        write(self, name, content)

    monkeypatch.setattr(Remote, "write", note)
    for fails_at in (4, 5):
        written.clear()
        with opened(url, "x") as store:
            if fails_at == 4:
                with pytest.raises(OSError, match="no space"):
                    store.write(trials[0], Result(record(trials[0]), SAMPLES, {"a": b"1"}))
        assert "record.json" not in {name.rpartition("/")[2] for name in (Remote(url) / "x").names()}
    assert written == []
    with opened(url, "x") as store:
        store.write(trials[0], Result(record(trials[0]), SAMPLES, {"a": b"1"}))
    assert written == ["trial.yaml", "samples.parquet", "record.json"]  # the picture is there by now


def test_a_file_is_there_whole_or_not_at_all(url, monkeypatch):
    remote = Remote(url) / "x"
    remote.write("a/b.json", b"old")
    lost = f"connection to ftp://me:{PASSWORD}@host lost\n!"
    monkeypatch.setattr(remote.files, "mv", lambda *names: (_ for _ in ()).throw(RuntimeError(lost)))
    with pytest.raises(OSError, match="ftp://host lost !") as raised:
        remote.write("a/b.json", b"new, and longer")
    assert raised.value.filename == remote.shown and PASSWORD not in str(raised.value)
    assert remote.read("a/b.json") == b"old"
    remote.remove("a/b.json")
    remote.remove("a/b.json")
    assert remote.read("a/b.json") is None


def test_names_that_lead_out_of_the_folder_are_left_alone(url, monkeypatch):
    remote = Remote(url) / "x"
    remote.write("a", b"1")
    found = {f"{remote.root}/../../b": {"size": 1}, f"{remote.root}/a": {"size": 1}, f"{remote.root}/c": {}}
    monkeypatch.setattr(remote.files, "find", lambda *names, **options: {remote.root: {}} | found)
    assert remote.names() == {"a": 1, "c": None}
    with pytest.raises(VtbenchError, match="is no sweep's name"), sweep_folder(url, "../x"):
        pass


def test_a_file_where_the_folder_should_be_is_one_line(url):
    Remote(url).write("x", b"a file")
    for place in (opened(url, "x"), sweep_folder(url, "x")):
        with pytest.raises(VtbenchError, match=r"^\w+://[\w.:/]*/x: is a file, and the results need a folder"), place:
            pass
    assert Remote(url).read("x") == b"a file"


def test_another_s_claim_that_is_being_written_is_left_there(url):
    remote = Remote(url) / "x"
    for name in (".claim-1", "..claim-2.0123abcd", ".sweep.json.0123abcd"):
        remote.write(name, b"{}")
    with opened(url, "x") as store:
        store.tidy()
    assert sorted(remote.listed()) == ["..claim-2.0123abcd", ".claim-1"]


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        (
            "nope://bucket/results",
            "nope://bucket/results: Protocol not known: nope; allowed are folders and what fsspec",
        ),
        ("s3://bucket/results", "s3://bucket/results: s3 needs a package: Install s3fs to access S3"),
        ("ftp://me:wrong@{host}/results", "ftp://{host}/results: 530 Authentication failed."),
        ("ftp://127.0.0.1:1/results", "ftp://127.0.0.1:1/results: [Errno 111] Connection refused"),
        (
            "dir::ftp://me:wr@wrong@127.0.0.1:1/results",
            "dir::ftp://127.0.0.1:1/results: [Errno 111] Connection refused",
        ),
    ],
)
def test_a_url_that_is_none_is_one_line(tmp_path, monkeypatch, capsys, where, complaint):
    file = tmp_path / "x.yaml"
    file.write_text(COUNTED)
    with served(tmp_path) as there:
        host = there.rpartition("@")[2]
        for command in (["run", file, "--out"], ["report", "x", "--results"], ["compare", "x", "a", "b", "--results"]):
            assert vtbench(monkeypatch, *command, where.format(host=host)) == 2
            out, err = capsys.readouterr()
            assert out == "" and err.startswith(f"vtbench: {complaint.format(host=host)}") and err.count("\n") == 1
            assert "wrong" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.yaml"]


def test_a_run_with_its_results_on_a_server(tmp_path, monkeypatch, capsys):
    file, folder = tmp_path / "x.yaml", tmp_path / "served"
    file.write_text(COUNTED)
    folder.mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with served(folder) as there:
        out = f"{there}/shared/results"
        assert vtbench(monkeypatch, "report", "x", "--results", out) == 2
        host = there.rpartition("@")[2]
        assert (
            capsys.readouterr().err
            == f"vtbench: ftp://{host}/shared/results/x: no results to report; run the sweep first\n"
        )
        guest = out.replace("me:", "guest:")
        assert vtbench(monkeypatch, "run", file, "--out", guest, "--reports", tmp_path / "reports") == 1
        err = capsys.readouterr().err
        place = f"ftp://{host}/shared/results/x"
        assert err == f"vtbench: {place}: 550 not enough privileges.; once that is mended the same command goes on\n"
        assert list(folder.iterdir()) == []

        arguments = ("run", file, "--out", out, "--reports", tmp_path / "reports")
        for did in ("2 done now, 0 failed", "0 done now, 2 before, 0 failed"):
            assert vtbench(monkeypatch, *arguments) == 0
            said = capsys.readouterr()
            assert f"x: 2 trials, {did}\n" in said.out and PASSWORD not in said.out + said.err
        written = (tmp_path / "reports" / "x.json").read_bytes()
        assert vtbench(monkeypatch, "report", "x", "--results", out, "--out", tmp_path / "again") == 0
        assert (tmp_path / "again" / "x.json").read_bytes() == written
    sweep = folder / "shared" / "results" / "x"
    beside = {"sweep.json", "trials.parquet", "wandb"}
    assert {path.name for path in sweep.iterdir()} == beside | {trial.id for trial in load_sweep(file).trials()}
    assert len(list(sweep.glob("wandb/*/*.wandb"))) == 4  # two trials, and the report of each run
    assert not Path("x").exists()
