import dataclasses
from xml.etree.ElementTree import Element, fromstring

import pytest

from skipway.nn.describe import describe
from skipway.nn.description import Description, LayerRow
from skipway.nn.drawing import draw
from skipway.nn.skeleton import short, shortened
from skipway.nn.svg import clip, extent

SVG = "{http://www.w3.org/2000/svg}"
SPREAD = [
    "tutorial",
    "resnet20",
    "plain20",
    "resnet1202",
    "preact_resnet164",
    "wrn28_10",
    "resnext29_16x64d",
    "resnet18",
    "resnet50d",
    "seresnet50",
    "ecaresnet26t",
    "resnetblur50d",
    "resnetrs50",
    "resnetv2_50x1_bit",
]


def picture(description: Description) -> Element:
    return fromstring(draw(description))


def texts(root: Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def foreign(*kinds: tuple[str, str], field: int = 0) -> Description:
    """A description of a network that is not ours, from (part, kind of layer)."""
    layers = tuple(
        LayerRow(part, f"{part}.{i}", kind, (8, 4, 4), 10, 20, field) for i, (part, kind) in enumerate(kinds)
    )
    return Description("timm:other", "", (3, 32, 32), layers, {}, 10, 20, 40, 1, 0, "")


@pytest.mark.parametrize("name", SPREAD)
def test_draw_gives_well_formed_xml_with_all_words_inside_the_picture(name):
    root = picture(describe(name))
    assert root.tag == f"{SVG}svg"
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert root.attrib["viewBox"] == f"0 0 {root.attrib['width']} {root.attrib['height']}"
    for element in root.iter(f"{SVG}text"):
        length = len(element.text or "") * float(element.attrib["font-size"]) * 0.5
        left = float(element.attrib["x"]) - length / 2 * (element.attrib.get("text-anchor") == "middle")
        assert left >= 0, element.text
        assert left + length <= width, element.text
        assert 0 < float(element.attrib["y"]) < height, element.text
    for element in root.iter(f"{SVG}rect"):
        assert float(element.attrib.get("x", 0)) + float(element.attrib["width"]) <= width
        assert float(element.attrib.get("y", 0)) + float(element.attrib["height"]) <= height


@pytest.mark.parametrize("name", SPREAD)
def test_draw_keeps_words_apart(name):
    root = picture(describe(name))
    boxes = []
    for element in root.iter(f"{SVG}text"):
        size, x, y = (float(element.attrib[key]) for key in ("font-size", "x", "y"))
        length = len(element.text or "") * size * 0.5
        x -= length / 2 * (element.attrib.get("text-anchor") == "middle")
        boxes.append((x, x + length, y - 0.75 * size, y, element.text))
    for i, (left, right, top, bottom, text) in enumerate(boxes):
        for other in boxes[:i]:
            apart = right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top
            assert apart, (text, other[4])


@pytest.mark.parametrize("name", ["tutorial", "resnet20", "resnet50", "resnetv2_50x1_bit", "resnet18_a", "seresnet50"])
def test_draw_ends_every_skip_in_a_sum(name):
    description = describe(name)
    said = texts(picture(description))
    assert said.count("+") == len(description.skips)
    for kind in ("projection", "zero pad"):
        assert said.count(kind) == list(description.skips.values()).count(kind)


def test_draw_gives_a_plain_twin_no_arc():
    said = texts(picture(describe("plain20")))
    assert "+" not in said
    assert not any("skip" in text or "identity" in text for text in said)
    assert said.count("block3") == 3


def test_draw_projects_inside_a_preactivation_block():
    def first_dot(name: str) -> tuple[float, float]:
        group = next(g for g in picture(describe(name)).iter(f"{SVG}g") if "stage2.block1" in (g[0].text or ""))
        box = next(group.iter(f"{SVG}rect"))
        dot = next(group.iter(f"{SVG}circle"))
        return float(dot.attrib["cx"]), float(box.attrib["x"])

    dot, box = first_dot("resnetv2_50x1_bit")  # S(act(norm(x)))
    assert dot > box
    dot, box = first_dot("resnet50")  # S(x)
    assert dot < box
    dot, box = first_dot("preact_resnet164")  # zero padding of x itself
    assert dot < box


def test_draw_says_totals_shapes_and_counts_of_parts():
    description = describe("resnet50", batch_size=32)
    said = texts(picture(description))
    for words in ("resnet50", description.source, "25,557,032", "4,089,184,256", "8,178,368,512", "427x427"):
        assert words in said
    assert said[said.index("activations, 32 images, fp32") + 1] == short(description.activation_bytes, "B")
    for shape in ("3x224x224", "64x56x56", "256x56x56", "512x28x28", "1024x14x14", "2048x7x7", "1000"):
        assert shape in said
    at = said.index("stage3")
    assert said[at + 1 : at + 6] == ["1024x14x14", "6 blocks", "7.10M parameters", "1.46G MACs", "sees 267x267 pixels"]
    assert said.count("1.12M parameters") == 5


def test_draw_says_the_warning():
    description = describe("resnet18", image_size=64)
    assert description.warning
    assert description.warning in " ".join(texts(picture(description)))


def test_draw_shortens_the_longest_network():
    root = picture(describe("resnet1202"))
    said = texts(root)
    assert said.count("200 blocks") == 3
    assert said.count("... x 196 ...") == 3
    assert said.count("block200") == said.count("block1") == 3
    assert said.count("+") == 12
    assert len(list(root.iter())) < 400
    assert "stage3 64x8x8 (200 blocks, skips: zero pad, identity)" in (root.findtext(f"{SVG}desc") or "")


@pytest.mark.parametrize(
    "name", ['<script>&"quoted"</script>', "名前 <&> é", "bell\x07 zero\x00 escape\x1b[31m", "lone \ud800"]
)
def test_draw_escapes_any_name(name):
    text = draw(dataclasses.replace(describe("tutorial"), name=name, source=name, warning=name))
    text.encode()
    assert "<script>" not in text
    said = texts(fromstring(text))
    assert "".join(c if c.isprintable() and c != "\ud800" else "\ufffd" for c in name) in said


def test_draw_cuts_what_is_too_long():
    root = picture(
        dataclasses.replace(describe("tutorial"), name="W" * 100_000, source="x " * 5000, warning="y" * 5000)
    )
    said = texts(root)
    assert max(map(len, said)) < 200
    assert root.findtext(f"{SVG}title") == "The skeleton of " + "W" * 100_000


def test_draw_gives_each_part_of_another_network_one_box():
    description = foreign(
        ("stem", "conv 3x3/2"), ("blocks.3", "Odd<Kind>"), ("blocks.3", "layernorm"), ("stem", "relu")
    )
    root = picture(description)
    said = texts(root)
    assert [(group[0].text or "").split(":")[0] for group in root.iter(f"{SVG}g")] == ["stem", "blocks.3"]
    assert "Odd<Kind>" in said
    assert "20 parameters" in said
    assert "+" not in said
    assert not any("sees" in text or "receptive" in text or "activations" in text for text in said)
    assert any("sees 9x9" in text for text in texts(picture(foreign(("a", "norm"), field=9))))


def test_draw_sums_up_parts_of_many_layers_and_many_parts():
    layers = [("layer1", kind) for kind in ("conv 3x3", "norm", "relu") * 50]
    said = texts(picture(foreign(*layers)))
    assert "50 x conv 3x3, 50 x norm, 50 x relu" in said
    root = picture(foreign(*[(f"part{i}", "linear") for i in range(500)]))
    assert "... 484 more parts ..." in texts(root)
    assert len(list(root.iter())) < 600


def test_notebooks_show_the_drawing():
    description = describe("tutorial")
    assert description._repr_svg_() == draw(description)


def test_short_counts():
    assert [short(n) for n in (0, 999, 1000, 999_999, 2_359_296)] == ["0", "999", "1.00k", "1.00M", "2.36M"]
    assert [short(n, "B") for n in (12, 3_450_000_000, 2 * 10**12)] == ["12 B", "3.45 GB", "2.00 TB"]


def test_shortened_counts_what_it_leaves_out():
    assert shortened([*"abcdef"], 6) == [*"abcdef"]
    assert shortened([*"abcdefg"], 6) == ["a", "b", "c", 3, "g"]


def test_clip_keeps_within_the_width():
    assert clip("short", 100) == "short"
    for text in ("W" * 50, "il" * 500, "名前" * 40):
        assert clip(text, 100).endswith("…")
        assert extent(clip(text, 100)) <= 100


def test_what_is_in_no_layer_stands_beside_the_row_of_parts():
    svg = draw(describe("timm:test_vit", image_size=32))
    assert "products of attention" not in svg
    for words in (">384<", ">19,200<", ">parameters in no layer<", ">1000<"):
        assert words in svg
