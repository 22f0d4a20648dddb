import pytest

from harness.errors import VtbenchError
from harness.metrics.tokens import realised

OBSERVATIONS = [
    {"visual_tokens": 8, "vit": [[16, 8]], "llm": [8, 4, 2], "text_tokens": 5},
    {"visual_tokens": 6, "vit": [[16, 7]], "llm": [6, 4, 1], "text_tokens": 8},
]


def test_means_over_samples():
    assert realised(OBSERVATIONS, nominal=4, patches=16).record() == {
        "patches": 16,
        "nominal": 4,
        "into_llm": 7.0,
        "vit": [16.0, 7.5],
        "llm": [7.0, 4.0, 1.5],
        "mean_llm": 12.5 / 3,
    }
    assert realised(OBSERVATIONS, nominal=4, patches=16).text == 6.5
    assert realised(OBSERVATIONS, nominal=None, patches=16).record()["nominal"] is None


def test_images_of_a_sample_are_summed():
    two, none = {**OBSERVATIONS[0], "vit": [[16, 8], [16, 4]]}, {**OBSERVATIONS[0], "vit": []}
    assert realised([none, two], nominal=4, patches=16).vit == (16.0, 6.0)
    assert realised([none], nominal=4, patches=16).vit == ()


def test_bad_input():
    with pytest.raises(VtbenchError, match="no samples"):
        realised([], nominal=4, patches=16)
    with pytest.raises(ValueError, match="argument 2"):
        realised([*OBSERVATIONS, {**OBSERVATIONS[0], "vit": [[16]]}], nominal=4, patches=16)
