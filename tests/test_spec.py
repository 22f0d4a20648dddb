from pathlib import Path
from typing import get_args

import pytest

from harness import spec
from harness.check import check
from harness.errors import VtbenchError
from harness.metrics.conventions import CONVENTIONS
from harness.shown import Convention
from harness.spec import load_sweep

SWEEPS = Path(__file__).parents[1] / "sweeps"
BASE = "model: random:pocket\ntasks: pocketvqa\n"


def sweep(tmp_path: Path, text: str, **options: int) -> spec.Sweep:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return load_sweep(path, **options)


def only(tmp_path: Path, text: str) -> spec.Trial:
    (trial,) = sweep(tmp_path, BASE + text).trials()
    return trial


def test_axes_multiply_and_full_has_no_budget(tmp_path):
    text = (
        "model: [pocket, 'random:llava-1.5-7b']\ntasks: [a, b]\ntokens: [16, 64]\nlimit: [5, null]\nseed: [0, 1]\n"
        "methods: [full, topk, {ivtp: {group: [2, 3], threshold: [0.1, 0.2], tokens: 32}}]\n"
    )
    trials = sweep(tmp_path, text).trials()
    assert len(trials) == 2 * 2 * 2 * 2 * (1 + 2 + 2 * 2)
    assert [trial.model for trial in trials] == ["pocket"] * 56 + ["random:llava-1.5-7b"] * 56
    assert [trial.label for trial in trials[:7]] == [
        "full on a",
        "topk 16 on a",
        "topk 64 on a",
        "ivtp 32 group=2 threshold=0.1 on a",
        "ivtp 32 group=2 on a",
        "ivtp 32 threshold=0.1 on a",
        "ivtp 32 on a",
    ]


def test_a_cell_that_the_grid_holds_twice_comes_once(tmp_path):
    trials = sweep(tmp_path, BASE + "tokens: [16, 64]\nmethods: [ivtp, {ivtp: {group: [3, 4], tokens: 64}}]\n").trials()
    assert [trial.label for trial in trials] == [
        "ivtp 16 on pocketvqa",
        "ivtp 64 on pocketvqa",
        "ivtp 64 group=4 on pocketvqa",
    ]


def test_a_method_s_own_tokens_replace_the_file_s_and_null_is_adaptive(tmp_path):
    text = "tokens: [16, 64]\nmethods: [prumerge, {prumerge: {tokens: null}}, {prumerge+: {tokens: [null, 36]}}]\n"
    assert [trial.label for trial in sweep(tmp_path, BASE + text).trials()] == [
        "prumerge 16 on pocketvqa",
        "prumerge 64 on pocketvqa",
        "prumerge adaptive on pocketvqa",
        "prumerge+ adaptive on pocketvqa",
        "prumerge+ 36 on pocketvqa",
    ]
    alone = only(tmp_path, "methods: prumerge\n")
    assert alone.label == "prumerge adaptive on pocketvqa" and alone.parameters["tokens"] is None


def test_the_name_is_the_file_s_unless_given(tmp_path):
    assert sweep(tmp_path, BASE + "methods: full\n").name == "x"
    assert sweep(tmp_path, BASE + "methods: full\nname: other\n").name == "other"


def test_limit_can_be_replaced(tmp_path):
    assert [trial.limit for trial in sweep(tmp_path, BASE + "methods: full\nlimit: [1, 2]", limit=7).trials()] == [7]


def test_the_id_is_stable(tmp_path):
    trial = only(tmp_path, "methods: [{topk: {tokens: 64}}]\n")
    expected = (
        '{"attention":"sdpa","batch_size":8,"compile":false,"content":{},"dtype":"float32","limit":null,'
        '"measure":["accuracy","flops","latency","memory","tokens"],"method":"topk","model":"random:pocket",'
        '"parameters":{"positions":"original","tokens":64},"protocol":3,"seed":0,"task":"gqa","text_encoder":null,'
        '"text_tokens":null,"trust_remote_code":false}'
    )
    assert (
        trial.model_copy(update={"task": "gqa", "content": {}}).id
        == spec.hashlib.sha256(expected.encode()).hexdigest()[:16]
    )


