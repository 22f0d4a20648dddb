"""load_sweep on text, structures and mutated sweep files: whatever they hold, it raises nothing but its own error."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.declared import declared
from harness.errors import VtbenchError
from harness.spec import MANY, Axes, Published, Resources, load_sweep

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
PARAMETERS = sorted({parameter.name for parameters in declared().values() for parameter in parameters})
KEYS = [*Axes.model_fields, *Resources.model_fields, *Published.model_fields, *declared(), *PARAMETERS]
fuzzed = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.yaml"


def refused_or_read(file: Path, content: str | bytes) -> None:
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    file.write_bytes(content)
    try:
        load_sweep(file, most=MANY, look=True)
    except VtbenchError as error:
        message = str(error)
        assert message.startswith(f"{file}:") and message.isprintable() and len(message) < 2100


words = st.sampled_from([*KEYS, "pocket", "pocketvqa", "all", "null", "~", "1", "64", "[", "]", "{", "}", ": ", ", "])
marks = st.sampled_from(
    ["\n", "  ", "\n  ", "\n- ", "&a ", "*a", "<<: ", "!!int ", "!!float ", "!!binary ", "? ", "|\n "]
)
numbers = st.one_of(
    st.integers(), st.integers(-5, 700), st.floats(), st.sampled_from([10**400, -(10**20), 2**63, 1e308, 0.1])
)
scalars = st.one_of(
    st.none(), st.booleans(), numbers, st.text(max_size=20), st.binary(max_size=5), st.dates(), st.sampled_from(KEYS)
)
structures = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | scalars, inner, max_size=4),
    max_leaves=12,
)


@fuzzed
@given(st.text() | st.binary() | st.lists(words | marks | st.text(max_size=3), max_size=40).map("".join))
def test_text(file, content):
    refused_or_read(file, content)


@fuzzed
@given(st.dictionaries(st.sampled_from(list(Axes.model_fields)), structures, max_size=6))
def test_structures(file, content):
    good = {"model": "pocket", "tasks": "pocketvqa", "methods": "full"}
    refused_or_read(file, yaml.safe_dump(good | content))


@fuzzed
@given(st.sampled_from(sorted(declared())), st.data())
def test_values_of_every_method(file, name, data):
    known = st.sampled_from([parameter.name for parameter in declared()[name]])
    values = numbers | scalars | st.lists(numbers, max_size=3)
    given = data.draw(st.dictionaries(known, values, max_size=4))
    budget = {"tokens": 64} if data.draw(st.booleans()) else {}
    content = {"model": "pocket", "tasks": "pocketvqa", "methods": [{name: given}]} | budget
    refused_or_read(file, yaml.safe_dump(content))


@fuzzed
@given(st.sampled_from(SWEEPS), st.data())
def test_mutated_sweeps(file, sweep, data):
    text = sweep.read_text(encoding="utf-8")
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(words | marks | st.text(max_size=4)) + text[stop:]
    refused_or_read(file, text)
