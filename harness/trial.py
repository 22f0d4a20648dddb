"""Runs one trial: a model with a method on a task, from the sweep's cell to its record.

lmms-eval asks every question of the task with the method attached, which gives the scores and, from the engine's
ledger, the visual tokens that really entered every layer. FLOPs and KV bytes are counted at these. Then one prompt of
the task, alone, is timed.
"""

import gc
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from harness.costs import BEFORE_IMAGE, text_side
from harness.errors import VtbenchError
from harness.faults import out_of_memory, shortage
from harness.lmms.model import DTYPES, ImageCache, VtBench
from harness.lmms.shards import Answered, Asking, Enough
from harness.metrics.accuracy import Accuracy, evaluate
from harness.metrics.flops import count, count_samples
from harness.metrics.latency import device_to_itself, measure
from harness.metrics.memory import memory, peak
from harness.metrics.tokens import realised
from harness.model import guide
from harness.model.anatomy import shape_of_config
from harness.model.attach import Attached, attach
from harness.model.compiled import compiled
from harness.model.load import Loaded, config_of, load
from harness.model.shapes import LLAVA
from harness.model.text import TextEncoder, default_text_encoder, default_tokenizer, load_text_encoder
from harness.provenance import provenance
from harness.shards import Answers, Shard
from harness.spec import Trial
from harness.store import Result
from methods.interface import Method
from methods.schedule import tokens_per_layer

SCHEMA = 1
WARMUP, REPEATS = 3, 10

T = TypeVar("T")


class Warm:
    """What a worker keeps between trials: the latest model, and the images that it has preprocessed."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.images = ImageCache()
        self._loaded: dict[object, Loaded] = {}

    def model(self, trial: Trial) -> Loaded:
        """Return the trial's model, loaded anew only when it is another one than the trial before had."""
        if trial.warm_key not in self._loaded:
            self._loaded.clear()  # the old model goes before the new one comes
            self.images = ImageCache()
            # lmms-eval runs elsewhere, where a relative path leads nowhere
            folder = trial.model != "pocket" and Path(trial.model).is_dir()
            name = str(Path(trial.model).resolve()) if folder else trial.model
            loaded = self._loaded[trial.warm_key] = load(
                name,
                dtype=DTYPES[trial.dtype],
                attention=trial.attention,
                device=str(self.device),
                trust_remote_code=trial.trust_remote_code,
            )
            if trial.compile:
                compiled(loaded.model)
        return self._loaded[trial.warm_key]

    def spare(self) -> None:
        """Free what can be had again, the model aside."""
        self.images = ImageCache()
        load_text_encoder.cache_clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class Observed(NamedTuple):
    """What running the model gave."""

    accuracy: Accuracy | None
    samples: list[dict[str, Any]]  # per sample the visual tokens that entered each layer, and its text tokens
    prompt: Mapping[str, Tensor]  # one sample alone, as the model takes it


Measured = dict[str, tuple[str, Any]]  # by the record's key: the sweep's name for it, and what was found


def work(warm: Warm, trial: Trial, part: Shard | Answers | None = None) -> Result | Answers:
    """Do a worker's job: run a trial, ask a shard of its questions, or end it with the answers to all."""
    if isinstance(part, Shard):
        return within_memory(partial(asked, trial, warm, part), warm, trial.batch_size)
    return run(trial, warm, part)


def run(trial: Trial, warm: Warm, answers: Answers | None = None) -> Result:
    """Run a trial, its questions asked before if answers are given. Errors: whatever goes wrong in it."""
    return within_memory(
        partial(attempt, trial, warm, answers), warm, answers.batch_size if answers else trial.batch_size
    )


