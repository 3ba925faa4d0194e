"""Lists as people write them: what is read, and what is said of the rest."""

from pathlib import Path

import pytest

from threed.errors import Mistake
from threed.image_cli import Picture
from threed.rows import MOST_BYTES, misnamed, read
from threed.text_cli import Text


def listed(folder: Path, content: str | bytes, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


PLAIN = 'prompt,seed\na wooden barrel,3\n\n,\n"a house, ""red""",\n'


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        "\ufeff" + PLAIN,
        PLAIN.encode("utf-16"),
        'Prompt;--seed\na wooden barrel; 3\n\n;\n"a house, ""red""";\n',
        'PROMPT\tSeed\na wooden barrel\t3\n\n\t\n"a house, ""red"""\t\n',
    ],
)
def test_a_table_however_it_was_saved(tmp_path: Path, content: str | bytes) -> None:
    rows = read(listed(tmp_path, content))
    assert [(row.line, row.cells) for row in rows] == [
        (2, {"prompt": "a wooden barrel", "seed": "3"}),
        (5, {"prompt": 'a house, "red"'}),
    ]
    assert [row.name for row in rows] == ["a-wooden-barrel-3", "a-house-red-0"]


def test_lines_are_those_of_the_file_even_after_cells_of_several(tmp_path: Path) -> None:
    rows = read(listed(tmp_path, 'prompt\n"a\nlong\nbarrel"\na crate\n'))
    assert [row.line for row in rows] == [2, 5]


def test_prompts_alone_and_json(tmp_path: Path) -> None:
    plain = read(listed(tmp_path, "a barrel, a big one\n\n  ein Faß \n", "list.txt"))
    assert [(row.line, row.cells["prompt"]) for row in plain] == [(1, "a barrel, a big one"), (3, "ein Faß")]
    told = '{"prompt": "a barrel", "seed": 3, "view_words": true, "format": ["glb", "stl"], "steps": null}\n'
    (row,) = read(listed(tmp_path, told, "list.jsonl"))
    assert row.asked(Path("x")) == Text(
        "a barrel", seed=3, view_words=True, format=("glb", "stl"), output=Path("x"), resume=True
    )


def test_every_flag_has_its_type(tmp_path: Path) -> None:
    table = (
        "prompt,seed,recipe,loss,scale,particles,view words,perp-neg,prior,lora,control,control-strength,negative,"
        "start,steps,format,faces,texture_size,height,device\n"
        "a barrel,3,dreamfusion,vsd,2.5,2,yes,1,sd:a/b,oil.safetensors,depth:c/d,0.5,a chair,"
        'sphere,9,"glb, stl",200,64,2,cpu\n'
    )
    (row,) = read(listed(tmp_path, table))
    assert row.asked(Path("x"), overwrite=True) == Text(
        "a barrel", Path("x"), 3, "dreamfusion", "vsd", 2.5, 2, True, 1.0, "sd:a/b", tmp_path / "oil.safetensors",
        "depth:c/d", 0.5, "a chair", "sphere", 9, ("glb", "stl"), 200, 64, 2.0, "cpu", overwrite=True,
    )  # fmt: skip


def test_a_picture_is_looked_for_beside_the_list(tmp_path: Path) -> None:
    (row,) = read(listed(tmp_path, "image,mask,remove_background,fov\nchairs/red one.png,m.png,no,30\n"))
    asked = row.asked(Path("x"))
    assert isinstance(asked, Picture)
    assert (asked.picture, asked.mask) == (tmp_path / "chairs" / "red one.png", tmp_path / "m.png")
    assert (asked.remove_background, asked.fov, row.name) == (False, 30.0, "red-one-0")


