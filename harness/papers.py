"""What papers print, of results/published/*.csv, as a sweep file's `published` names it, and what it is of ours."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from harness.errors import VtbenchError
from harness.reading import suggest
from harness.shown import Published

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
# A printed metric: the parts of a convention that add up to it.
PARTS = {
    "tflops": ("vision", "projector", "decoder_linear", "decoder_attention", "lm_head", "extra"),
    "tflops_vit": ("vision",),
    "tflops_llm": ("decoder_linear", "decoder_attention", "lm_head"),
    "tflops_extra": ("extra",),
}
TIMES = {"cuda_ms"}
TITLES = {"ivtp": "IVTP", "atp": "ATP-LLaVA", "lvpruning": "LVPruning"}


class Benchmark(NamedTuple):
    """A printed benchmark: its lmms-eval task and metric, and what times that metric is the printed number."""

    title: str
    task: str
    metric: str
    scale: float = 100
    note: str = ""  # what differs from the papers' own measurement


VAL = "the papers' is test-dev, whose answers are not public"
JUDGE = "needs a judge's key"
BENCHMARKS = {
    "vqav2": Benchmark("VQAv2", "vqav2_val", "exact_match", note=VAL),
    "gqa": Benchmark("GQA", "gqa", "exact_match"),
    "vizwiz": Benchmark("VizWiz", "vizwiz_vqa_val", "exact_match", note=VAL),
    "sqa_img": Benchmark("SQA-I", "scienceqa_img", "exact_match"),
    "textvqa": Benchmark(
        "TextVQA", "textvqa_val", "exact_match", note="LLaVA's own prompt lists OCR tokens, this one does not"
    ),
    "pope": Benchmark("POPE", "pope", "pope_f1_score", note="F1 of all three splits together, not the mean of theirs"),
    "pope_rad": Benchmark("POPE random", "pope_random", "pope_f1_score"),
    "pope_pop": Benchmark("POPE popular", "pope_pop", "pope_f1_score"),
    "pope_adv": Benchmark("POPE adversarial", "pope_adv", "pope_f1_score"),
    "mme": Benchmark("MME", "mme", "mme_perception_score", 1, "points of 2000"),
    "mme_norm": Benchmark("MME", "mme", "mme_perception_score", 1 / 20, "perception, percent of its 2000 points"),
    "mmb": Benchmark("MMB", "mmbench_en_dev_static", "gpt_eval_score", 1, "the option read by rules, not by ChatGPT"),
    "mmb_cn": Benchmark("MMB-CN", "mmbench_cn_dev", "gpt_eval_score", 1, JUDGE),
    "seed": Benchmark("SEED", "seedbench", "seed_all", note="images and videos"),
    "llava_w": Benchmark("LLaVA-W", "llava_in_the_wild", "gpt_eval_llava_all", 1, JUDGE),
    "mmvet": Benchmark("MM-Vet", "mmvet", "gpt_eval_score", 1, JUDGE),
    "okvqa": Benchmark("OKVQA", "ok_vqa_val2014", "exact_match"),
    "iconvqa": Benchmark("IconVQA", "iconqa_val", "anls", note="the paper does not name its split"),
    "docvqa": Benchmark("DocVQA", "docvqa_val", "anls", note="the paper does not name its split"),
    "ocrbench": Benchmark("OCRBench", "ocrbench", "ocrbench_accuracy", 1000, "right answers of 1000"),
    "chartqa": Benchmark("ChartQA", "chartqa", "relaxed_overall"),
    "infovqa": Benchmark("InfoVQA", "infovqa_val", "anls", note="the paper does not name its split"),
    "ai2d": Benchmark("AI2D", "ai2d", "exact_match"),
    "mmmu_val": Benchmark("MMMU-val", "mmmu_val", "mmmu_acc"),
    "realworldqa": Benchmark("RealWorldQA", "realworldqa", "exact_match"),
}
# What an average without its cells is of: IVTP's twelve.
AVERAGED: tuple[str, ...] = ("vqav2", "gqa", "vizwiz", "sqa_img", "textvqa", "pope", "mme_norm", "mmb", "mmb_cn")
AVERAGED += ("seed", "llava_w", "mmvet")
AVERAGES = {"avg_pi": "Avg. (PI)", "avg": "Avg.", "avg_rate": "Avg. rate"}
# What has to be known to hold a paper's scores against ours.
NOTES = {
    "ivtp": (
        "Published scores, all but Avg. (PI), are of models retrained with the method; Avg. (PI), pure inference, and "
        "what is measured here are of the published model as it is.",
    )
}
SCORES = {*BENCHMARKS, *AVERAGES, "tflops", "tflops_change"}


class Table(NamedTuple):
    """A table of papers.csv: what it shows, and why no sweep has it, or "" where one does."""

    title: str
    needs: str = ""


TRAINING = "needs training"
TABLES = {
    ("ivtp", "1"): Table("methods at 64 tokens, 7B"),
    ("ivtp", "2"): Table("methods at 64 tokens, 13B"),
    ("ivtp", "3"): Table("TFLOPs against text tokens, 7B"),
    ("ivtp", "4"): Table("attention rollout"),
    ("ivtp", "5"): Table("aggregation over a group"),
    ("ivtp", "6"): Table("guidance by the instruction"),
    ("ivtp", "7"): Table("pruning in the LLM too"),
    ("ivtp", "8"): Table("layers in a group"),
    ("ivtp", "9"): Table("TFLOPs by part"),
    ("ivtp", "S1"): Table("TFLOPs against text tokens, 13B"),
    ("ivtp", "S2"): Table("MiniGPT-v2 and CogVLM", "needs architectures that vtbench does not know"),
    ("ivtp", "S3"): Table("memory and hours of training", TRAINING),
    ("ivtp", "S4"): Table("LLM layers that prune"),
    ("ivtp", "S5"): Table("tokens that enter the LLM"),
    ("ivtp", "S6"): Table("threshold of relevance"),
    ("ivtp", "S7"): Table("what the pseudo CLS is"),
    ("atp", "S2"): Table("further benchmarks", TRAINING),
    ("atp", "S3"): Table("CUDA time with and without flash attention"),
    ("atp", "S4"): Table("seconds of training", TRAINING),
    ("atp", "S5"): Table("people's and GPT-4V's preference", TRAINING),
    ("atp", "S6"): Table("weights of the losses", TRAINING),
    ("atp", "S7"): Table("VILA, InternVL-2 and Qwen2-VL", TRAINING),
    ("atp", "S8"): Table("against PruMerge+ with its training", TRAINING),
    ("lvpruning", "1"): Table("VQA benchmarks and TFLOPs; its accuracy needs training"),
    ("lvpruning", "2"): Table("instruction following", TRAINING),
    ("lvpruning", "3"): Table("VQA benchmarks against Q-Former models", TRAINING),
    ("lvpruning", "4"): Table("instruction following against Q-Former models", TRAINING),
    ("lvpruning", "B"): Table("the decision modules' TFLOPs", TRAINING),
}


class Figure(NamedTuple):
    """One printed figure, `text` as it is printed."""

    paper: str
    table: str
    model: str
    row: str
    metric: str
    text: str
    setting: dict[str, str]

    @property
    def value(self) -> float:
        """The number."""
        return float(self.text)

    @property
    def half(self) -> float:
        """Half a unit of the last printed digit: what rounding may have moved it by."""
        return 0.5 * 10.0 ** -len(self.text.partition(".")[2])

    @property
    def told(self) -> dict[str, str]:
        """What `where` can name it by."""
        return self.setting | {"table": self.table, "row": self.row, "metric": self.metric}

    @property
    def source(self) -> str:
        """The table in words."""
        return table_name(self.paper, self.table)

    def fits(self, where: Mapping[str, object]) -> bool:
        """Whether it has all of these settings."""
        return all(self.told.get(key) == str(value) for key, value in where.items())


def table_name(paper: str, table: str) -> str:
    """Return a paper's table in words."""
    words = {"S": f"supplement Table {table[1:]}", "B": "Appendix B"}.get(table[0], f"Table {table}")
    return f"{TITLES.get(paper, paper)} {words}"


