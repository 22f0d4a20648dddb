import fcntl
import json
from pathlib import Path

import pytest
import torch

from harness import lock as locks
from harness.metrics.flops import count
from harness.model.text import default_text_encoder, load_text_encoder
from harness.spec import Trial, load_sweep
from harness.trial import Warm, run
from methods import method
from methods.interface import Shape
from methods.schedule import tokens_per_layer
from tests.metrics.shapes import LLAVA_7B

torch.set_num_threads(1)
SHAPE = Shape(patches=576, vit_layers=23, llm_layers=32)


@pytest.fixture(scope="module")
def warm() -> Warm:
    return Warm("cpu")


def trials(tmp_path: Path, text: str) -> list[Trial]:
    path = tmp_path / "x.yaml"
    path.write_text(text if "text_tokens" in text else "tasks: pocket_tiny\n" + text)
    return load_sweep(path).trials()


def test_a_record_has_what_was_asked_for(tmp_path, warm):
    text = "model: pocket\nlimit: 3\nmethods: [full, {ivtp: {tokens: 64}}]\n"
    full, ivtp = (run(trial, warm) for trial in trials(tmp_path, text))
    record = ivtp.record
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["trial"]["parameters"]["group"] == 3 and record["id"] == trials(tmp_path, text)[1].id
    assert set(record["scores"]) == {f"pocket_tiny_{name}" for name in FAMILIES}
    assert all(0 <= scores["exact_match"] <= 1 and scores["n"] == 3 for scores in record["scores"].values())
    assert len(ivtp.samples) == 3 * len(FAMILIES)
    for task, scores in record["scores"].items():
        assert ivtp.samples[ivtp.samples.task == task].score.mean() == pytest.approx(scores["exact_match"])
    tokens = record["tokens"]
    assert (tokens["nominal"], tokens["into_llm"], tokens["llm"][-1], full.record["tokens"]["llm"]) == (
        64,
        128,
        64,
        [576] * 6,
    )
    assert record["flops"]["total"]["flops"] < full.record["flops"]["total"]["flops"]
    assert record["flops"]["extra"].keys() >= {"rider", "text encoder"}
    assert record["memory"]["kv_visual_bytes"] == sum(tokens["llm"]) * 2 * 128 * 2
    assert len(record["latency"]["prefill_ms"]["raw"]) == 10 and record["latency"]["clock"] == "CPU time"
    provenance = record["provenance"]
    assert {"git_commit", "cpu_or_gpu_name", "lmms_eval", "started", "host_threads"} <= provenance.keys()
    assert (provenance["device"], provenance["dtype"], provenance["seed"]) == ("cpu", "float32", 0)


def test_no_text_encoder_stays_for_a_method_that_reads_none(tmp_path, warm):
    text = "model: pocket\nlimit: 1\nmeasure: [tokens]\ntokens: 64\nmethods: [ivtp, topk]\n"
    kept = []
    for trial in trials(tmp_path, text):
        run(trial, warm)
        kept.append(load_text_encoder.cache_info().currsize)
    assert kept == [1, 0]


def test_a_method_that_adapts_has_no_nominal_budget(tmp_path, warm):
    text = "model: pocket\nlimit: 3\nmeasure: [tokens, flops]\nmethods: {prumerge: {tokens: [null, 16]}}\n"
    adaptive, fixed = (run(trial, warm).record for trial in trials(tmp_path, text))
    assert adaptive["tokens"]["nominal"] is None and fixed["tokens"]["nominal"] == 16
    assert adaptive["tokens"]["vit"] == [576] * len(adaptive["tokens"]["vit"])
    assert 1 < adaptive["tokens"]["into_llm"] < 145 and len(set(adaptive["tokens"]["llm"])) == 1
    assert adaptive["flops"]["extra"]["projections"] == fixed["flops"]["extra"]["projections"]


def test_a_pseudo_cls_in_the_sequence_is_no_visual_token(tmp_path, warm):
    text = "methods: {ivtp: {tokens: 64, pseudo_cls: [llm, as_token]}}\n"
    text += "model: pocket\nlimit: 3\nmeasure: [tokens, flops]\n"
    beside, inside = (run(trial, warm).record for trial in trials(tmp_path, text))
    assert beside["tokens"] == inside["tokens"]
    assert inside["flops"]["text_tokens"] == beside["flops"]["text_tokens"] + 1
    assert inside["flops"]["extra"]["rider"] < beside["flops"]["extra"]["rider"]


FAMILIES = ("attribute", "existence", "count", "where", "relation", "ocr", "choice")


