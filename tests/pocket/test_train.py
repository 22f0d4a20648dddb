import json

import numpy as np
import pytest
import torch
from torch import nn

from harness.pocket import gallery, optimizing, train_language
from harness.pocket.questions import FAMILIES
from harness.pocket.scenes import GRID, SIZE, draw, patch_owners, scene
from harness.pocket.tokenization import llm_tokenizer
from harness.pocket.train_vision import patch_labels


def test_a_patch_is_told_its_things_centre_in_the_picture_and_from_itself():
    owners = patch_owners(draw(scene(3))[1])
    labels = 15 * patch_labels(3, owners)[:, 4:]
    for index, thing in enumerate(scene(3).things):
        mine = np.flatnonzero(owners == index)
        assert np.allclose(labels[mine, :2] + SIZE / 2, (thing.x, thing.y), atol=1e-4)
        row, column = divmod(int(mine[0]), GRID)
        assert np.allclose(labels[mine[0], 2:], (thing.x - 5 * column - 2.5, thing.y - 5 * row - 2.5), atol=1e-4)
        # one patch alone holds the centre, so that things can be counted
        assert (np.abs(labels[mine, 2:]).max(axis=1) <= 2.5).sum() == 1


class _Model:
    """What `pack` asks of a model, with embeddings of width 1."""

    def __init__(self, vocabulary: int) -> None:
        self.model = self
        self.language_model = self
        self.embed_tokens = nn.Embedding(vocabulary, 1)

    def multi_modal_projector(self, features):
        return features[..., :1]


def test_half_of_the_pictures_number_their_tokens_by_place_and_half_as_they_stand(monkeypatch):
    tokenizer = llm_tokenizer()
    data = train_language.Features.__new__(train_language.Features)
    data.scenes = [scene(seed) for seed in range(8)]
    data.owners = np.stack([patch_owners(draw(each)[1]) for each in data.scenes])
    data.features = torch.zeros(8, 576, 64, dtype=torch.float16)
    kinds = []
    for step in range(4):
        rng = np.random.default_rng(step)
        _, positions, _, _ = train_language.pack(_Model(len(tokenizer)), tokenizer, data, np.arange(8), 0.3, rng)
        K = train_language.visual_tokens(0.3, np.random.default_rng(step))
        start = 1 + len(train_language.text_ids(tokenizer, train_language.PREFIX))
        for row in positions.tolist():
            visual, asked = row[start : start + K], row[start + K]
            contiguous = visual == list(range(start, start + K))
            assert visual == sorted(set(visual)) and asked == start + (K if contiguous else 576)
            kinds.append(contiguous)
    assert 8 < sum(kinds) < 24


def trained(folder, stops: list[int]) -> dict[str, torch.Tensor]:
    """Train one layer for 6 steps with a checkpoint every 2, stopped before each of `stops`."""
    for stop in [*stops, 7]:
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        optimizer = optimizing.Optimizer(model, muon=0.1, adamw=0.1, is_matrix=lambda name: name == "weight")
        begun = optimizing.resume(folder, model, optimizer)
        log = optimizing.Log(folder, begun, 6)
        for step in range(begun, min(stop, 6)):
            loss = model(torch.full((2, 3), float(step))).square().mean()
            loss.backward()
            optimizer.step(1.0)
            log.write(step, loss=loss)
            if (step + 1) % 2 == 0:
                optimizing.checkpoint(folder, model, optimizer, step + 1)
    return model.state_dict()


@pytest.mark.parametrize("stops", [[1], [3], [2, 5]])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path, stops):
    whole, broken = trained(tmp_path / "whole", []), trained(tmp_path / "broken", stops)
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_resumed_log_has_every_step_once(tmp_path):
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (50, 100, 150)))
    optimizing.Log(tmp_path, 100, 300)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [50, 100]


def test_the_gallery_has_a_picture_for_each_family(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(gallery.plt.Axes, "imshow", lambda axes, image, **more: drawn.append(image.shape))
    gallery.main(tmp_path / "scenes.png")
    assert drawn == [(120, 120, 3)] * len(FAMILIES) and (tmp_path / "scenes.png").stat().st_size > 1000
