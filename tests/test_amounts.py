import pytest
from pydantic import TypeAdapter, ValidationError

from harness.amounts import Bytes, Seconds, duration

BYTES, SECONDS = TypeAdapter(Bytes), TypeAdapter(Seconds)


@pytest.mark.parametrize(("given", "found"), [(1, 1), ("8GiB", 2**33), ("1.5 kB", 1500), ("500MB", 500_000_000)])
def test_memory(given, found):
    assert BYTES.validate_python(given, strict=True) == found


@pytest.mark.parametrize(("given", "found"), [(90, 90), (0.5, 0.5), ("30min", 1800), ("1.5 h", 5400), ("2d", 172800)])
def test_time(given, found):
    assert SECONDS.validate_python(given, strict=True) == found


@pytest.mark.parametrize(
    "given", ["8", "8 gib", "GiB", "-1GiB", "1e9GiB", "٣GiB", 0, 1.5, True, None, "9" * 12 + "TiB"]
)
def test_what_is_no_amount_of_memory(given):
    with pytest.raises(ValidationError):
        BYTES.validate_python(given, strict=True)


@pytest.mark.parametrize("given", ["30", "30m", "min", 0, -1, float("nan"), float("inf"), "0s", "9999d", True])
def test_what_is_no_amount_of_time(given):
    with pytest.raises(ValidationError):
        SECONDS.validate_python(given, strict=True)


def test_the_units_are_said():
    with pytest.raises(ValidationError, match=r"'8GB/s' is not possible; it should be like 8GiB, in B, kB, .*, TiB"):
        BYTES.validate_python("8GB/s", strict=True)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.5, "0.5 s"), (90, "1 min 30 s"), (1800, "30 min"), (3601, "1 h 1 s"), (90061, "1 d 1 h")],
)
def test_durations(seconds, written):
    assert duration(seconds) == written
