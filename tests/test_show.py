import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageFile

from harness import panels, show
from harness.errors import VtbenchError
from harness.lmms.images import unnormalised
from harness.lmms.model import VtBench
from harness.model.load import shape_of
from harness.pocket.scenes import draw, scene
from methods import METHODS
from tests.test_cli import vtbench
from tests.test_readme import README, ROOT

SEED = 20000000
QUESTION = "is the orange square above or below the blue triangle?"
SHAPE = shape_of("pocket")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(draw(scene(SEED))[0])


@pytest.fixture(scope="module")
def lm() -> VtBench:
    return VtBench("pocket")


@pytest.fixture(scope="module")
def inputs(lm, picture):
    return lm.inputs([lm.prompt(QUESTION, 1)], [picture])


@pytest.fixture
def file(tmp_path, picture) -> Path:
    path = tmp_path / "scene.png"
    picture.save(path)
    return path


def look(lm, inputs, text: str) -> panels.Panel:
    return show.look(lm, show.read_method(text, 64, SHAPE), inputs)


def guided_by(panel: panels.Panel) -> list[str]:
    return [panel.question[start:stop].strip() for start, stop in panel.spans]


def test_the_picture_is_what_the_model_saw(lm, inputs, picture):
    processor = lm.loaded.processor.image_processor
    assert (unnormalised(inputs["pixel_values"][0], processor) == np.asarray(picture)).all()


def test_a_panel_tells_what_the_ledger_does(lm, inputs):
    panel = look(lm, inputs, "ivtp")
    assert (panel.label, panel.tokens, panel.merged, panel.answer) == ("ivtp", 64, False, "above")
    assert panel.question == QUESTION and len(set(panel.kept)) == 64
    assert guided_by(panel) == ["orange", "square", "blue", "triangle"]


@pytest.mark.parametrize(
    ("text", "merged", "words", "note"),
    [
        ("full", False, [], ""),
        ("topk", False, [], "not guided by the question"),
        ("pooling", True, [], "not guided by the question"),
        ("fastv:budget=kept", False, [], "guided by attention from the prompt"),
        ("topk+", False, [], "the visual CLS guides"),
        ("ivtp:guidance=none", False, [], "the visual CLS guides"),
        ("ivtp:threshold=1", False, [], "no word was relevant: the visual CLS guides"),
        ("ivtp:guidance=OTT", False, [*QUESTION[:-1].split(), "?"], "the marked words guide"),
    ],
)
def test_a_panel_says_what_guided_and_what_merged(lm, inputs, text, merged, words, note):
    panel = look(lm, inputs, text)
    assert (panel.merged, guided_by(panel), panel.note) == (merged, words, note)


def test_the_figure_has_every_text_as_it_is(lm, inputs, picture):
    panel = look(lm, inputs, "ivtp")._replace(answer="$x$ " * 100, merged=True)
    figure = panels.draw([panels.Strip(np.asarray(picture), 5, [panel] * 5)], "Model: $m$.", columns=4)
    FigureCanvasAgg(figure).print_png(io.BytesIO())
    texts = [text.get_text() for text in figure.texts]
    marked = [text.get_text() for text in figure.texts if text.get_bbox_patch() is not None]
    assert marked == 5 * ["orange", "square", "blue", "triangle"]
    assert texts.count("$x…") == texts.count("tokens,") == 5 and texts[-1] == "$m$."
    assert len(figure.axes) == 5
    expected = panels.overlay(np.asarray(picture), panels.kept_grid(panel.kept, 24))
    assert all((axes.images[0].get_array() == expected).all() for axes in figure.axes)


def test_methods_take_the_budget_that_they_do_not_set():
    assert show.read_method("full", 64, SHAPE) == ("full", METHODS["full"]())
    assert show.read_method("topk", 64, SHAPE).method == METHODS["topk"](tokens=64)
    label, method = show.read_method("ivtp:tokens=81,group=all,tokens_into_llm=null,threshold=0.1", 64, SHAPE)
    assert label == "ivtp, tokens 81, group all, tokens_into_llm null, threshold 0.1"
    assert method == METHODS["ivtp"](tokens=81, group="all", threshold=0.1)


