"""What must not be read, run or told."""

import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for room in ("harness", "methods", "benchmarks") for path in sorted((ROOT / room).rglob("*.py"))]
FORBIDDEN = {
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pickle.load",
    "pickle.loads",
    "joblib.load",
    "cloudpickle.loads",
    "dill.load",
    "marshal.loads",
    "pd.read_pickle",
    "pandas.read_pickle",
    "os.system",
    "os.popen",
    "eval",
    "exec",
}


def dangers(tree: ast.AST) -> list[str]:
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, options = ast.unparse(call.func), {each.arg: ast.unparse(each.value) for each in call.keywords}
        if name in FORBIDDEN or (name == "torch.load" and options.get("weights_only") != "True"):
            found.append(f"{call.lineno}: {name}")
        if options.get("shell", "False") != "False" or options.get("allow_pickle", "False") != "False":
            found.append(f"{call.lineno}: {name} with {options}")
    return found


def test_nothing_dangerous_is_called():
    assert {
        str(path): found for path in SOURCES if (found := dangers(ast.parse(path.read_text(encoding="utf-8"))))
    } == {}


@pytest.mark.parametrize(
    "code",
    [
        "yaml.load(text, Loader)",
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "subprocess.run(command, shell=True)",
        "numpy.load(path, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_what_is_dangerous_is_seen(code):
    assert dangers(ast.parse(code)) and not dangers(ast.parse("yaml.safe_load(text); model.eval()"))


SWEEP = "model: pocket\ntasks: pocket_tiny\ntokens: 64\nmethods: topk\nlimit: 1\nmeasure: [accuracy, tokens]\n"
RUN = """
import os, sys
from harness.cli import main
try:
    main()
finally:
    print("Ray asks for a", os.environ.get("RAY_AUTH_MODE"), file=sys.stderr)
"""


def test_keys_and_tokens_are_in_nothing_that_a_run_leaves(tmp_path):
    """W&B's key and Ray's token, in every file of the run: results, report, W&B's and Ray's logs, the home folder."""
    key, token = "0123456789marker" * 2 + "01234567", "markertoken" * 6
    (tmp_path / "x.yaml").write_text(SWEEP)
    (tmp_path / "home").mkdir()
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as ray:  # short, for Ray's sockets
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_"))}
        environment |= {"WANDB_API_KEY": key, "RAY_AUTH_TOKEN": token, "RAY_TMPDIR": ray, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", RUN, "run", "x.yaml"],
            cwd=tmp_path,
            env=environment | {"HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        written = [path for folder in (tmp_path, Path(ray)) for path in folder.rglob("*") if path.is_file()]
        names = {path.name for path in written}
        assert {"record.json", "x.md", "gcs_server.out"} <= names and any(name.endswith(".wandb") for name in names)
        for path in written:
            content = path.read_bytes()
            assert key.encode() not in content and token.encode() not in content, path
    assert key not in done.stdout + done.stderr and token not in done.stdout + done.stderr
    assert done.stderr.endswith("Ray asks for a token\n")
