import numpy as np
import pytest

from harness.pocket.scenes import CELL, GRID, PLACES, SIZE, draw, patch_owners, scene


@pytest.mark.parametrize("seed", [0, 7, 20_000_000])
def test_a_seed_gives_the_same_scene_and_picture(seed):
    assert scene(seed) == scene(seed)
    assert all(np.array_equal(one, other) for one, other in zip(draw(scene(seed)), draw(scene(seed)), strict=True))


def test_seeds_differ():
    assert len({scene(seed).things for seed in range(20)}) == 20


def test_things_are_unique_inside_the_picture_and_in_the_cell_they_say():
    for seed in range(100):
        things = scene(seed).things
        assert 4 <= len(things) <= 6
        assert len({(thing.color, thing.shape) for thing in things}) == len(things)
        for thing in things:
            assert PLACES[3 * int(thing.y // CELL) + int(thing.x // CELL)] == thing.place
            for centre in (thing.x, thing.y):
                assert thing.radius <= centre <= SIZE - thing.radius
                assert 4.5 <= centre % CELL <= CELL - 4.5


def test_every_thing_owns_patches_around_its_centre():
    for seed in range(20):
        _, owner = draw(scene(seed))
        owners = patch_owners(owner).reshape(GRID, GRID)
        for index, thing in enumerate(scene(seed).things):
            rows, columns = np.nonzero(owners == index)
            assert len(rows) >= 4
            assert np.abs((rows + 0.5) * 5 - thing.y).max() <= thing.radius + 5
            assert np.abs((columns + 0.5) * 5 - thing.x).max() <= thing.radius + 5