def test_the_same_trial_twice_gives_the_same_answers(tmp_path, warm):
    (trial,) = trials(tmp_path, "model: pocket\nlimit: 2\nmethods: {random: {tokens: 16}}\nmeasure: accuracy\n")
    first, second = run(trial, warm), run(trial, Warm("cpu"))
    assert first.samples.equals(second.samples)
    assert [first.record[key] for key in ("tokens", "flops", "latency", "memory")] == [None] * 4


def test_what_was_not_asked_for_is_null(tmp_path, warm):
    (trial,) = trials(tmp_path, "model: pocket\nmethods: {topk: {tokens: 16}}\nmeasure: latency\n")
    result = run(trial, warm)
    assert result.samples is None and result.record["scores"] is None and result.record["memory"] is None
    assert result.record["latency"]["warmup"] == 3


def test_a_model_that_cannot_read_gives_its_costs(tmp_path, monkeypatch):
    loaded = Warm("cpu")
    text = "model: 'random:pocket'\ntext_tokens: 40\nmethods: {fastv: {tokens: 64, budget: kept}}\n"
    (trial,) = trials(tmp_path, text)
    loaded.model(trial)
    loaded._loaded = {key: _without_processor(model) for key, model in loaded._loaded.items()}
    result = run(trial, loaded)
    assert result.samples is None and result.record["scores"] is None
    assert result.record["tokens"]["llm"] == [576, 576, 64, 64, 64, 64]
    assert result.record["flops"]["text_tokens"] == 40


def test_a_stand_in_prompt_has_a_question_that_guidance_can_read(tmp_path):
    warm = Warm("cpu")
    text = "model: 'random:pocket'\ntext_tokens: 64\nmethods: {ivtp: {tokens: 64}}\nmeasure: [tokens, flops]\n"
    (trial,) = trials(tmp_path, text)
    warm.model(trial)
    warm._loaded = {key: _without_processor(model) for key, model in warm._loaded.items()}
    seen = []
    encoder = load_text_encoder(default_text_encoder("random:pocket"), "cpu")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoder, "encode", lambda text: seen.append(text) or encoder._encode(text))
        assert run(trial, warm).record["tokens"]["llm"] == [128, 96, 96, 96, 64, 64]
    assert seen and seen[0].count("what color is the small object?") > 4


def test_a_shape_is_counted_by_the_schedule(tmp_path):
    text = "model: llava-1.5-7b\ntext_tokens: 512\nmethods: [{ivtp: {tokens: 64, pseudo_cls: [llm, as_token]}}]\n"
    beside, inside = (run(trial, Warm("cpu")) for trial in trials(tmp_path, text))
    assert beside.samples is None and beside.record["scores"] is None and beside.record["latency"] is None
    chosen = method("ivtp", tokens=64)
    lengths = tokens_per_layer(chosen.stages(SHAPE), SHAPE)
    clip = load_text_encoder("random:clip-vit-large-patch14-336", "cpu").model.config.text_config
    expected = count(LLAVA_7B, lengths, 512, method=chosen, before_image=1, text_encoder=clip)
    assert beside.record["flops"] == expected.record()
    assert beside.record["tokens"]["vit"] == list(lengths.vit) and beside.record["tokens"]["llm"] == list(lengths.llm)
    assert beside.record["memory"]["kv_visual_bytes"] == sum(lengths.llm) * 2 * 4096 * 2
    assert inside.record["flops"]["text_tokens"] == 513


def test_costs_of_a_model_are_those_of_a_prompt_of_so_many_text_tokens(tmp_path):
    text = "model: 'random:pocket'\ntext_tokens: [16, 40]\nmethods: [{topk: {tokens: 64}}]\nmeasure: [flops, tokens]\n"
    short, long = (run(trial, Warm("cpu")).record for trial in trials(tmp_path, text))
    assert (short["flops"]["text_tokens"], long["flops"]["text_tokens"]) == (16, 40)
    assert short["scores"] is None and short["tokens"]["llm"] == [64] * 6


def _without_processor(model):
    from dataclasses import replace

    return replace(model, processor=None)


def test_the_model_stays_warm_until_another_is_needed(tmp_path):
    text = "model: ['random:pocket', pocket]\nmethods: [full, {topk: {tokens: 16}}]\n"
    warm = Warm("cpu")
    one, two, three, _ = (warm.model(trial).model for trial in trials(tmp_path, text))
    assert one is two and one is not three and len(warm._loaded) == 1


def test_untimed_work_keeps_timed_sections_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.tempfile, "gettempdir", lambda: str(tmp_path))
    cpu = torch.device("cpu")
    with locks.device_to_itself(cpu, alone=False), locks.device_to_itself(cpu, alone=False):
        lock = (tmp_path / "vtbench-cpu.lock").open()
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.close()
