"""The model that lmms-eval evaluates: LLaVA with a method attached, batched and greedy."""

from typing import Any, get_type_hints

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from PIL import Image, ImageFile
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm
from transformers import BatchFeature

from harness.errors import VtbenchError
from harness.lmms.images import ImageCache, content
from harness.lmms.logits import finite_logits
from harness.model.attach import Attached, attach
from harness.model.load import Loaded, load
from harness.model.text import TextEncoder, load_text_encoder
from harness.reading import explain_value
from methods import METHODS
from methods import method as make_method
from methods.interface import Method

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LLAVA_PROMPT = "USER: {images}{text} ASSISTANT:"
SHOWN = 32  # of the samples of a task, the first ones, whose pictures are kept for people


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
            method.stages(model.shape)
        except ValueError as error:
            raise VtbenchError(f"{method.name}: {error}") from None
        self.loaded, self.method = model, method
        self.encoder = encoder_for(model, text_encoder)
        self.images = images if images is not None else ImageCache()
        self.observations: dict[tuple[str, int], dict[str, Any]] = {}
        self.pictures: dict[str, bytes] = {}
        self.first: Instance | None = None

    def clean(self) -> None:
        """Keep the model: a warm worker uses it again."""

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request greedily, in batches of like length; an error is raised, never an empty answer."""
        self.first = self.first or requests[0]
        answers = self.answer(requests, batches_of(requests, self.batch_size_per_gpu))
        return [answers[index] for index in range(len(requests))]

    def answer(self, requests: list[Instance], batches: list[list[int]]) -> dict[int, GenerationResult]:
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
            tqdm(total=sum(map(len, batches)), desc=self.method.name, disable=None, leave=False) as progress,
        ):
            for batch in batches:
                for index, answer in zip(batch, self._answer(attached, [requests[i] for i in batch]), strict=True):
                    answers[index] = answer
                progress.update(len(batch))
        return answers

    def _answer(self, attached: Attached, requests: list[Instance]) -> list[GenerationResult]:
        prompts, images, per_row = [], [], []
        for request in requests:
            visuals = self._visuals(request)
            per_row.append(len(visuals))
            images += visuals
            prompts.append(self.prompt(request.args[0], len(visuals)))
        inputs = self.inputs(prompts, images)
        settings = _settings(requests[0].args[1])
        with finite_logits(self.loaded.model, [_place(request) for request in requests]):
            generated = self.loaded.model.generate(**inputs, **settings)
        new = generated[:, inputs["input_ids"].shape[1] :]
        texts = self.loaded.processor.batch_decode(new, skip_special_tokens=True)
        self._observe(attached, requests, per_row, images)
        until = requests[0].args[1].get("until") or []
        pad = self.loaded.processor.tokenizer.pad_token_id
        return [
            GenerationResult(
                _stop(text, [until] if isinstance(until, str) else until).strip(),
                TokenCounts(input_tokens=int(mask.sum()), output_tokens=int((row != pad).sum())),
            )
            for text, row, mask in zip(texts, new, inputs["attention_mask"], strict=True)
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
        visuals = self._visuals(self.first)
        return self.inputs([self.prompt(self.first.args[0], len(visuals))], visuals)

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

    def _observe(
        self,
        attached: Attached,
        requests: list[Instance],
        per_row: list[int],
        images: list[Image.Image],
    ) -> None:
        ledger = attached.ledger
        tokens, text = ledger.tokens, ledger.text.tolist()
        kept, merged = [patches.tolist() for patches in ledger.kept], ledger.merged
        whole = list(range(self.loaded.shape.patches))
        image = 0
        for row, (request, count) in enumerate(zip(requests, per_row, strict=True)):
            mine = range(image, image + count)
            image += count
            if request.args[3] < SHOWN:
                processor = self.loaded.processor.image_processor
                self.pictures |= {content(images[i]): self.images.webp(processor, images[i]) for i in mine}
            llm = [
                sum(tokens.llm[i][layer] for i in mine)
                for layer in range(len(self.loaded.model.model.language_model.layers))
            ]
            self.observations[request.args[4], request.args[3]] = {
                "question": request.args[0],
                "images": count,
                "pictures": [content(images[i]) for i in mine],
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


def batches_of(requests: list[Instance], size: int) -> list[list[int]]:
    """Return batches of requests, by index: longest questions first, and one batch shares its generation settings."""
    order = sorted(range(len(requests)), key=lambda index: (-len(requests[index].args[0]), index))
    batches: list[list[int]] = []
    for index in order:
        same = batches and str(requests[batches[-1][0]].args[1]) == str(requests[index].args[1])
        if same and len(batches[-1]) < size:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _settings(asked: dict[str, Any]) -> dict[str, Any]:
    """Return greedy settings with the task's length. Errors: VtbenchError when the task asks for more than greedy."""
    if asked.get("do_sample") and asked.get("temperature", 1.0):
        raise VtbenchError("task: it asks for sampling; allowed is greedy decoding")
    if asked.get("num_beams", 1) not in (None, 1):
        raise VtbenchError("task: it asks for beam search; allowed is greedy decoding")
    return {"max_new_tokens": asked.get("max_new_tokens", 128), "do_sample": False, "num_beams": 1}


def _stop(text: str, until: list[str]) -> str:
    for end in until:
        if end.strip():
            text = text.split(end)[0]
    return text