@pytest.mark.parametrize(
    "same",
    [
        "name: other\n",
        "description: words\n",
        "resources: {cpus: 2, gpus: 1}\n",
        "seed: 0\n",
        "seed: [0]\n",
        "dtype: float32\nattention: sdpa\nbatch_size: 8\nlimit: null\n",
        "measure: [tokens, memory, latency, flops, accuracy]\n",
    ],
)
def test_what_changes_no_number_changes_no_id(tmp_path, same):
    assert only(tmp_path, "tokens: 64\nmethods: ivtp\n" + same).id == only(tmp_path, "tokens: 64\nmethods: ivtp\n").id


def test_a_default_written_out_is_the_same_trial(tmp_path):
    written = "methods: [{ivtp: {tokens: 64, group: 3, threshold: 0.2, positions: original, tokens_into_llm: null}}]\n"
    assert only(tmp_path, written).id == only(tmp_path, "tokens: 64\nmethods: ivtp\n").id
    integer = "methods: [{ivtp: {tokens: 64, threshold: 0}}]\n"
    assert only(tmp_path, integer).id == only(tmp_path, integer.replace("0}", "0.0}")).id


@pytest.mark.parametrize(
    "other",
    ["seed: 1\n", "limit: 3\n", "dtype: bfloat16\n", "attention: eager\n", "batch_size: 4\n", "measure: accuracy\n"],
)
def test_what_can_change_a_number_changes_the_id(tmp_path, other):
    assert only(tmp_path, "tokens: 64\nmethods: ivtp\n" + other).id != only(tmp_path, "tokens: 64\nmethods: ivtp\n").id


def test_protocol_and_content_change_the_id(tmp_path):
    trial = only(tmp_path, "methods: full\n")
    assert trial.model_copy(update={"protocol": 1}).id != trial.id
    (tmp_path / "weights").mkdir()
    local = "model: " + str(tmp_path / "weights") + "\ntasks: pope\nmethods: full\n"
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"one")
    (before,) = sweep(tmp_path, local).trials()
    spec.fingerprint.cache_clear()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"two")
    (after,) = sweep(tmp_path, local).trials()
    assert before.content.keys() == {"model"} and before.id != after.id
    (other,) = sweep(tmp_path, local + f"text_encoder: {tmp_path / 'weights'}\n").trials()
    assert other.content.keys() == {"model", "text_encoder"}
    checkpoint = tmp_path / "clip.pt"
    checkpoint.write_bytes(b"one")
    named = local + f"text_encoder: 'open_clip:ViT-L-14/{checkpoint}'\n"
    (first,) = sweep(tmp_path, named).trials()
    assert first.content.keys() == {"model", "text_encoder"}
    (tag,) = sweep(tmp_path, local + "text_encoder: 'open_clip:ViT-L-14/openai'\n").trials()
    assert tag.content.keys() == {"model"}


COSTS = "model: llava-1.5-7b\ntext_tokens: 64\n"


def test_a_sweep_without_tasks_measures_costs(tmp_path):
    text = "model: [pocket, llava-1.5-7b]\ntext_tokens: [64, 512]\ntokens: 64\nmethods: [full, topk]\n"
    trials = sweep(tmp_path, text).trials()
    assert [(trial.model, trial.label, trial.task) for trial in trials[::2]] == [
        ("pocket", "full on 64 text tokens", None),
        ("pocket", "full on 512 text tokens", None),
        ("llava-1.5-7b", "full on 64 text tokens", None),
        ("llava-1.5-7b", "full on 512 text tokens", None),
    ]
    assert {trial.measure for trial in trials[:4]} == {("flops", "latency", "memory", "tokens")}
    assert {trial.measure for trial in trials[4:]} == {("flops", "memory", "tokens")}
    assert len({trial.id for trial in trials}) == 8


