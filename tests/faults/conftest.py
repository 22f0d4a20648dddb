import random

import pytest

from tests.faults.killing import seeded


@pytest.fixture(scope="module")
def draw() -> random.Random:
    return seeded()
