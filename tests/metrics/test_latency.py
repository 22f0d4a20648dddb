import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import psutil
import pytest
import torch
from shapes import prompt, small

from harness.errors import VtbenchError
from harness.metrics import latency
from harness.metrics.latency import Latency, device_to_itself, measure
from harness.model.attach import attach
from harness.model.replay import Recorded
from methods import method

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_every_repeat_is_kept():
    result = measure(small(), prompt(), warmup=1, repeats=3, decoded=2)
    assert result.clock == "CPU time"
    assert (len(result.prefill_ms), len(result.decode_ms), result.warmup) == (3, 6, 1)
    assert all(ms > 0 for ms in result.prefill_ms + result.decode_ms)
    assert len(result.vision_ms) == 3
    assert all(0 < vision < prefill for vision, prefill in zip(result.vision_ms, result.prefill_ms, strict=True))
    assert result.pruner_ms is None


def test_the_forward_passes_are_those_of_generate():
    model, inputs, calls = small(), prompt(), []
    handle = model.register_forward_hook(lambda _, args, kwargs, out: calls.append((kwargs, out)), with_kwargs=True)
    measure(model, inputs, warmup=0, repeats=1, decoded=3)
    timed, calls[:] = calls[1:], []  # the first notes what a method keeps
    model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    handle.remove()
    assert len(timed) == len(calls) == 4
    for (mine, output), (theirs, expected) in zip(timed, calls, strict=True):
        assert torch.equal(mine["input_ids"], theirs["input_ids"])
        assert torch.equal(output.logits, expected.logits)


def test_the_model_and_its_inputs_stay_as_they_were():
    model, inputs = small(), prompt()
    model(**inputs)  # transformers leaves lazy hooks of its own
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    before = {name: value.clone() for name, value in inputs.items()}
    measure(model, inputs, warmup=0, repeats=1, decoded=1)
    assert all(torch.equal(inputs[name], before[name]) for name in before)
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()] == hooks


def test_every_prefill_forgets_the_last_one():
    forgotten = []
    measure(small(), prompt(), warmup=2, repeats=3, decoded=1, forget=lambda: forgotten.append(True))
    assert len(forgotten) == 1 + 5


def test_the_method_and_its_replay_take_turns_and_the_pruner_is_their_difference(monkeypatch):
    model, chosen, turns = small(), method("topk", tokens=4), []
    monkeypatch.setattr(latency, "_timed", lambda device, call: (10.0 ** len(turns), call()))

    @contextmanager
    def attached(each):
        assert not isinstance(each, Recorded) or not turns
        turns.append(each.name)
        with attach(model, each) as work:
            yield
        turns.append(work.ledger.kept[0].tolist())

    result = measure(model, prompt(), method=chosen, attached=attached, warmup=1, repeats=2, decoded=1)
    names, kept = turns[::2], turns[1::2]
    assert names == ["topk", "topk", "replay", "topk", "replay", "replay", "topk"]
    assert len(kept[0]) == 4 and kept == [kept[0]] * 7
    assert result.prefill_ms == (1e7, 1e13)
    assert result.pruner_ms == (1e7 - 1e9, 1e13 - 1e11)
    assert result.decode_ms == (1e7, 1e13) and len(result.vision_ms) == 2


def test_vision_ends_where_the_projector_has_first_run():
    model, inputs = small(), prompt()
    with latency._vision(model) as seen:
        model.model.get_image_features(pixel_values=inputs["pixel_values"])
        first = list(seen)
        model.model.multi_modal_projector(torch.zeros(1, 1, 32))
        assert seen == first and len(first) == 2 and first[0] < first[1]
    model.model.get_image_features(pixel_values=inputs["pixel_values"])
    assert seen == first


def test_a_prompt_without_an_image_has_no_vision():
    text = {"input_ids": torch.arange(1, 6)[None]}
    assert measure(small(), text, warmup=0, repeats=2, decoded=1).vision_ms == (0.0, 0.0)