@pytest.mark.parametrize(
    ("text", "tokens", "complaint"),
    [
        ("ivtpp", 64, "--method: 'ivtpp' is not a method; did you mean ivtp? allowed are full, "),
        ("ivtp:thresold=1", 64, "ivtp.thresold: is not a parameter; did you mean threshold? allowed are "),
        ("ivtp:group=9x", 64, "ivtp.group: '9x' is not possible; "),
        ("ivtp:threshold", 64, "--method: 'ivtp:threshold' is not possible; it should be name or name:key=value"),
        ("topk:tokens=1,tokens=2", 64, "--method: 'topk:tokens=1,tokens=2' is not possible; it should be name or "),
        ("ivtp:group=[", 64, "ivtp.group: '[' cannot be read"),
        ("ivtp:threshold=3", 64, "ivtp.threshold: 3.0 is not possible; a cosine is within -1 to 1"),
        ("topk", None, "topk.tokens: is missing"),
        ("topk", 577, "topk.tokens: 577 is not possible"),
        ("pooling", 50, "pooling.tokens: 50 is not possible, pooling needs a square; the nearest are 49 and"),
    ],
)
def test_methods_that_cannot_be(text, tokens, complaint):
    with pytest.raises(VtbenchError, match=f"^{re.escape(complaint)}"):
        show.read_method(text, tokens, SHAPE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_images_of_any_mode_are_read(tmp_path, picture, mode):
    path = tmp_path / "x.tif"
    picture.convert(mode).save(path)
    assert show.open_image(path).tobytes() == picture.convert(mode).convert("RGB").tobytes()


def test_a_transparent_palette_a_turned_photo_and_an_animation_are_read(tmp_path, picture):
    path = tmp_path / "x.png"
    picture.convert("P").save(path, transparency=bytes(range(256)))
    assert show.open_image(path).tobytes() == picture.convert("P").convert("RGB").tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° to the right
    picture.save(path, exif=exif)
    assert show.open_image(path).tobytes() == picture.transpose(Image.Transpose.ROTATE_270).tobytes()
    first, second = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    first.save(path, save_all=True, append_images=[second])
    assert show.open_image(path).tobytes() == first.tobytes()


def spoil(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "text":
        path.write_text("no image")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif how == "16 bits":
        Image.fromarray(np.zeros((9, 9), np.uint16)).save(path)
    else:
        Image.new("1", {"bomb": (20000, 20000), "huge": (10000, 10000), "thin": (1, 101)}[how]).save(path)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("missing", "there is no such file"),
        ("a folder", "cannot be read: is a directory"),
        ("text", "is not an image that can be read"),
        ("truncated", "cannot be read: image file is truncated"),
        ("16 bits", "has more than 8 bits a channel (I;16); allowed are 8"),
        ("bomb", "is too large; allowed are 89,478,485 pixels"),
        ("huge", "is too large; allowed are 89,478,485 pixels"),
        ("thin", "1×101 pixels are too narrow; allowed are sides up to 1:100"),
    ],
)
def test_files_that_are_no_such_image(file, how, complaint, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # lmms-eval, once imported, sets it for all
    spoil(file, how)
    with pytest.raises(VtbenchError, match=f"^{re.escape(f'{file}: {complaint}')}$"):
        show.open_image(file)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image": "no.png"}, "{folder}/no.png: there is no such file"),
        ({"--out": "no/kept.png"}, "{folder}/no/kept.png: there is no folder {folder}/no"),
        ({"--out": "kept.jpg"}, "{folder}/kept.jpg: .jpg is not possible; allowed are .png, .pdf, .svg"),
        ({"--out": "kept"}, "{folder}/kept: no extension is not possible; allowed are .png, .pdf, .svg"),
        ({"--out": "scene.png"}, "{folder}/scene.png: is the image itself"),
        ({"--out": "k" * 300 + ".png"}, "{folder}/" + "k" * 300 + ".png: file name too long"),
        ({"--question": " "}, "--question: is empty"),
        ({"--method": "fastv"}, "fastv.tokens: a mean of 64 is not possible after 2 of 6 layers"),
        ({"--model": "pockets"}, "'pockets' is not a model; did you mean pocket?"),
        ({"--model": "random:llava-1.5-7b"}, "--model: 'random:llava-1.5-7b' has no processor, so it cannot answer"),
        ({"--text-encoder": "/no/clip"}, "text_encoder: '/no/clip' is not possible; allowed are"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, file, change, complaint, monkeypatch, capsys):
    before = file.read_bytes()
    given = {"image": "scene.png", "--out": "kept.png", "--question": QUESTION, "--method": "ivtp", "--tokens": 64}
    given |= change
    image, out = (tmp_path / given.pop(key) for key in ("image", "--out"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert vtbench(monkeypatch, "show", image, "--out", out, *(word for pair in given.items() for word in pair)) == 2
    said, err = capsys.readouterr()
    assert said == "" and err.startswith(f"vtbench: {complaint.format(folder=tmp_path)}") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == before


@pytest.mark.parametrize(("name", "begins"), [("k.PDF", b"%PDF"), ("k.svg", b"<?xml"), ("k.png", b"\x89PNG")])
def test_one_pixel_is_drawn_in_every_format_the_same_twice(tmp_path, name, begins):
    image, out = tmp_path / "x.png", tmp_path / name
    Image.new("RGBA", (1, 1), "red").save(image)
    written = []
    for _ in range(2):
        show.show(image, "$x$?", ["topk"], out, tokens=16)
        written.append(out.read_bytes())
    assert written[0].startswith(begins) and written[0] == written[1]
    assert sorted(tmp_path.iterdir()) == sorted([image, out])


def test_the_readmes_example_runs(tmp_path, picture, monkeypatch, capsys):
    (command,) = re.findall(r"^vtbench (show .*?[^\\])$", README, flags=re.DOTALL | re.MULTILINE)
    arguments = shlex.split(command.replace("\\\n", ""))
    place = arguments.index("--out") + 1
    assert (ROOT / arguments[place]).stat().st_size < 300_000
    arguments[place] = str(tmp_path / "kept.png")
    monkeypatch.chdir(ROOT)
    assert show.open_image(Path(arguments[1])).tobytes() == picture.tobytes()
    assert vtbench(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'kept.png'}\n"
    with Image.open(tmp_path / "kept.png") as drawn, Image.open(ROOT / "reports/show/kept.png") as committed:
        assert drawn.size == committed.size
        one, other = (np.asarray(each.convert("RGB"), int) for each in (drawn, committed))
    # on another processor a patch of a near tie may be another one
    assert (np.abs(one - other).max(axis=2) > 16).mean() < 0.005