def within_memory(attempt: Callable[[int], T], warm: Warm, batch_size: int) -> T:
    """Attempt with this batch size, once more with half of it where memory does not suffice."""
    sizes = [batch_size]
    while True:
        try:
            return attempt(sizes[-1])
        except Exception as error:
            if not out_of_memory(error):
                raise
            said = shortage(error, warm.device)
        warm.spare()  # not before the error has gone, which kept the tensors of every frame
        if len(sizes) == 2 or sizes[-1] == 1:
            raise VtbenchError(f"out of memory at batch size {' and then '.join(map(str, sizes))}: {said}")
        sizes.append(sizes[-1] // 2)


def asked(trial: Trial, warm: Warm, shard: Shard, batch_size: int) -> Answers:
    """Ask a shard of the task's questions."""
    started, began = datetime.now(UTC), time.perf_counter()
    with device_to_itself(warm.device, alone=False):
        loaded, method = warm.model(trial), trial.make_method()
        text_encoder(trial, loaded, method)
        lm = Asking(shard=shard, whole=trial.batch_size, **options(trial, loaded, method, warm.images, batch_size))
        assert trial.task is not None
        with suppress(Enough):
            evaluate(lm, trial.task, limit=trial.limit, seed=trial.seed)
    return Answers(
        texts=lm.texts,
        observations=lm.observations,
        pictures=lm.pictures,
        batch_size=batch_size,
        started=started,
        seconds=time.perf_counter() - began,
    )


def attempt(trial: Trial, warm: Warm, answers: Answers | None, batch_size: int) -> Result:
    """Run a trial with this batch size."""
    began = time.perf_counter() - (answers.seconds if answers else 0)
    started = answers.started if answers else datetime.now(UTC)
    measured = counted(trial) if trial.model in LLAVA else observed(trial, warm, answers, batch_size)
    record = {
        "schema": SCHEMA,
        "id": trial.id,
        "trial": trial.model_dump(mode="json"),
        **{key: found.record() if found and name in trial.measure else None for key, (name, found) in measured.items()},
        "provenance": provenance(warm.device)
        | {
            "dtype": trial.dtype,
            "attention": trial.attention,
            "seed": trial.seed,
            "protocol": trial.protocol,
            "batch_size": batch_size,
            "shards": answers.shards if answers else 1,
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - began, 3),
        },
    }
    accuracy = measured["scores"][1]
    if accuracy is None or "accuracy" not in trial.measure:
        return Result(record, None)
    return Result(record, accuracy.samples, accuracy.pictures)


def observed(trial: Trial, warm: Warm, answers: Answers | None, batch_size: int) -> Measured:
    """Run the model, and count and time what it did."""
    with device_to_itself(warm.device, alone=False):
        loaded = warm.model(trial)
        method = trial.make_method()
        encoder = text_encoder(trial, loaded, method)
        if trial.task is None:
            seen = stand_in(trial, loaded, method, encoder)
        else:
            seen = ask(trial, answers, **options(trial, loaded, method, warm.images, batch_size))
        patches = loaded.shape.patches
        tokens = realised(seen.samples, nominal=trial.parameters.get("tokens", patches), patches=patches)
        flops = None
        if "flops" in trial.measure:
            is_image = seen.prompt["input_ids"][0] == loaded.model.config.image_token_id
            flops = count_samples(
                loaded.model.config,
                seen.samples,
                method=method,
                before_image=int(is_image.int().argmax()),
                text_encoder=encoder.model.config.text_config if encoder else None,
            )
    latency, highest = None, None
    if {"latency", "memory"} & set(trial.measure):
        timed = "latency" in trial.measure
        forget = partial(guide.forget, encoder)
        forget()
        with peak(warm.device) as highest:
            latency = measure(
                loaded.model,
                seen.prompt,
                method=method,
                attached=lambda each: attached(trial, loaded, each, encoder),
                warmup=WARMUP if timed else 0,
                repeats=REPEATS if timed else 1,
                forget=forget,
            )
    return {
        "scores": ("accuracy", seen.accuracy),
        "tokens": ("tokens", tokens),
        "flops": ("flops", flops),
        "latency": ("latency", latency),
        "memory": ("memory", memory(tokens.llm, tokens.text, loaded.model.config, highest)),
    }