def test_checkpoints_are_looked_for_beside_the_list_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of names that may be ids of the hub, those that are there; all others stay as they are."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("models/mine", "models/depth", "start"):
        (tmp_path / "list" / name).mkdir(parents=True)
    header = "prompt,prior,control,lora,start\n"
    table = listed(tmp_path / "list", header + "a,sd:models/mine,normal:models/depth,l.safetensors,start\n")
    (row,) = read(table)
    asked, home = row.asked(Path("x")), tmp_path / "list"
    assert isinstance(asked, Text)
    assert (asked.prior, asked.control) == (f"sd:{home / 'models/mine'}", f"normal:{home / 'models/depth'}")
    assert (asked.lora, asked.start) == (home / "l.safetensors", str(home / "start"))
    (row,) = read(listed(tmp_path / "list", header + f"a,sd:owner/name,models/depth,{tmp_path / 'l'},sphere\n"))
    asked = row.asked(Path("x"))
    assert isinstance(asked, Text)
    assert (asked.prior, asked.control, asked.start) == ("sd:owner/name", str(home / "models/depth"), "sphere")
    assert asked.lora == tmp_path / "l"


def test_what_is_set_everywhere_gives_way_to_the_row(tmp_path: Path) -> None:
    rows = read(listed(tmp_path, "prompt,seed\na,1\nb,\n"), {"seed": "7", "texture-size": "64"})
    assert [row.cells["seed"] for row in rows] == ["1", "7"]
    assert {row.cells["texture_size"] for row in rows} == {"64"}


def test_names_differ_where_prompts_do(tmp_path: Path) -> None:
    long = "a very small wooden treasure chest with iron bands and a "
    rows = read(listed(tmp_path, f"{long}lock\n{long}key\n", "list.txt"))
    assert len({row.name for row in rows}) == 2
    assert misnamed(rows) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("promt\na\n", "unknown column 'promt'; did you mean 'prompt'?"),
        ("prompt,prompt\na,b\n", "column 'prompt' is there twice"),
        ("prompt\n\n", "has no rows"),
        ("", "has no rows"),
        ('prompt\na\n"b\n', "line 3 cannot be read"),
        ("prompt,seed\na, with a comma,3\n", "line 2 has 3 cells, and the header 2; put a prompt that holds a comma"),
        (b"prompt\na\nein Fa\xdf\n", r"is not in UTF-8 \(line 3\)"),
        (b"prompt\na\0b\n", "holds zero bytes"),
        (b"\xff\xfea", "not in UTF-8"),
        ("prompt\n" + "a" * 200_000 + "\n", "line 2 cannot be read"),
        (b"prompt\n" + b"a\n" * (MOST_BYTES // 2), "is larger than 16 MiB"),
        ("prompt\n" + "a\n" * 10_001, "has 10,001 rows of at most 10,000"),
    ],
)
def test_what_is_no_list(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(Mistake, match=message):
        read(listed(tmp_path, content))


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="there is no file"):
        read(tmp_path / "none.csv")
    with pytest.raises(Mistake, match=r"is no list of assets; use one of \.csv"):
        read(listed(tmp_path, "a", "list.xlsx"))
    for line in ("[1]", "{", "3"):
        with pytest.raises(Mistake, match="line 1 is no JSON"):
            read(listed(tmp_path, line, "list.jsonl"))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("a,x", "seed is 'x'; write a whole number"),
        (",3", "there is neither a prompt nor an image"),
    ],
)
def test_odd_cells(tmp_path: Path, cells: str, message: str) -> None:
    (row,) = read(listed(tmp_path, f"prompt,seed\n{cells}\n"))
    with pytest.raises(Mistake, match=message):
        row.asked(Path("x"))


def test_flags_of_the_other_command(tmp_path: Path) -> None:
    rows = read(listed(tmp_path, "prompt,image,particles,fov\na,,,30\n,b.png,2,\n"))
    for row, message in zip(
        rows, ("fov is '30', and only one with", "particles is '2', and only one without"), strict=True
    ):
        with pytest.raises(Mistake, match=message):
            row.asked(Path("x"))


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "a\\b", ".hidden", "nul", "COM1.txt", "c:", "a" * 101, "a."])
def test_names_stay_inside_the_library(tmp_path: Path, name: str) -> None:
    assert "as a file name" in misnamed(read(listed(tmp_path, f"prompt,name\na,{name}\n")))[2]


def test_names_are_unique_whatever_their_case(tmp_path: Path) -> None:
    rows = read(listed(tmp_path, "prompt,name\na,Chair\nb,chair\nc,\nC,\n"))
    wrong = misnamed(rows)
    assert set(wrong) == {3, 5}
    assert "as in line 2; give it another name" in wrong[3]