def test_what_the_report_shows_changes_no_id(tmp_path):
    rows = "{paper: ivtp, tables: ['3'], rows: {TopK: topk}}"
    (shown,) = sweep(tmp_path, COSTS + f"methods: full\nconvention: ivtp\npublished: {rows}\n").trials()
    (plain,) = sweep(tmp_path, COSTS + "methods: full\n").trials()
    assert shown.id == plain.id


def test_conventions_are_those_that_are_counted():
    assert set(get_args(Convention)) == set(CONVENTIONS)


WRONG = {
    "": "not a mapping of keys to values",
    "- full\n": "not a mapping of keys to values",
    "1: full\n": "not a mapping of keys to values",
    "model: [\n": "2:1: not YAML: expected the node content, but found '<stream end>'",
    "model: a\n\ttasks: b\n": "not YAML: found character '\\t' that cannot start any token; YAML indents with spaces",
    "model: a\nmodel: b\n": "2:1: not YAML: the key 'model' is there twice",
    "model: !!python/object/apply:os.system [ls]\n": "not YAML: could not determine a constructor for the tag",
    "methods: full\ntasks: a\n": "model: is missing",
    BASE + "method: full\n": "method: is not a key; did you mean methods?",
    BASE
    + "methods: full\ntoken: 3\n": "token: is not a key; did you mean tokens? allowed are name, description, model",
    BASE + "methods: []\n": "methods: is empty",
    BASE + "methods: full\ntokens: []\n": "tokens: is empty",
    BASE + "methods: fulll\n": "methods: 'fulll' is not a method; did you mean full? allowed are full, random",
    BASE + "methods: [full, 3]\n": "methods[1]: 3 is not possible; it should be a name, or {name: {parameter: values}}",
    BASE + "methods: [{topk: {tokens: 4}, full: {}}]\n": "it should be a name, or {name: {parameter: values}}",
    BASE + "methods: [full, topk]\n": "methods[1].topk.tokens: is missing",
    BASE + "methods: [{full: {tokens: 3}}]\n": "methods[0].full.tokens: is not a parameter; allowed are positions",
    BASE
    + "methods: {ivtp: 3}\n": "methods.ivtp: 3 is not possible; it should be a mapping of positions, tokens, group",
    BASE + "tokens: 64\nmethods: {ivtp: {grup: 3}}\n": "methods.ivtp.grup: is not a parameter; did you mean group?",
    BASE + "tokens: 64\nmethods: {ivtp: {group: [3, x]}}\n": "methods.ivtp.group: 'x' is not possible; it should be a "
    "valid integer or 'all'",
    BASE + "tokens: 64\nmethods: {ivtp: {group: []}}\n": "methods.ivtp.group: is empty",
    BASE + "tokens: 64\nmethods: {ivtp: {group: [3, 0]}}\n": "methods.ivtp.group: 0 is not possible; allowed are 1 or",
    BASE + "tokens: 64\nmethods: {ivtp: {threshold: .nan}}\n": "methods.ivtp.threshold: nan is not possible",
    BASE
    + "tokens: 64\nmethods: [{fastv: {budget: kep}}]\n": "methods[0].fastv.budget: 'kep' is not possible; did you mean"
    " kept? allowed are mean, kept",
    BASE + "tokens: 0\nmethods: full\n": "tokens: 0 is not possible; it should be greater than or equal to 1",
    BASE + "tokens: [1, a]\nmethods: full\n": "tokens[1]: 'a' is not possible; it should be a valid integer",
    BASE + "tokens: true\nmethods: full\n": "tokens: True is not possible; it should be a valid integer",
    BASE + "tokens: [2, 2]\nmethods: full\n": "tokens: 2 is there twice",
    BASE + "dtype: fp16\nmethods: full\n": "dtype: 'fp16' is not possible; allowed are float32, bfloat16, float16",
    BASE + "measure: [flop]\nmethods: full\n": "measure[0]: 'flop' is not possible; did you mean flops?",
    BASE
    + "resources: {cpu: 2}\nmethods: full\n": "resources.cpu: is not a key; did you mean cpus? allowed are cpus, gpus",
    BASE + "resources: {cpus: 0}\nmethods: full\n": "resources.cpus: 0 is not possible; it should be greater than or",
    BASE
    + "resources: {gpus: 1.5}\nmethods: full\n": "resources.gpus: 1.5 is not possible; it should be 0, 0.0001 to 1",
    BASE
    + "resources: {gpus: 0.00001}\nmethods: full\n": "resources.gpus: 1e-05 is not possible; it should be 0, 0.0001",
    BASE + "methods: full\ntext_tokens: 64\n": "text_tokens: is there beside tasks; allowed is one of the two",
    "model: pocket\nmethods: full\n": "tasks: is missing; a sweep of costs alone has text_tokens instead",
    COSTS + "methods: full\nconvention: mac\n": "convention: 'mac' is not possible; did you mean macs?",
    BASE + "methods: full\nname: ../x\n": "name: '../x' is not possible; it names a folder, so no slashes",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_one_line_with_its_place(tmp_path, text):
    with pytest.raises(VtbenchError) as caught:
        sweep(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'x.yaml'}:") and "\n" not in message
    assert WRONG[text] in message


@pytest.mark.parametrize("resources", ["{gpus: 0}", "{gpus: 0.0001}", "{gpus: 1}", "{gpus: 8}", "{cpus: 1.5}"])
def test_what_ray_can_reserve_is_possible(tmp_path, resources):
    assert sweep(tmp_path, BASE + f"methods: full\nresources: {resources}\n").trials()


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(VtbenchError, match=r"missing\.yaml: there is no such file"):
        load_sweep(tmp_path / "missing.yaml")
    with pytest.raises(VtbenchError, match="is a directory"):
        load_sweep(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(VtbenchError, match=r"latin\.yaml: byte 6 is not UTF-8"):
        load_sweep(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            BASE + "tokens: [49, 50]\nmethods: [full, pooling]\n",
            "methods[1].pooling.tokens: 50 is not possible, pooling needs a square; the nearest are 49 and 64",
        ),
        (
            "model: llava-1.5-7b\ntasks: pocketvqa\nmethods: full\n",
            "model: 'llava-1.5-7b' has no weights to answer tasks with; allowed is text_tokens instead of tasks",
        ),
        (
            COSTS + "methods: full\nmeasure: [flops, latency]\n",
            "measure: latency is not possible of llava-1.5-7b without tasks; allowed are flops, memory, tokens",
        ),
        (
            COSTS.replace("llava", "random:llava") + "methods: {lvpruning: {ratio: 0.6}}\n",
            "methods.lvpruning: needs trained modules, of which there are none; it can be counted alone, with model: ",
        ),
        (
            COSTS + "methods: prumerge\n",
            "methods.prumerge: adapts to the image, so it must run to be counted; allowed are models with weights",
        ),
        (
            "model: random:llava-1.5-13b\ntasks: pocketvqa\nmethods: full\n",
            "model: 'random:llava-1.5-13b' has no tokenizer to answer tasks with; allowed is text_tokens instead of",
        ),
        (
            COSTS.replace("64", "[64, 3521]") + "methods: full\n",
            "text_tokens: 3521 is not possible; allowed are 2 to 3520, for which llava-1.5-7b has positions beside",
        ),
        (BASE + "tokens: 577\nmethods: topk\n", "methods.topk.tokens: 577 is not possible; allowed are 1 to 576"),
        ("model: pokcet\ntasks: pocketvqa\nmethods: full\n", "model: 'pokcet' is not a model; did you mean pocket?"),
        (BASE.replace("vqa", "vaq") + "methods: full\n", "tasks: 'pocketvaq' is not a task; did you mean pocketvqa"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(tmp_path, text, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(VtbenchError) as caught:
        check(sweep(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path / 'x.yaml'}:{message}")


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_sweep_can_run(path):
    check(load_sweep(path))


def test_the_quickstart_is_a_sweep():
    trials = load_sweep(SWEEPS / "quickstart.yaml").trials()
    assert len({trial.id for trial in trials}) == len(trials) == 1 + 6 * 4 + 8
