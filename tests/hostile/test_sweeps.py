"""Malformed sweep files: one line that says where and what is allowed, exit code 2, and nothing is created.

The first line of each of sweeps/*.yaml says how its complaint begins; what cannot be a text file is made here.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import VtbenchError
from harness.spec import MANY, load_sweep

CORPUS = sorted((Path(__file__).parent / "sweeps").glob("*.yaml"))
GOOD = "model: pocket\ntasks: pocketvqa\nmethods: full\n"


def said(path: Path) -> str:
    return path.read_text().splitlines()[0].removeprefix("# says: ")


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_malformed_file_is_one_line(here, refused, path):
    shutil.copy(path, here / "x.yaml")
    line = refused("run", "x.yaml")
    place, _, expected = said(path).rpartition("not YAML: ")
    if place == "" and expected != said(path):  # wherever it is in the file
        assert line.startswith("x.yaml:") and f"not YAML: {expected}" in line
    else:
        assert line.startswith(f"x.yaml:{said(path)}") or line.startswith(f"x.yaml: {said(path)}")


def binary(here: Path) -> dict[str, tuple[str, str]]:
    """Make what no text file can be; return file names with what is said of them, by case."""
    (here / "latin.yaml").write_bytes("name: é\n".encode("latin-1"))
    (here / "utf16.yaml").write_bytes(GOOD.encode("utf-16"))
    (here / "nul.yaml").write_bytes(GOOD.encode() + b"name: a\0b\n")
    (here / "empty.yaml").touch()
    (here / "pickle.yaml").write_bytes(b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00}.")
    (here / "folder.yaml").mkdir()
    (here / "loop.yaml").symlink_to("loop.yaml")
    (here / "nowhere.yaml").symlink_to("missing.yaml")
    (here / "zero.yaml").symlink_to("/dev/zero")
    (here / "passwd.yaml").symlink_to("/etc/passwd")
    os.mkfifo(here / "pipe.yaml")
    with (here / "sparse.yaml").open("wb") as file:
        file.truncate(10 * 2**30)
    (here / "long.yaml").write_text(GOOD + "# " + "x" * 70_000)
    (here / "line\nbreak.yaml").write_text("model: pocket\n")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.yaml")
    device = "is a device, a pipe or a socket; allowed is a file"
    return {
        "missing": ("missing.yaml", "missing.yaml: there is no such file"),
        "not_utf_8": ("latin.yaml", "latin.yaml: byte 6 is not UTF-8"),
        "utf_16": ("utf16.yaml", "utf16.yaml: byte 0 is not UTF-8"),
        "nul": ("nul.yaml", "nul.yaml: not YAML: character 52 is 0x0"),
        "empty": ("empty.yaml", "empty.yaml: not a mapping of keys to values"),
        "a_pickle": ("pickle.yaml", "pickle.yaml: byte 0 is not UTF-8"),
        "a_folder": ("folder.yaml", "folder.yaml: is a directory; allowed is a file"),
        "a_link_to_itself": ("loop.yaml", "loop.yaml: too many levels of symbolic links"),
        "a_link_to_nothing": ("nowhere.yaml", "nowhere.yaml: there is no such file"),
        "a_link_to_a_device": ("zero.yaml", f"zero.yaml: {device}"),
        "a_link_to_something_else": ("passwd.yaml", "passwd.yaml:"),
        "a_pipe": ("pipe.yaml", f"pipe.yaml: {device}"),
        "a_socket": ("socket.yaml", f"socket.yaml: {device}"),
        "ten_gigabytes": ("sparse.yaml", "sparse.yaml: has 10,737,418,240 bytes; allowed are at most 65,536"),
        "too_long": ("long.yaml", "long.yaml: has 70,047 bytes; allowed are at most 65,536"),
        "a_line_break_in_its_name": ("line\nbreak.yaml", "line\\nbreak.yaml:methods: is missing"),
        "a_name_too_long": ("x" * 300 + ".yaml", "x" * 300 + ".yaml: file name too long"),
        "a_device": ("/dev/zero", f"/dev/zero: {device}"),
    }


BINARY = [
    "missing",
    "not_utf_8",
    "utf_16",
    "nul",
    "empty",
    "a_pickle",
    "a_folder",
    "a_link_to_itself",
    "a_link_to_nothing",
    "a_link_to_a_device",
    "a_link_to_something_else",
    "a_pipe",
    "a_socket",
    "ten_gigabytes",
    "too_long",
    "a_line_break_in_its_name",
    "a_name_too_long",
    "a_device",
]


@pytest.mark.parametrize("case", BINARY)
def test_what_is_no_text_file_is_one_line(here, refused, case):
    name, says = binary(here)[case]
    assert refused("run", name).startswith(says)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        "model: &m pocket\ntasks: pocketvqa\nmethods: full\ndescription: *m\n",
        "model: pocket\ntasks: pocketvqa\nmethods: [{topk: &t {tokens: 64}}, {evit: {<<: *t}}]\n",
        GOOD + "description: |\n  two\n  lines, a \t tab and <b>ümläute</b>\n",
    ],
    ids=["byte_order_mark", "windows_lines", "anchor", "merge_key", "text"],
)
def test_what_looks_hostile_and_is_not_is_read(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8", newline="")
    assert load_sweep(tmp_path / "x.yaml", most=MANY, look=True).trials()


def test_a_large_grid_is_read_with_yes(here, refused):
    text = GOOD.replace("full", "{topk: {tokens: 577}}")
    (here / "x.yaml").write_text(f"{text}seed: {list(range(200))}\nlimit: {list(range(1, 101))}\n")
    for command in ("run", "report"):
        assert refused(command, "x.yaml") == "x.yaml:methods: the grid has 20,000 trials; more than 10,000 need --yes"
    assert refused("run", "x.yaml", "--yes").startswith("x.yaml:methods.topk.tokens: 577 is not possible")


def test_a_large_grid_is_counted_without_being_expanded(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(GOOD + f"seed: {list(range(100))}\nlimit: {list(range(1, 101))}\n")
    assert len(load_sweep(path, most=MANY).trials()) == MANY
    path.write_text(GOOD + f"seed: {list(range(100))}\nlimit: {list(range(1, 102))}\n")
    with pytest.raises(
        VtbenchError, match=r"x\.yaml:methods: the grid has 10,100 trials; more than 10,000 need --yes$"
    ):
        load_sweep(path, most=MANY)
    assert len(load_sweep(path).methods) == 1


PROCESS = ["unknown_key", "unknown_method", "unknown_task", "unknown_model", "billion_laughs", "ten_million_cells"]


@pytest.mark.parametrize("case", PROCESS)
def test_a_mistake_needs_neither_torch_nor_pandas(tmp_path, case):
    """What takes seconds is not imported; benchmarks/mistakes.py says how long a mistake takes."""
    (path,) = (path for path in CORPUS if path.stem == case)
    shutil.copy(path, tmp_path / "x.yaml")
    code = (
        "import sys; sys.argv = ['vtbench', 'run', 'x.yaml']\n"
        "from harness import cli\n"
        "try: cli.main()\n"
        "finally: print({'torch', 'pandas', 'ray', 'transformers', 'lmms_eval'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert done.stderr.startswith(f"vtbench: x.yaml:{said(path)}") and done.stderr.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["x.yaml"]
