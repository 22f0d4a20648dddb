import pytest
import torch

from harness import trial as trials_module
from harness.errors import VtbenchError
from harness.faults import LONGEST, describe, in_one_line, out_of_memory, shortage
from harness.spec import Trial, load_sweep
from harness.trial import Warm, run
from methods import METHODS


def trials(tmp_path, text: str = "") -> list[Trial]:
    path = tmp_path / "x.yaml"
    path.write_text("model: llava-1.5-7b\ntext_tokens: 8\nmethods: {topk: {tokens: 64}}\n" + text)
    return load_sweep(path).trials()


def raised(call) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_what_a_method_raises_names_it(tmp_path):
    (trial,) = trials(tmp_path)
    inside = raised(lambda: trial.make_method().stages(None))
    assert describe(inside, trial).startswith("in topk: AttributeError: 'NoneType' object has no attribute")
    assert describe(raised(lambda: {}["no\nline"]), trial) == "KeyError: 'no\\nline'"
    assert describe(VtbenchError("no  such thing"), trial) == "no such thing"


def test_what_a_data_set_raises_is_escaped_and_bounded(tmp_path):
    (trial,) = trials(tmp_path)
    assert describe(ValueError("\x1b]0;title\x07\u202e \udcff"), trial) == r"ValueError: \x1b]0;title\x07\u202e \udcff"
    for long in ("x" * 10_000, "\x1b" * 10_000, "\n" * 10_000 + "x" * 10_000):
        line = describe(ValueError(long), trial)
        assert len(line) == LONGEST + len(" …") and line.isprintable()
        assert in_one_line(line) == line


def test_what_is_out_of_memory():
    cpu = raised(lambda: torch.empty(10**15))
    assert out_of_memory(cpu) and out_of_memory(MemoryError()) and out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert not out_of_memory(RuntimeError("shapes")) and not out_of_memory(OSError("memory"))
    assert shortage(cpu, torch.device("cpu")).endswith(
        "you tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)"
    )
    assert shortage(MemoryError(), torch.device("cpu")) == "MemoryError"


@pytest.mark.parametrize(
    ("batch_size", "enough", "tried"), [(8, 4, [8, 4]), (8, 3, [8, 4]), (1, 0, [1]), (9, 4, [9, 4])]
)
def test_where_memory_does_not_suffice_half_the_batch_is_tried_once(tmp_path, monkeypatch, batch_size, enough, tried):
    (trial,) = trials(tmp_path, f"batch_size: {batch_size}\n")
    seen, alive = [], []

    class Large:
        def __del__(self) -> None:
            alive.remove(self.size)

    def counted(trial: Trial):
        size = seen_size()
        if size > enough:
            large = Large()
            large.size = size
            alive.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee the documentation")
        return real(trial)

    def seen_size() -> int:
        assert alive == []  # what the first attempt had allocated is gone
        return seen[-1]

    def attempt(*args):
        seen.append(args[-1])
        return whole(*args)

    real, whole = trials_module.counted, trials_module.attempt
    monkeypatch.setattr(trials_module, "counted", counted)
    monkeypatch.setattr(trials_module, "attempt", attempt)
    if enough >= tried[-1]:
        assert run(trial, Warm("cpu")).record["provenance"]["batch_size"] == tried[-1]
    else:
        with pytest.raises(VtbenchError) as caught:
            run(trial, Warm("cpu"))
        sizes = " and then ".join(map(str, tried))
        assert str(caught.value) == (
            f"out of memory at batch size {sizes}: CUDA out of memory. Tried to allocate 20.00 GiB."
        )
    assert seen == tried


def test_another_error_is_not_tried_again(tmp_path, monkeypatch):
    (trial,) = trials(tmp_path)
    calls = []
    monkeypatch.setattr(trials_module, "attempt", lambda *_: calls.append(1) or {}["x"])
    with pytest.raises(KeyError):
        run(trial, Warm("cpu"))
    assert calls == [1]


def test_every_method_s_home_is_known():
    assert {method.__module__.partition(".")[0] for method in METHODS.values()} == {"methods"}