def counted(trial: Trial) -> Measured:
    """Count a prompt with one image by the method's schedule, of a shape that has no weights."""
    assert trial.text_tokens is not None
    config, method = config_of(trial.model), trial.make_method()
    shape = shape_of_config(config)
    lengths = tokens_per_layer(method.stages(shape), shape)
    text = trial.text_tokens + method.inserts_pseudo_cls
    sample = {"vit": [lengths.vit], "llm": lengths.llm, "visual_tokens": lengths.llm[0], "text_tokens": text}
    tokens = realised([sample], nominal=trial.parameters.get("tokens", shape.patches), patches=shape.patches)
    encoder = text_side(trial.model) if method.reads_clip else None
    flops = count(config, lengths, text, method=method, before_image=BEFORE_IMAGE, text_encoder=encoder)
    return {
        "scores": ("accuracy", None),
        "tokens": ("tokens", tokens),
        "flops": ("flops", flops),
        "latency": ("latency", None),
        "memory": ("memory", memory(tokens.llm, tokens.text, config)),
    }


def options(trial: Trial, loaded: Loaded, method: Method, images: ImageCache, batch_size: int) -> dict[str, Any]:
    """Return what makes the model that lmms-eval evaluates."""
    return {
        "model": loaded,
        "method": method,
        "batch_size": batch_size,
        "seed": trial.seed,
        "text_encoder": trial.text_encoder,
        "images": images,
    }


def ask(trial: Trial, answers: Answers | None, **options: Any) -> Observed:
    """Ask every question of the task, or one when time alone is wanted, or score the answers that are there."""
    lm = Answered(answers=answers, **options) if answers else VtBench(**options)
    limit = 1 if trial.measure == ("latency",) else trial.limit
    assert trial.task is not None
    accuracy = evaluate(lm, trial.task, limit=limit, seed=trial.seed)
    return Observed(accuracy, list(lm.observations.values()), lm.example())


def stand_in(trial: Trial, loaded: Loaded, method: Method, encoder: TextEncoder | None) -> Observed:
    """Show the model a grey image and a question of so many tokens that says nothing, for its costs."""
    config, patches = loaded.model.config, loaded.shape.patches
    words = default_tokenizer(loaded.name)("what color is the small object?", add_special_tokens=False)["input_ids"]
    assert trial.text_tokens is not None
    text = (words * trial.text_tokens)[: trial.text_tokens]
    before, question = text[:BEFORE_IMAGE], text[BEFORE_IMAGE:]
    ids = torch.tensor([[*before, *[config.image_token_id] * patches, *question]])
    side = config.vision_config.image_size
    prompt = {
        "input_ids": ids.to(loaded.model.device),
        "attention_mask": torch.ones_like(ids).to(loaded.model.device),
        "pixel_values": torch.zeros(1, 3, side, side).to(loaded.model.device, loaded.model.dtype),
    }
    with attached(trial, loaded, method, encoder) as work, torch.inference_mode():
        loaded.model(**prompt, logits_to_keep=1)
    (vit,), (llm,) = work.ledger.tokens
    sample = {"images": 1, "vit": [vit], "llm": llm, "visual_tokens": llm[0], "text_tokens": int(work.ledger.text)}
    return Observed(None, [sample], prompt)


def attached(
    trial: Trial, loaded: Loaded, method: Method, encoder: TextEncoder | None
) -> AbstractContextManager[Attached]:
    """Attach the method as in the task's run."""
    tokenizer = loaded.processor.tokenizer if loaded.processor else None
    return attach(loaded.model, method, text_encoder=encoder, tokenizer=tokenizer, seed=trial.seed)


def text_encoder(trial: Trial, loaded: Loaded, method: Method) -> TextEncoder | None:
    """Return the text encoder that the method needs; where it needs none, none stays, as its memory would count."""
    if not method.reads_clip:
        load_text_encoder.cache_clear()
        gc.collect()  # a copy on a GPU goes only now: it is part of a cycle
        return None
    name = trial.text_encoder or default_text_encoder(loaded.model.config.name_or_path)
    return load_text_encoder(name, str(loaded.model.device))
