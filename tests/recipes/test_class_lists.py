"""Class lists as tools write them: ids decide, and what is not understood is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from cawa_fast.recipes.datasets import FolderDataset
from cawa_fast.recipes.datasets.class_list import read_class_list
from cawa_fast.recipes.datasets.doctor.examine import examine
from cawa_fast.recipes.datasets.labels import COLOUR, pack
from tests.support import trees
from tests.support.tiny_runs import invoke


def read(tmp_path: Path, name: str, content: str | bytes):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_class_list(file)


def values(classes) -> dict[int, str]:
    """The name of each value in index masks."""
    return {
        value: "ignored" if index == 255 else classes.names[index]
        for value, index in sorted(classes.rule.classes.items())
        if value < COLOUR
    }


def dumped(content: object) -> str:
    return json.dumps(content)


ROAD_CAR = {0: "road", 1: "car", 255: "ignored"}
GAP = {0: "road", 7: "car", 255: "ignored"}
SWAPPED = {0: "car", 1: "road", 255: "ignored"}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        # labelme: __ignore__ is -1, which 8 bits store as 255
        ("labels.txt", "__ignore__\n_background_\ncat\n", {-1: "ignored", 0: "_background_", 1: "cat", 255: "ignored"}),
        ("class_names.txt", "_background_\ncat\n", {0: "_background_", 1: "cat", 255: "ignored"}),
        # ids in lines
        ("classes.txt", "0 road\n7 car\n", GAP),
        ("classes.txt", "7: car\n0: road\n", GAP),
        ("classes.txt", "car\t7\nroad\t0\n", GAP),
        ("classes.txt", "road, 0\ncar, 7\n", GAP),
        ("classes.txt", "road=0\ncar=7\n", GAP),
        ("classes.txt", "7 - car\n0 - road\n", GAP),
        ("classes.txt", "car -> 7\nroad -> 0\n", GAP),
        ("classes.txt", "0. road\n7) car\n", GAP),
        ("classes.csv", "name,Class Pixel Value\ncar,7\nroad,0\n", GAP),
        ("classes.csv", "name,pixels,parent_id\nroad,900,4\ncar,20,3\n", ROAD_CAR),
        ("classes.txt", "0;'traffic; light'\n7;car\n", {0: "traffic; light", 7: "car", 255: "ignored"}),
        ("classes.txt", "1 road\n2 car\n", {1: "road", 2: "car", 255: "ignored"}),
        ("classes.txt", "-1 void\n0 road\n255 ignore\n", {-1: "ignored", 0: "road", 255: "ignored"}),
        ("classes.txt", "0 background\n255 object\n", {0: "background", 255: "object"}),
        ("classes.txt", "0: unlabeled\n1: person\n", {0: "ignored", 1: "person", 255: "ignored"}),
        ("classes.txt", "300 far\n2 near\n", {2: "near", 255: "ignored", 300: "far"}),
        ("classes.txt", "0: lane 1\n1: lane 2\n", {0: "lane 1", 1: "lane 2", 255: "ignored"}),
        (
            "classes.txt",
            "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t9\t2\t1\twall\n4\t0.1\t9\t2\t0\tfloor, flooring\n",
            {1: "wall", 4: "floor, flooring", 255: "ignored"},
        ),
        # names that only look like ids
        ("classes.txt", "lane 01\nlane 2\n", {0: "lane 01", 1: "lane 2", 255: "ignored"}),
        ("classes.txt", "zone 1\nzone 2\n", {0: "zone 1", 1: "zone 2", 255: "ignored"}),
        ("classes.txt", "[/x]\n[bold]a\n", {0: "[/x]", 1: "[bold]a", 255: "ignored"}),
        ("classes.txt", "door, double door\nroad\n", {0: "door, double door", 1: "road", 255: "ignored"}),
        # other lines
        ("classes.txt", "- road\n- car\n", ROAD_CAR),
        ("classes.txt", "'road'\n\"car\"\n", ROAD_CAR),
        ("classes.txt", '["road", "car"]', ROAD_CAR),
        ("classes.txt", "names:\n  0: road\n  7: car\n", GAP),
        # tables
        ("classes.csv", "Pixel Value, Class\n0, road\n7, car\n", GAP),
        ("classes.csv", "Class,Pixel_Value\ncar,7\nroad,0\n", GAP),
        ("classes.csv", "id;name\n0;road\n7;car\n", GAP),
        ("classes.tsv", "index\tlabel\tnote\n7\tcar\tx\n0\troad\t\n", GAP),
        ("classes.csv", "class,name\n1,road\n0,car\n", SWAPPED),
        ("classes.csv", "0,road\n7,car\n", GAP),
        ("classes.csv", "# id,name\n0,road\n7,car\n", GAP),
        ("classes.csv", 'id,name,supercategory\n0,"road, paved",flat\n\n# end\n', {0: "road, paved", 255: "ignored"}),
        ("classes.csv", "id,name,trainId\n0,road,0\n1,pole,255\n2,car,2\n",
         {0: "road", 1: "ignored", 2: "car", 255: "ignored"}),
        # JSON
        ("classes.json", dumped({"1": "road", "0": "car"}), SWAPPED),
        ("classes.json", dumped({"car": 7, "road": 0}), GAP),
        ("config.json", dumped({"id2label": {"0": "road", "7": "car"}, "label2id": {"road": 0, "car": 7}}), GAP),
        ("classes.json", dumped({"label2id": {"car": 7, "road": 0}}), GAP),
        ("classes.json", dumped([{"id": 7, "name": "car"}, {"id": 0, "name": "road"}]), GAP),
        ("classes.json", dumped({"images": [], "categories": [{"id": 7, "name": "car", "supercategory": "x"},
                                                              {"id": 0, "name": "road", "supercategory": "y"}]}), GAP),
        ("classes.json", dumped({"7": {"name": "car"}, "0": {"name": "road"}}), GAP),
        ("classes.json", dumped({"car": {"id": 7}, "road": {"id": 0}}), GAP),
        ("classes.json", dumped({"labels": [{"name": "flat--road", "readable": "Road", "evaluate": True},
                                            {"name": "void--static", "readable": "Static", "evaluate": False}]}),
         {0: "flat--road", 1: "ignored", 255: "ignored"}),
        ("classes.json", dumped([{"name": "road", "id": 0, "trainId": 0}, {"name": "plate", "id": -1, "trainId": -1}]),
         {-1: "ignored", 0: "road", 255: "ignored"}),
        # YAML
        ("data.yaml", "path: x\ntrain: images/train\nnc: 2\nnames: ['road', 'car']\n", ROAD_CAR),
        ("data.yaml", "names:\n  7: car\n  0: road\n", GAP),
        ("classes.yml", "- road\n- car\n", ROAD_CAR),
    ],
)  # fmt: skip
def test_the_value_of_each_class(tmp_path, name, content, expected):
    assert values(read(tmp_path, name, content)) == expected


TWO = ((128, 64, 128), (0, 0, 142))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "road;128;64;128\ncar;0;0;142\n"),
        ("classes.txt", "128 64 128\troad\n0 0 142\tcar\n"),
        ("classes.txt", "0 128 64 128 road\n1 0 0 142 car\n"),
        ("classes.txt", "1 car 0 0 142\n0 road 128 64 128\n"),
        ("classes.txt", "road 128 64 128 255\ncar 0 0 142 255\n"),
        ("classes.txt", "0: road #804080\n1: car #00008e\n"),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:128,64,128:a,b:c\ncar:0,0,142::\n"),
        ("classes.csv", "name;color\nroad;#804080\ncar;#00008e\n"),
        ("classes.csv", 'id,name,rgb\n1,car,"(0, 0, 142)"\n0,road,128 64 128\n'),
        ("classes.csv", "name,red,green,blue,alpha\nroad,128,64,128,255\ncar,0,0,142,255\n"),
        ("classes.json", dumped({"classes": ["road", "car"], "palette": TWO})),
        ("classes.json", dumped({"classes": [{"title": "road", "color": "#804080"},
                                             {"title": "car", "color": "#00008E"}]})),
        ("classes.json", dumped({"1": {"name": "car", "color": TWO[1]}, "0": {"name": "road", "color": TWO[0]}})),
    ],
)  # fmt: skip
def test_colours_beside_names_and_ids(tmp_path, name, content):
    classes = read(tmp_path, name, content)
    assert (classes.names, classes.palette) == (("road", "car"), TWO)
    assert [classes.rule.classes[pack(colour)] for colour in TWO] == [0, 1]


def test_parts_of_cvat_may_have_no_colour(tmp_path):
    assert read(tmp_path, "labelmap.txt", "# label:color_rgb:parts:actions\nroad:::\ncar:::\n").names == ("road", "car")


def test_greys_and_ids_go_together_unless_they_contradict(tmp_path):
    both = read(tmp_path, "classes.csv", "id,name,r,g,b\n0,background,0,0,0\n1,object,255,255,255\n")
    assert values(both) == {0: "background", 1: "object", 255: "object"}
    with pytest.raises(ValueError, match="0 is the id of one class and the grey of another; leave out one of the two"):
        read(tmp_path, "classes.csv", "id,name,r,g,b\n0,background,255,255,255\n1,object,0,0,0\n")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, end):
    text = end.join(["# Straßen", "", "0\tStraße", "7\tcar", ""])
    assert values(read(tmp_path, "classes.txt", text.encode(encoding))) == {0: "Straße", 7: "car", 255: "ignored"}
    table = end.join(["id,name", "0,Straße", "7,car"])
    assert read(tmp_path, "classes.csv", table.encode(encoding)).names == ("Straße", "car")
    assert read(tmp_path, "classes.json", dumped({"7": "car", "0": "road"}).encode(encoding)).names == ("road", "car")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.txt", "_background_\n__ignore__\n", r"__ignore__ has the value -1, so that it must be the first"),
        ("classes.txt", "0: road\ncar\n", r"line 2: 'car' is not understood; it has no id, but '0: road' has one"),
        ("classes.txt", "0,road\n0,car\n", r"'road' and 'car' have the id 0; every class needs its own"),
        ("classes.txt", "0,road\n1,road\n", r"the class road occurs twice"),
        ("classes.txt", "-2,road\n1,car\n", r"'road' has the id -2; ids are 0 or more, and -1 is ignored"),
        ("classes.txt", "0,road,5\n1,car,6\n", r"line 1: '0,road,5' is not understood; keep the number that is the"),
        ("classes.txt", "0 road 1 2 3 4\n", r"line 1: .* is not understood; write 'name', 'name #rrggbb'"),
        ("classes.txt", "road, car, sky\n", r"line 1: 'road, car, sky' are several names; write one class a line"),
        ("classes.txt", "item {\n  id: 1\n  name: 'a'\n}\n", r"line 1: 'item \{' is not a class"),
        ("classes.txt", "<?xml version='1.0'?>\n<labels/>\n", r"line 1: .* is not a class"),
        ("classes.txt", "Stra\u00dfe\nroad\n".encode("latin-1"), r"classes.txt is not a text file .*line 1: .*0xdf"),
        ("classes.txt", b"road\n\x80\x04\x95\n", r"is not a text file .*\(line 2: "),
        ("classes.txt", b"\x89PNG\r\n\x1a\n\x00\x00", r"is not a text file"),
        ("classes.csv", "id,name\n0,road\n,car\n", r"line 3: '' in the column 'id' is no whole number"),
        ("classes.csv", "id,name\n0,road\n1.5,car\n", r"line 3: '1.5' in the column 'id' is no whole number"),
        ("classes.csv", "id,name,trainId\n7,road,0\n", r"line 2: 'road' has the id 7 and the trainId 0, and masks"),
        ("classes.csv", "name,Wert\nroad,1\ncar,0\n", r"is 'wert' the value of the classes in the masks\? Call that"),
        ("classes.csv", "name,Wert\nroad,1\ncar,2\n", r"is 'wert' the value of the classes in the masks\? Call that"),
        ("classes.csv", "road\ncar\n", r"line 2: no name; the first line must name the columns"),
        ("classes.json", '{"0": "road", "0": "car"}', r"'0' occurs twice"),
        ("classes.json", '{"road": true}', r"True of 'road' is neither an id nor a colour"),
        ("classes.json", '["road", 3]', r"class 1: 3 has no name"),
        ("classes.json", '[{"id": "first", "name": "road"}]', r"class 0: id is 'first'; an id is a whole number"),
        ("classes.json", '[{"id": 1, "name": "road"}, {"name": "car"}]', r"'car' has no id but 'road' has one"),
        ("classes.json", '{"names": ["road"], "nc": 2}', r"nc is 2, but there are 1 names"),
        ("classes.json", '{"0": {"id": 3, "name": "road"}}', r"'road' has the ids 0 and 3; keep one"),
        ("data.yaml", "names: [yes, no]\n", r"class 0: True has no name"),
        ("data.yaml", "names: {0: road, 0: car}\n", r"0 occurs twice"),
        ("data.yaml", "names: [road\n", r"data.yaml is not YAML \(while parsing"),
        ("data.yaml", "7\n", r"expected a list of names"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, name, content)
    assert name in str(caught.value)


def test_yaml_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ValueError, match=r"data\.yaml: YAML files need PyYAML: pip install pyyaml"):
        read(tmp_path, "data.yaml", "names: [a]\n")


def test_labels_follow_the_ids(tmp_path):
    trees.folder(tmp_path, "val", [trees.stripes([5, 2, 255])], classes=None)
    (tmp_path / "classes.csv").write_text("id,name\n5,car\n2,road\n")
    data = FolderDataset(tmp_path, "val")
    assert data.class_names == ("road", "car")
    assert data.read(0)[1][0, :3].tolist() == [1, 0, 255]


def test_a_value_in_a_gap_is_refused_with_the_ids(tmp_path):
    trees.folder(tmp_path, "val", [trees.stripes([5, 3])], classes=None)
    (tmp_path / "classes.csv").write_text("id,name\n5,car\n2,road\n")
    message = r"pixels have labels \[3\], outside 2, 5 \(255 is ignored\), the ids of classes.csv; add the missing"
    with pytest.raises(ValueError, match=message):
        FolderDataset(tmp_path, "val").read(0)
    trees.write_label(tmp_path / "masks" / "val" / "0.png", trees.stripes([0, 5]))
    with pytest.raises(
        ValueError, match=r"labels \[0\], .*; 0 has no name in classes.csv; give it the line '0,ignore'"
    ):
        FolderDataset(tmp_path, "val").read(0)
    assert examine("folder", tmp_path, ["val"]).findings[0].rule == "zero-unnamed"


def test_minus_one_in_a_signed_mask(tmp_path):
    from PIL import Image

    trees.folder(tmp_path, "val", [trees.stripes([0, 1])], classes="a\nb\n")
    (tmp_path / "masks" / "val" / "0.png").unlink()
    mask = tmp_path / "masks" / "val" / "0.tif"
    Image.fromarray(np.where(trees.stripes([0, 1]) == 1, 1, -1).astype(np.int32)).save(mask)
    with pytest.raises(ValueError, match=r"labels \[-1\], .*; if -1 marks pixels of no class, give it a line"):
        FolderDataset(tmp_path, "val").read(0)
    (tmp_path / "classes.txt").write_text("-1,ignore\n0,a\n1,b\n")
    assert FolderDataset(tmp_path, "val").read(0)[1][0, :2].tolist() == [255, 1]


def test_the_doctor_says_what_it_understood(tmp_path):
    trees.folder(tmp_path, "val", [trees.stripes([0, 4])], classes=None)
    (tmp_path / "classes.json").write_text(dumped({"4": "[bold]car", "0": "road", "6": "void"}))
    result = invoke("doctor", "data", "--dataset", "folder", "--root", str(tmp_path), "--split", "val", "--no-picture")
    assert (
        "classes.json: 2 classes by their ids: 0 road, 4 [bold]car; ignored: 6 void; without a name, and refused in "
        "masks: 1..3"
    ) in result.output
    assert read(tmp_path, "classes.txt", "a\nb\n").summary == "classes.txt: 2 classes by their order: 0 a, 1 b"
    grey = read(tmp_path, "classes.txt", "a 0 0 0\nb 255 255 255\n")
    assert grey.summary == "classes.txt: 2 classes by their greys: 0 a, 255 b"