def test_record():
    record = Latency(
        clock="CPU time",
        exclusive=False,
        warmup=3,
        prefill_ms=(4.0, 1.0, 2.0, 3.0, 5.0),
        decode_ms=(7.0,),
        vision_ms=(0.5,),
        pruner_ms=(-1.0, 1.0),
    ).record()
    assert record == {
        "clock": "CPU time",
        "exclusive": False,
        "warmup": 3,
        "prefill_ms": {"median": 3.0, "q25": 2.0, "q75": 4.0, "raw": [4.0, 1.0, 2.0, 3.0, 5.0]},
        "decode_ms": {"median": 7.0, "q25": 7.0, "q75": 7.0, "raw": [7.0]},
        "vision_ms": {"median": 0.5, "q25": 0.5, "q75": 0.5, "raw": [0.5]},
        "pruner_ms": {"median": 0.0, "q25": -0.5, "q75": 0.5, "raw": [-1.0, 1.0]},
    }


def test_two_timed_sections_never_overlap():
    inside = threading.Event()

    def other():
        with device_to_itself(CPU):
            inside.set()

    thread = threading.Thread(target=other)
    with device_to_itself(CPU):
        thread.start()
        assert not inside.wait(0.2)
    assert inside.wait(5)
    thread.join()


def test_a_dead_process_leaves_no_lock(tmp_path):
    script = "import os, fcntl; fcntl.flock(os.open('vtbench-cpu.lock', os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)"
    subprocess.run([sys.executable, "-c", script + "; os._exit(1)"], cwd=tmp_path, check=False)
    with device_to_itself(CPU):
        pass


class Clocks:
    """A machine of 4 cores on which the test says who worked for how long."""

    def __init__(self, monkeypatch):
        self.user = self.own = self.now = 0.0
        fields = ("user", "system", "idle", "guest")
        times = lambda: SimpleNamespace(_asdict=lambda: dict(zip(fields, (self.user, 1.0, 9 * self.now, 0.0))))  # noqa: B905, E731
        monkeypatch.setattr(psutil, "cpu_times", times)
        monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
        monkeypatch.setattr(
            psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=self.own, system=0.0))
        )
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize(("others", "expected"), [(0.0, False), (1.9, False), (2.1, True)])
def test_a_cpu_that_others_use_is_not_exclusive(monkeypatch, others, expected):
    clocks = Clocks(monkeypatch)
    used = latency._others_on_cpu()
    clocks.now, clocks.own, clocks.user = 10.0, 9.0, 9.0 + others
    assert used() is expected


@pytest.mark.parametrize(
    ("before", "after", "expected"), [("7\n", "7\n", False), ("", "", True), ("7\n8\n", "7\n", True)]
)
def test_a_gpu_that_others_use_is_not_exclusive(monkeypatch, before, after, expected):
    answers = iter([before, after])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1"))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=next(answers)))
    assert latency._others_on_gpu(torch.device("cuda"))() is expected


def test_a_gpu_that_cannot_be_asked_is_not_exclusive(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1"))
    monkeypatch.setattr(subprocess, "run", missing)
    assert latency._others_on_gpu(torch.device("cuda"))() is True


def test_bad_input():
    two = {name: torch.cat([value, value]) for name, value in prompt().items()}
    with pytest.raises(VtbenchError, match="at batch 1, not 2"):
        measure(small(), two)
    with pytest.raises(VtbenchError, match="repeats 0"):
        measure(small(), prompt(), repeats=0)
    with pytest.raises(VtbenchError, match="cannot time a 'meta' device; allowed are cpu, cuda"):
        measure(small().to("meta"), prompt())


@pytest.mark.gpu
def test_cuda_events():
    model = small().to("cuda", torch.bfloat16)
    attached = partial(attach, model)
    result = measure(
        model, prompt(), method=method("topk", tokens=4), attached=attached, warmup=1, repeats=2, decoded=2
    )
    assert (result.clock, len(result.prefill_ms), len(result.decode_ms)) == ("CUDA events", 2, 4)
    assert all(0 < vision < prefill for vision, prefill in zip(result.vision_ms, result.prefill_ms, strict=True))
    assert result.pruner_ms is not None and len(result.pruner_ms) == 2
