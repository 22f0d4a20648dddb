"""Prompts that begin as rows of one prefill did give what each gives alone, in a pass of its own."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from harness.errors import VtbenchError
from harness.model.anatomy import anatomy
from harness.model.attach import attach
from harness.model.plan import reads_text
from methods import method
from tests.model.test_attention import flashed
from tests.model.test_composition import COMPOSED, staged
from tests.model.tiny import CHOSEN, IMAGES, NEW, PATCHES, TOKENIZER, batch, build, configured, run

BEGINNINGS = ["USER: " + "<image>" * PATCHES, "USER: the pictures: " + ("<image>" * PATCHES + " ") * 2]
PICTURES = [IMAGES[:1], IMAGES[1:3]]
ENDS = ["what color is the ring? ASSISTANT:", "where? ASSISTANT:", "how many red circles are there? ASSISTANT:"]
PROMPTS = [(1, ENDS[0]), (0, ENDS[1]), (0, ENDS[2]), (1, ENDS[1]), (0, ENDS[0])]


def ids(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def of_text(chosen) -> bool:
    return reads_text(chosen, chosen.stages(anatomy(build()).shape))


METHODS = {name: configured(name, 9) for name in CHOSEN}
METHODS |= {f"contiguous {name}": configured(name, 9, positions="contiguous") for name in CHOSEN}
METHODS |= {f"ivtp {kind}": method("ivtp", tokens=9, guidance="none", pseudo_cls=kind) for kind in ("llm", "as_token")}
METHODS |= {name: staged(name) for name in COMPOSED}
METHODS |= {f"contiguous {name}": staged(name, positions="contiguous") for name in COMPOSED}
BLIND = [name for name, chosen in METHODS.items() if not of_text(chosen)]


CASES = [(name, "sdpa") for name in BLIND]
CASES += [(name, kind) for name in ("full", "prumerge adaptive", "contiguous topk+") for kind in ("eager", "flash")]


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_they_answer_as_alone(name, attention, monkeypatch):
    model = flashed(monkeypatch, seed=5) if attention == "flash" else build(seed=5, attention=attention)
    chosen = METHODS[name]
    wholes = [ids(BEGINNINGS[row] + end) for row, end in PROMPTS]
    begun = [ids(text.rstrip()) for text in BEGINNINGS]
    rests = [torch.tensor(whole[len(begun[row]) :]) for whole, (row, _) in zip(wholes, PROMPTS, strict=True)]
    assert [whole[: len(begun[row])] for whole, (row, _) in zip(wholes, PROMPTS, strict=True)] == [
        begun[row] for row, _ in PROMPTS
    ]
    rest = pad_sequence(rests, batch_first=True, padding_side="left", padding_value=TOKENIZER.pad_token_id)
    mask = pad_sequence([torch.ones_like(each) for each in rests], batch_first=True, padding_side="left")
    with torch.inference_mode(), attach(model, chosen, tokenizer=TOKENIZER) as attached:
        output = model(**batch(begun, torch.cat(PICTURES)), use_cache=True)
        cache = attached.begun(attached.ledger, output.past_key_values, [row for row, _ in PROMPTS])
        mask = torch.cat([attached.ledger.frames[0].valid.long(), mask], dim=1)
        together = model.generate(
            input_ids=rest,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ledger = attached.ledger
    image = 0
    for place, ((row, _), whole) in enumerate(zip(PROMPTS, wholes, strict=True)):
        logits, answer, alone = run(model, batch([whole], PICTURES[row]), chosen)
        torch.testing.assert_close(torch.stack(together.logits)[:, place], logits[:, 0], atol=1e-4, rtol=0)
        assert together.sequences[place, rest.shape[1] :].tolist() == answer[0].tolist()
        assert ledger.lengths[place].tolist() == alone.lengths[0].tolist()
        assert ledger.text[place] == alone.text[0] and ledger.prompt_end[place] == alone.prompt_end[0]
        for mine in range(len(PICTURES[row])):
            assert ledger.row[image] == place
            assert ledger.tokens.image(image) == alone.tokens.image(mine)
            assert ledger.kept[image].tolist() == alone.kept[mine].tolist()
            assert ledger.entered[image].tolist() == alone.entered[mine].tolist()
            assert ledger.merged[image] == alone.merged[mine]
            image += 1
    assert image == len(ledger.row)


def test_what_the_cuts_depend_on_tells_which_methods_share():
    names = {name.removesuffix(" adaptive") for name in CHOSEN}
    shared = {name for name in names if not of_text(configured(name, 9))}
    assert names - shared == {"fastv", "ivtp", "pyramiddrop", "sparsevlm"}
    assert not of_text(method("ivtp", tokens=9, guidance="none")) and of_text(staged("llm adaptive"))


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "sparsevlm"])
def test_a_method_that_reads_the_prompt_shares_no_beginning(name):
    model = build()
    with torch.inference_mode(), attach(model, configured(name, 9), tokenizer=TOKENIZER) as attached:
        output = model(**batch([ids(BEGINNINGS[0])], PICTURES[0]), use_cache=True)
        with pytest.raises(VtbenchError, match=f"^{name}: reads the whole prompt, so prompts cannot share"):
            attached.begun(attached.ledger, output.past_key_values, [0])
