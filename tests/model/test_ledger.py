"""What the host knows of a frame is what the device has, so that a prefill need not wait for the device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.model.attach import attach
from harness.model.ledger import Guide
from harness.model.replay import recorded
from methods import TRAINING_FREE
from tests.model.tiny import CHOSEN, IMAGES, ROWS, TOKENIZER, batch, build, configured, images_of, run

ONE, TWO_IMAGES = batch(ROWS[:1], IMAGES[:1]), batch([ROWS[2]], images_of(2))
NO_IMAGE, RIGHT = batch([ROWS[3]], IMAGES[:0]), batch(side="right")


@pytest.mark.parametrize("inputs", [batch(), RIGHT, ONE, TWO_IMAGES, NO_IMAGE])
@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("name", CHOSEN)
def test_every_frames_layout_is_the_devices(name, positions, inputs, encoder):
    _, _, ledger = run(build(), inputs, configured(name, 9, positions=positions), encoder, new=1)
    for frame in ledger.frames:
        assert list(frame.layout.lengths) == frame.valid.sum(dim=1).tolist()
        assert frame.starts() == list(zip(frame.row.tolist(), frame.start.tolist(), strict=True))
        assert frame.full == bool(frame.valid.all())
        assert frame.count.tolist() == (frame.patch >= 0).sum(dim=1).tolist()
        assert frame.patch.shape == frame.size.shape and frame.valid.shape == frame.position.shape
        x = torch.arange(frame.valid.numel()).view(frame.valid.shape)
        assert torch.equal(frame.visual(x), x[frame.row[:, None], frame.slots()])


class Asked(TorchDispatchMode):
    """Notes what would wait for the device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal"):
            self.names.append(name)
        return function(*args, **kwargs or {})


@pytest.fixture
def asks(monkeypatch):
    """What a prefill under a method asks of the device from the image's encoding to the logits."""
    asked, tolist = Asked(), torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: asked.names.append("tolist") or tolist(x))

    def prefill(model, chosen, encoder=None):
        with attach(model, chosen, text_encoder=encoder, tokenizer=TOKENIZER), torch.no_grad(), asked:
            hook = model.model.vision_tower.register_forward_pre_hook(lambda *_: asked.names.clear())
            model(**ONE, use_cache=True, logits_to_keep=1)
            hook.remove()
        return list(asked.names)

    return prefill


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TRAINING_FREE)
def test_the_engine_asks_nothing_of_the_device(name, attention, asks, encoder):
    model, noted = build(attention=attention), recorded(configured(name, 9))
    asks(model, noted, encoder)
    assert asks(model, noted.replay()) == []


@pytest.mark.parametrize("name", ["topk", "evit", "fastv", "pyramiddrop", "ivtp-v", "topk+", "divprune"])
def test_scores_ask_nothing_of_the_device(name, asks):
    assert asks(build(), configured(name, 9)) == []


def test_the_pseudo_cls_asks_only_which_words_are_relevant(asks, encoder):
    assert asks(build(), configured("ivtp", 9, guidance="none")) == []
    for group in (1, "all"):
        assert asks(build(), configured("ivtp", 9, group=group), encoder) == ["nonzero", "tolist"]


def test_guiding_words_stand_apart_and_parts_of_words_count():
    question = "is the small ring here?"
    assert Guide(question, [(6, 12), (12, 16), (18, 20)]).words == ["small", "rin", "he"]
    assert Guide(question, []).words == []
