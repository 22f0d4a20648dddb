"""The model that lmms-eval evaluates: LLaVA with a method attached, batched and greedy."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple, get_type_hints

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from PIL import Image, ImageFile
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm
from transformers import BatchFeature, DynamicCache, GenerationConfig

from harness.errors import VtbenchError
from harness.lmms.batches import Batch, batches_of
from harness.lmms.images import ImageCache, content
from harness.lmms.logits import finite_logits
from harness.model.attach import Attached, attach
from harness.model.ledger import Ledger
from harness.model.load import Loaded, load
from harness.model.plan import reads_text
from harness.model.text import TextEncoder, load_text_encoder
from harness.reading import explain_value
from methods import METHODS
from methods import method as make_method
from methods.interface import Method

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LLAVA_PROMPT = "USER: {images}{text} ASSISTANT:"
SHOWN = 32  # of the samples of a task, the first ones, whose pictures are kept for people


class Asked(NamedTuple):
    """A question and its pictures, with what tells each from others."""

    request: Instance
    visuals: list[Image.Image]
    names: list[str]


class Begun(NamedTuple):
    """What running the beginnings of prompts left."""

    ledger: Ledger
    cache: DynamicCache


class VtBench(lmms):
    """LLaVA with tokens removed: `lmms_eval --model vtbench --model_args model=pocket,method=topk,tokens=64`.

    Further model_args are the method's parameters. `observations` tells afterwards, by task and document, the visual
    tokens that entered every layer. Errors: VtbenchError for an unknown or impossible model, method or parameter.
    """

    is_simple = True

    def __init__(
        self,
        model: str | Loaded = "pocket",
        method: str | Method = "full",
        batch_size: int | str = 8,
        device: str | None = None,
        dtype: str = "float32",
        attention: str = "sdpa",
        seed: int | str = 0,
        text_encoder: str | None = None,
        trust_remote_code: bool = False,
        max_batch_size: int | None = None,
        images: ImageCache | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__()
        if isinstance(method, str):
            method = _method(method, parameters)
        self.seed, self.batch_size_per_gpu = _whole("seed", seed, 0), _whole("batch_size", batch_size, 1)
        if isinstance(model, str):
            device = _device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            if dtype not in DTYPES:
                raise VtbenchError(f"dtype: {dtype!r} is unknown; allowed are {', '.join(DTYPES)}")
            model = load(
                model, dtype=DTYPES[dtype], attention=attention, device=device, trust_remote_code=trust_remote_code
            )
        if model.processor is None:
            raise VtbenchError(f"{model.name!r} has no processor, so it cannot answer; it serves for costs only")
        try:
            reads = reads_text(method, method.stages(model.shape))
        except ValueError as error:
            raise VtbenchError(f"{method.name}: {error}") from None
        self.loaded, self.method = model, method
        self.shares = not reads and not _weighs_prompt(model.model.generation_config)
        self.encoder = encoder_for(model, text_encoder)
        self.images = images if images is not None else ImageCache()
        self.observations: dict[tuple[str, int], dict[str, Any]] = {}
        self.pictures: dict[str, bytes] = {}
        self.first: Instance | None = None

    def clean(self) -> None:
        """Keep the model: a warm worker uses it again."""

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request greedily, in batches; an error is raised, never an empty answer."""
        self.first = self.first or requests[0]
        answers = self.answer(requests, batches_of(requests, self.batch_size_per_gpu, self.beginnings(requests)))
        return [answers[index] for index in range(len(requests))]

    def beginnings(self, requests: list[Instance]) -> list[Hashable | None]:
        """Return what each prompt begins with, its text and pictures up to the last one; None for what is not shared.

        Every picture is read for that, once for all trials of a warm worker. One by one: tasks keep state as they read.
        """
        if not self.shares or len(requests) == 1:
            return [None] * len(requests)
        found: list[Hashable | None] = []
        for request in tqdm(requests, desc="pictures", disable=None, leave=False):
            *_, document, task, split = request.args
            docs = self.task_dict[task][split]
            names = self.images.contents(docs, document, partial(self._visuals, request))
            found.append((self._beginning(request.args[0], len(names)), *names) if names else None)
        return found

    def answer(self, requests: list[Instance], batches: list[Batch]) -> dict[int, GenerationResult]:
        """Return the answers to these batches of requests, by index."""
        answers: dict[int, GenerationResult] = {}
        with (
            attach(
                self.loaded.model,
                self.method,
                text_encoder=self.encoder,
                tokenizer=self.loaded.processor.tokenizer,
                seed=self.seed,
            ) as attached,
            torch.inference_mode(),
            tqdm(
                total=sum(len(group) for batch in batches for group in batch),
                desc=self.method.name,
                disable=None,
                leave=False,
            ) as progress,
        ):
            for batch in batches:
                asked = [[requests[index] for index in group] for group in batch]
                for group, found in zip(batch, self._answer(attached, asked), strict=True):
                    answers |= zip(group, found, strict=True)
                    progress.update(len(group))
        return answers

    def _answer(self, attached: Attached, groups: list[list[Instance]]) -> list[list[GenerationResult]]:
        """Return the answers to groups of questions; those of a group, if several, are about the same pictures."""
        asked = [self._asked(group) for group in groups]
        if all(len(group) == 1 for group in groups):
            alone = [question for (question,) in asked]
            return [[answer] for answer in self._generate(attached, alone, self._inputs(alone, self.prompt))]
        begun = self._begin(attached, [group[0] for group in asked])
        order = [(row, place) for row, group in enumerate(asked) for place in range(len(group))]
        order.sort(key=lambda where: -len(asked[where[0]][where[1]].request.args[0]))
        answers: dict[tuple[int, int], GenerationResult] = {}
        for first in range(0, len(order), self.batch_size_per_gpu):
            mine = order[first : first + self.batch_size_per_gpu]
            questions, rows = [asked[row][place] for row, place in mine], [row for row, _ in mine]
            # the rest holds a cache, which goes with its answers
            found = self._generate(attached, questions, self._rest(attached, begun, rows, questions))
            answers |= zip(mine, found, strict=True)
        return [[answers[row, place] for place in range(len(group))] for row, group in enumerate(asked)]

    def _asked(self, group: list[Instance]) -> list[Asked]:
        """Return questions about the same pictures with these."""
        visuals = self._visuals(group[0])
        names = list(map(content, visuals))
        return [Asked(request, visuals, names) for request in group]

    def _beginning(self, context: str, images: int) -> str:
        """Return a prompt up to the end of its last picture."""
        head, image, _ = self.prompt(context, images).rpartition("<image>")
        return head + image

    def _inputs(self, asked: list[Asked], prompt: Callable[[str, int], str]) -> BatchFeature:
        prompts = [prompt(each.request.args[0], len(each.visuals)) for each in asked]
        return self.inputs(prompts, [visual for each in asked for visual in each.visuals])

    def _begin(self, attached: Attached, asked: list[Asked]) -> Begun:
        """Run the beginnings of prompts."""
        output = self.loaded.model(**self._inputs(asked, self._beginning), use_cache=True, logits_to_keep=1)
        return Begun(attached.ledger, output.past_key_values)

    def _rest(self, attached: Attached, begun: Begun, rows: list[int], asked: list[Asked]) -> BatchFeature:
        """Return the rest of prompts that begin as these rows, as `generate` takes it."""
        tokenizer, image = self.loaded.processor.tokenizer, self.loaded.model.config.image_token_id
        whole = [tokenizer(self.prompt(each.request.args[0], len(each.visuals)))["input_ids"] for each in asked]
        rest = {"input_ids": [ids[len(ids) - ids[::-1].index(image) :] for ids in whole]}
        inputs = tokenizer.pad(rest, padding_side="left", return_tensors="pt").to(self.loaded.model.device)
        cache = attached.begun(*begun, rows)
        before = attached.ledger.frames[0].valid.long()
        mask = torch.cat([before, inputs["attention_mask"]], dim=1)
        return BatchFeature({"input_ids": inputs["input_ids"], "attention_mask": mask, "past_key_values": cache})

    def _generate(self, attached: Attached, asked: list[Asked], inputs: BatchFeature) -> list[GenerationResult]:
        requests = [each.request for each in asked]
        settings = _settings(requests[0].args[1])
        with finite_logits(self.loaded.model, [_place(request) for request in requests]):
            generated = self.loaded.model.generate(**inputs, **settings)
        new = generated[:, inputs["input_ids"].shape[1] :]
        texts = self.loaded.processor.batch_decode(new, skip_special_tokens=True)
        ledger = attached.ledger
        self._observe(ledger, asked)
        inserted = int(self.method.inserts_pseudo_cls)  # a token an image
        until = requests[0].args[1].get("until") or []
        pad = self.loaded.processor.tokenizer.pad_token_id
        return [
            GenerationResult(
                _stop(text, [until] if isinstance(until, str) else until).strip(),
                TokenCounts(input_tokens=length - inserted * len(each.visuals), output_tokens=int((row != pad).sum())),
            )
            for text, row, length, each in zip(texts, new, ledger.prompt_end.tolist(), asked, strict=True)
        ]

    def _visuals(self, request: Instance) -> list[Image.Image]:
        _, _, doc_to_visual, doc_id, task, split = request.args
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms-eval sets it, so that the rest of a picture would be grey
        try:
            visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
            return [_whole_picture(visual) for visual in visuals if visual is not None]
        except MemoryError:
            raise
        except Exception as error:  # PIL's decoders raise of all kinds
            said = f"{type(error).__name__}: {error}"
            raise VtbenchError(f"{_place(request)}: its image cannot be read: {said}") from error

    def example(self) -> BatchFeature:
        """Return the first question that was asked, alone, as `generate` takes it: what is timed is measured on it."""
        assert self.first is not None
        return self._inputs(self._asked([self.first]), self.prompt)

    def prompt(self, context: str, images: int) -> str:
        """Return the whole prompt of a question about so many images: the processor's chat template, or LLaVA-1.5's."""
        text = context.replace("<image>", "").strip()
        processor = self.loaded.processor
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
            prompt: str = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            return prompt
        return LLAVA_PROMPT.format(images="<image>\n" * images, text=text)

    def inputs(self, prompts: list[str], images: list[Image.Image]) -> BatchFeature:
        """Return the batch that `generate` takes, padded on the left, on the model's device."""
        processor, model = self.loaded.processor, self.loaded.model
        text = [_with_places(prompt, self.loaded.shape.patches) for prompt in prompts]
        inputs = processor.tokenizer(text, padding=True, padding_side="left", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        if images:
            pixels = [self.images.pixels(processor.image_processor, image) for image in images]
            inputs["pixel_values"] = torch.stack(pixels).to(model.dtype)
        return BatchFeature(dict(inputs)).to(model.device)

    def _observe(self, ledger: Ledger, asked: list[Asked]) -> None:
        """Note what the model saw of every question and what became of it."""
        tokens, text = ledger.tokens, ledger.text.tolist()
        kept, merged = [patches.tolist() for patches in ledger.kept], ledger.merged
        whole = list(range(self.loaded.shape.patches))
        image = 0
        for row, (request, visuals, names) in enumerate(asked):
            mine = range(image, image + len(visuals))
            image += len(visuals)
            if request.args[3] < SHOWN:
                processor = self.loaded.processor.image_processor
                files = [self.images.webp(processor, visual) for visual in visuals]
                self.pictures |= dict(zip(names, files, strict=True))
            llm = [
                sum(tokens.llm[i][layer] for i in mine)
                for layer in range(len(self.loaded.model.model.language_model.layers))
            ]
            self.observations[request.args[4], request.args[3]] = {
                "question": request.args[0],
                "images": len(visuals),
                "pictures": names,
                "kept": [kept[i] for i in mine] if any(kept[i] != whole for i in mine) else None,
                "merged": any(merged[i] for i in mine),
                "words": [word for i in mine for word in ledger.guides[i].words]
                if self.method.reads_question
                else None,
                "vit": [tokens.vit[i] for i in mine],
                "llm": llm,
                "visual_tokens": llm[0],
                "text_tokens": text[row],
            }

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse: the papers' tasks generate."""
        raise VtbenchError("task: it asks for log-likelihoods; allowed are tasks that generate")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse: the papers' tasks ask once."""
        raise VtbenchError("task: it asks in several rounds; allowed are tasks that ask once")


def encoder_for(model: Loaded, name: str | None) -> TextEncoder | None:
    """Return the named text encoder on the model's device; None leaves the choice to `attach`."""
    return None if name is None else load_text_encoder(name, str(model.model.device))


def _method(name: str, parameters: dict[str, Any]) -> Method:
    """Return the method; lmms-eval's command line gives a parameter that it cannot read as text."""
    types = get_type_hints(METHODS[name]) if name in METHODS else {}
    for parameter in [parameter for parameter in parameters if parameter in types]:
        try:
            TypeAdapter(types[parameter]).validate_python(parameters[parameter], strict=True)
        except ValidationError as error:
            raise VtbenchError(f"{name}: {parameter}: {explain_value(error.errors())}") from None
    try:
        return make_method(name, **parameters)
    except ValueError as error:
        raise VtbenchError(str(error)) from None


def _whole(name: str, value: int | str, least: int) -> int:
    if not str(value).isdecimal() or int(value) < least:
        raise VtbenchError(f"{name}: {value!r} is not possible; allowed are whole numbers from {least}")
    return int(value)


def _device(name: str) -> str:
    try:
        return str(torch.device(name))
    except RuntimeError:
        raise VtbenchError(f"device: {name!r} is unknown; allowed are cpu, cuda, cuda:0, …") from None


def _place(request: Instance) -> str:
    return f"{request.args[4]}, document {request.args[3]}"


def _whole_picture(image: Image.Image) -> Image.Image:
    """Return the picture in RGB, read as a whole; of an animated one the first frame."""
    if not all(image.size):
        raise ValueError("it has no pixels")
    return image.convert("RGB")


def _with_places(prompt: str, patches: int) -> str:
    return prompt.replace("<image>", "<image>" * patches)


def _settings(asked: dict[str, Any]) -> dict[str, Any]:
    """Return greedy settings with the task's length. Errors: VtbenchError when the task asks for more than greedy."""
    if asked.get("do_sample") and asked.get("temperature", 1.0):
        raise VtbenchError("task: it asks for sampling; allowed is greedy decoding")
    if asked.get("num_beams", 1) not in (None, 1):
        raise VtbenchError("task: it asks for beam search; allowed is greedy decoding")
    return {"max_new_tokens": asked.get("max_new_tokens", 128), "do_sample": False, "num_beams": 1}


def _weighs_prompt(settings: GenerationConfig) -> bool:
    """Whether what a model's folder asks of generation depends on the prompt, of which only the rest would be seen."""
    neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "guidance_scale": 1.0}
    return any((getattr(settings, name, None) or value) != value for name, value in neutral.items())


def _stop(text: str, until: list[str]) -> str:
    for end in until:
        if end.strip():
            text = text.split(end)[0]
    return text
