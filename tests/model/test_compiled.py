"""torch.compile changes no kept token, and the logits by rounding alone."""

import shutil

import pytest
import torch

from harness.errors import VtbenchError
from harness.model.attach import attach
from harness.model.compiled import compiled
from methods import method
from tests.model.tiny import CHOSEN, batch, build, configured, run

# torch's own, on its import of the compiler
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


@pytest.fixture(scope="module")
def fast():
    if shutil.which("g++") is None:
        pytest.skip("torch.compile on a CPU needs a C++ compiler, and there is no g++ here")
    return compiled(build())


@pytest.mark.parametrize("name", CHOSEN)
def test_compiled_layers_keep_the_same_tokens(name, fast, encoder):
    chosen = configured(name, 9)
    logits, _, ledger = run(fast, batch(), chosen, encoder)
    expected, _, known = run(build(), batch(), chosen, encoder)
    assert [kept.tolist() for kept in ledger.kept] == [kept.tolist() for kept in known.kept]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "where",
    [
        lambda model: model,
        lambda model: model.model.language_model,
        lambda model: model.model.vision_tower.encoder.layers[3],
        lambda model: model.model.language_model.layers[0].self_attn,
    ],
)
def test_what_attach_reaches_into_cannot_be_compiled(where):
    model = build()
    where(model).compile()
    message = f"torch.compile: of {type(where(model)).__name__} is not possible under attach; allowed are the norms"
    with pytest.raises(VtbenchError, match=message), attach(model, method("full")):
        pass


def test_a_compiled_model_cannot_be_attached():
    message = "torch.compile: of LlavaForConditionalGeneration is not possible under attach"
    with pytest.raises(VtbenchError, match=message), attach(torch.compile(build()), method("full")):
        pass
