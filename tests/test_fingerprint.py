import os

import pytest

from harness.fingerprint import BLOCK, STEP, fingerprint
from harness.lmms.names import OWN
from harness.pocket import WEIGHTS

MANY = 5 * STEP + 3


def change(path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"trained")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    os.truncate(path, MANY)  # without a block on disk
    return path


@pytest.mark.parametrize("place", [0, BLOCK - 7, STEP, 3 * STEP + BLOCK // 2, MANY - 7])
def test_another_training_into_the_same_file_is_told(weights, place):
    before = fingerprint(weights.parent)
    fingerprint.cache_clear()
    change(weights, place)
    assert fingerprint(weights.parent) != before
    fingerprint.cache_clear()
    change(weights, place)
    assert fingerprint(weights.parent) != before


def test_what_is_trained_alone_is_told_wherever_it_lies(weights):
    """A LLaVA's projector is the smallest that one does: 42 MB of a 7B model's."""
    before = fingerprint(weights.parent)
    fingerprint.cache_clear()
    with weights.open("r+b") as file:
        file.seek(STEP + BLOCK)
        for _ in range(BLOCK, STEP + BLOCK, BLOCK):
            file.write(b"\1" * BLOCK)
    assert fingerprint(weights.parent) != before


def test_a_name_and_a_size_are_told(tmp_path):
    one, other, third = (tmp_path / name for name in "abc")
    for folder in (one, other, third):
        folder.mkdir()
    (one / "x").write_bytes(b"")
    (other / "y").write_bytes(b"")
    (third / "x").write_bytes(b"\0")
    (third / "__pycache__").mkdir()
    assert len({fingerprint(folder) for folder in (one, other, third)}) == 3


def test_what_the_committed_results_ran_on_is_what_is_here():
    assert (fingerprint(WEIGHTS), fingerprint(OWN)) == ("166f8af4e953609f", "72929732752f9f4e")
