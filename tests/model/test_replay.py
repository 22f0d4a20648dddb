"""A replay keeps what the method kept, at every layer, and chooses nothing."""

import pytest
import torch

from harness.errors import VtbenchError
from harness.model.anatomy import anatomy
from harness.model.attach import attach
from harness.model.replay import recorded
from tests.model.tiny import CHOSEN, ROWS, TOKENIZER, batch, build, configured, images_of

MERGE = {"pooling", "downsample", "evit", "tome", "tome+", "prumerge", "prumerge+", "visionzip", "sparsevlm"}
AS_TOKEN = {"pseudo_cls": "as_token"}


def prefill(model, inputs, chosen, encoder=None):
    """The logits of a whole prefill, and the ledger."""
    with torch.no_grad(), attach(model, chosen, text_encoder=encoder, tokenizer=TOKENIZER) as attached:
        return model(**inputs, use_cache=True).logits, attached.ledger


def seen(ledger):
    """The patch behind every token at every layer, and what enters the ViT's."""
    return [frame.patch.tolist() for frame in ledger.frames], [counts.tolist() for counts in ledger.vit_counts]


@pytest.mark.parametrize("row", [0, 2], ids=["one image", "two images"])
@pytest.mark.parametrize("name", CHOSEN)
def test_a_replay_sees_the_same_patches_at_every_layer(name, row, encoder):
    model, chosen = build(seed=2), configured(name, 9)
    inputs = batch([ROWS[row]], images_of(row))
    noted = recorded(chosen)
    logits, ledger = prefill(model, inputs, chosen, encoder)
    assert torch.equal(prefill(model, inputs, noted, encoder)[0], logits)
    for _ in range(2):
        replayed, again = prefill(model, inputs, noted.replay())
        assert seen(again) == seen(ledger)
        assert again.lengths.tolist() == ledger.lengths.tolist()
        assert torch.equal(again.frames[-1].position, ledger.frames[-1].position)
        assert torch.equal(replayed, logits) == (name.split()[0] not in MERGE)


def test_a_replay_needs_nothing(encoder):
    model = build()
    for name in CHOSEN:
        noted = recorded(configured(name, 9))
        prefill(model, batch(ROWS[:1], images_of(0)), noted, encoder)
        replay = noted.replay()
        stages = replay.stages(anatomy(model).shape)
        assert not any(stage.needs or stage.proportional for stage in stages)
        assert not replay.reads_question and not replay.reads_clip and not replay.inserts_pseudo_cls


def test_a_pseudo_cls_that_is_a_token_is_not_in_the_replay(encoder):
    model, chosen = build(), configured("ivtp", 9, **AS_TOKEN)
    inputs, noted = batch([ROWS[2]], images_of(2)), recorded(configured("ivtp", 9, **AS_TOKEN))
    prefill(model, inputs, noted, encoder)
    _, ledger = prefill(model, inputs, chosen, encoder)
    _, again = prefill(model, inputs, noted.replay())
    assert seen(again) == seen(ledger)
    assert (ledger.lengths - again.lengths).unique().tolist() == [2]


def test_what_the_method_refuses_its_record_refuses_by_its_name():
    message = "pooling: tokens: 10 is not possible"
    with pytest.raises(VtbenchError, match=message), attach(build(), recorded(configured("pooling", 10))):
        pass