def paper_model(name: str) -> str:
    """Return a model's name as papers.csv has it: of `llava-hf/llava-1.5-7b-hf` llava-1.5-7b."""
    return Path(name.removeprefix("random:")).name.lower().removesuffix("-hf")


def printed(published: Published, *, costs: bool = True) -> dict[str, list[Figure]]:
    """Return the figures of every table that `published` names: costs, or scores and what stands beside them.

    Errors: VtbenchError for a paper or table without any, a printed row that `published` does not have, a row that is
    not printed, a setting that no figure has.
    """
    wanted, kind = (PARTS.keys() | TIMES, "costs") if costs else (SCORES, "scores")
    figures = [figure for figure in read_figures() if figure.metric in wanted]
    papers = dict.fromkeys(figure.paper for figure in figures)
    if published.paper not in papers:
        raise VtbenchError(f"published.paper: {published.paper!r} has no {kind}; {suggest(published.paper, papers)}")
    tables: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.paper == published.paper:
            tables.setdefault(figure.table, []).append(figure)
    for number in published.tables:
        if number not in tables:
            raise VtbenchError(
                f"published.tables: {published.paper} has no {kind} in table {number!r}; {suggest(number, tables)}"
            )
    named = {number: tables[number] for number in published.tables}
    found = [figure for table in named.values() for figure in table]
    for figure in found:
        if figure.row not in published.rows and figure.row not in published.missing:
            raise VtbenchError(
                f"published.rows: row {figure.row!r} of table {figure.table} is in neither rows nor missing"
            )
    rows = dict.fromkeys(figure.row for figure in found)
    for key in ("rows", "missing"):
        for row in getattr(published, key):
            if row not in rows:
                raise VtbenchError(f"published.{key}.{row}: is no row of these tables; {suggest(row, rows)}")
    known = dict.fromkeys(key for figure in found for key in figure.told)
    for index, entry in enumerate(published.unreproduced):
        place = f"published.unreproduced[{index}].where"
        for key in entry.where:
            if key not in known:
                raise VtbenchError(f"{place}.{key}: is not a key; {suggest(key, known)}")
        if not any(figure.fits(entry.where) for figure in found):
            raise VtbenchError(f"{place}: no printed figure of these tables has all of it")
    return named


def read_figures() -> list[Figure]:
    """Return all printed figures, in the files' order. Errors: VtbenchError where they are not there."""
    rows = []
    try:
        for name in ("papers.csv", "changes.csv"):
            with (PUBLISHED / name).open(encoding="utf-8", newline="") as file:
                rows += list(csv.DictReader(file))
    except OSError:
        raise VtbenchError(
            f"published: {PUBLISHED / name} cannot be read; vtbench has it where it is installed with pip install -e"
        ) from None
    return [
        Figure(
            paper=row["paper"],
            table=row["table"],
            model=row["model"],
            row=row["method"],
            metric=row["metric"],
            text=row["value"],
            setting=dict(re.findall(r"(\w+)=([\w.]+)", f"{row['setting']},{row['note']}")),
        )
        for row in rows
    ]
