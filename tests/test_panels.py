import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from harness import panels
from harness.panels import Panel, Strip

PICTURE = np.random.default_rng(0).integers(0, 200, (12, 12, 3), dtype=np.uint8)
PANEL = Panel("topk", 3, False, [0, 7, 10], "above", "is the square above?", [(7, 13)], "the marked words guide")


def drawn(strips: list[Strip], **how) -> panels.Figure:
    figure = panels.draw(strips, "Model: $m$.", **how)
    FigureCanvasAgg(figure).print_png(io.BytesIO())
    return figure


def test_exactly_the_patches_that_went_are_pale():
    grid = panels.kept_grid([7, 0, 7, 10], 4)
    assert [list(map(int, row)) for row in grid] == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    seen = panels.overlay(PICTURE, grid)
    for y in range(12):
        for x in range(12):
            stays = 4 * (y // 3) + x // 3 in (0, 7, 10)
            red, green, blue = map(int, PICTURE[y, x])
            pale = round(0.65 * 255 + 0.35 * (0.299 * red + 0.587 * green + 0.114 * blue))
            assert list(seen[y, x]) == ([red, green, blue] if stays else [pale] * 3)


def test_borders_are_between_what_stays_and_what_went():
    grid = np.array([[True, True], [False, False]])
    assert sorted(map(sorted, panels.borders(grid))) == [
        [(0, 0), (0, 1)],
        [(0, 0), (1, 0)],
        [(0, 1), (1, 1)],
        [(1, 0), (2, 0)],
        [(1, 1), (2, 1)],
        [(2, 0), (2, 1)],
    ]


@pytest.mark.parametrize(
    ("text", "spans", "words"),
    [
        ("a bc d", [], [[("a", False)], [("b", False), ("c", False)], [("d", False)]]),
        ("a bc\n d", [(1, 3), (6, 7)], [[("a", False)], [("b", True), ("c", False)], [("d", True)]]),
        (" ", [(0, 1)], []),
    ],
)
def test_marked_characters_are_those_of_the_spans(text, spans, words):
    assert panels.words(text, spans) == words


def test_lines_hold_their_width_and_lose_no_character():
    kind = panels.Type(8)
    text = "what is $x$ of " + "w" * 60 + " and the ring? " * 3
    lines = kind.lines(panels.words(text, [(20, 40)]), 1.5, most=99)
    set_ = [["".join(letter for letter, _ in word) for word in line] for line in lines]
    assert "".join(word for line in set_ for word in line) == "".join(text.split())
    space = kind.width([(" ", False)])
    assert all(sum(map(kind.width, line)) + space * (len(line) - 1) <= 1.5 for line in lines)
    assert sum(marked for line in lines for word in line for _, marked in word) == 20
    short = kind.lines(panels.words(text, []), 1.5, most=2)
    assert (
        len(short) == 2 and short[-1][-1][-1] == ("…", False) and short[0] == kind.lines(panels.words(text, []), 1.5)[0]
    )


def test_a_row_is_a_question_and_a_column_a_method():
    other = Strip(PICTURE[::-1], 3, [PANEL._replace(kept=[column], verdict="✗ wrong") for column in range(3)], "two?")
    figure = drawn([Strip(PICTURE, 3, [PANEL._replace(verdict="✓ right")] * 3, "one?"), other], columns=5, size=1.5)
    places = [axes.get_position() for axes in figure.axes]
    assert len({round(place.x0, 6) for place in places}) == 3 and len({round(place.y0, 6) for place in places}) == 2
    assert all(place.x1 <= 1 and place.y0 >= 0 for place in places)
    for column in range(3):
        expected = panels.overlay(PICTURE[::-1], panels.kept_grid([column], 4))
        assert (figure.axes[3 + column].images[0].get_array() == expected).all()
    texts = [text.get_text() for text in figure.texts]
    assert texts.count("✓") == texts.count("right:") == texts.count("✗") == texts.count("wrong:") == 3
    assert [word for word in texts if word in ("one?", "two?")] == ["one?", "two?"]
    assert [text.get_text() for text in figure.texts if text.get_bbox_patch()] == ["square"] * 6


def test_more_panels_than_columns_go_on_below():
    figure = drawn([Strip(PICTURE, 3, [PANEL] * 5)], columns=4)
    tops = [round(axes.get_position().y0, 6) for axes in figure.axes]
    assert [tops.count(top) for top in dict.fromkeys(tops)] == [4, 1]


def test_no_text_runs_into_a_picture_or_another():
    strips = [Strip(PICTURE, 3, [PANEL._replace(answer="word " * 99, note="n " * 80)] * 2, "h " * 300)] * 2
    figure = drawn(strips, columns=5, size=1.5)
    renderer = figure.canvas.get_renderer()
    boxes = [axes.get_window_extent(renderer) for axes in figure.axes]
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes)


def test_panels_are_drawn_without_torch():
    code = "import sys, harness.panels; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
