import numpy as np

from harness.lmms.model import VtBench
from harness.model.load import load
from harness.pocket.evaluate import rows
from harness.pocket.scenes import draw, patch_owners, scene
from harness.pocket.separation import answers, foreseen, one, rank


def test_the_oracle_ranks_what_the_question_names_before_other_things_and_those_before_the_ground():
    row = rows("where", 1)[0]
    picture = scene(row["image_id"])
    owners = patch_owners(draw(picture)[1])
    color, shape = row["question"].removesuffix("?").split()[-2:]
    (asked,) = (i for i, thing in enumerate(picture.things) if (thing.color, thing.shape) == (color, shape))
    order = np.argsort(-rank(row))
    mine = int((owners == asked).sum())
    assert set(owners[order[:mine]]) == {asked}
    things = int((owners >= 0).sum())
    assert (owners[order[:things]] >= 0).all() and (owners[order[things:]] < 0).all()
    assert np.array_equal(rank(row), rank(row))


def test_each_question_of_a_batch_has_its_own_oracle():
    batch = rows("where", 2)
    oracle = foreseen(9, batch)
    view = oracle.keep(None, 9)
    for row, kept in zip(batch, view.index, strict=True):
        assert set(kept.tolist()) == set(np.argsort(-rank(row))[:9].tolist())


def test_answers_are_samples_with_scores():
    asked = rows("attribute", 3) + rows("where", 2)
    samples = answers(VtBench(load("pocket")), asked, one("full"))
    assert samples["task"].tolist() == ["attribute"] * 3 + ["where"] * 2
    assert samples["doc_id"].tolist() == [row["question_id"] for row in asked]
    assert set(samples["score"]) <= {0.0, 1.0} and samples["score"].mean() > 0.7
