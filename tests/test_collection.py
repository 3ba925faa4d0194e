"""A folder becomes the same items on every machine, and nothing outside it is ever picked."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from threed.errors import Mistake
from threed.training import collection
from threed.training.collection import Collection, Item, gather, held_out


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"never opened")
    return folder


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def pairs(found: Collection) -> list[tuple[str, str]]:
    return [(item.name, item.caption) for item in found.items]


def test_file_names_become_captions_in_the_order_of_names(tmp_path: Path) -> None:
    fill(
        tmp_path,
        "b/old_wooden-Chest02.glb",
        "b/RedSUVCar.OBJ",
        "axe_1handed.gltf",
        "b/a/Tree.v3_a.glb",
        "läche_ñandú.glb",
    )
    fill(tmp_path, "b/texture.png", "b/old.bin", ".hidden/rock.glb", "b/._rock.glb", "b/captions.jsonl")
    (tmp_path / "folder.glb").mkdir()
    found = gather(tmp_path)
    assert pairs(found) == [
        ("axe_1handed.gltf", "axe handed"),
        ("b/RedSUVCar.OBJ", "red suv car"),
        ("b/a/Tree.v3_a.glb", "tree"),
        ("b/old_wooden-Chest02.glb", "old wooden chest"),
        ("läche_ñandú.glb", "läche ñandú"),
    ]
    assert found.missing == 0
    assert [item.path for item in found.items] == [tmp_path / item.name for item in found.items]


def test_captions_are_found_from_their_own_folder_and_from_the_meshes(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set" / "train", "x/barrel.glb", "y/tree.obj")
    expected = [("x/barrel.glb", "a wooden barrel"), ("y/tree.obj", "a tree")]
    for place, barrel, tree in (
        (folder, "x/barrel.glb", "./y//tree.obj"),
        (folder.parent, "train/x/barrel.glb", "y/tree.obj"),
        (folder / "x", "barrel.glb", "../y/tree.obj"),
        (tmp_path, "set\\train\\x\\barrel.glb", "x\\..\\y\\tree.obj"),
    ):
        captions = write(
            place / "captions.jsonl",
            {"id": 3, "path": tree, "caption": "  A \tTree", "colours": ["green"]},
            {"caption": "a wooden barrel", "path": barrel},
        )
        assert pairs(gather(folder, captions)) == expected
        assert {item.path for item in gather(folder, captions).items} == {folder / name for name, _ in expected}


def test_a_file_may_have_several_captions_and_a_caption_no_file(tmp_path: Path) -> None:
    fill(tmp_path, "barrel.glb", "uncaptioned.glb", "picture.png")
    captions = write(
        tmp_path / "captions.jsonl",
        {"path": "barrel.glb", "caption": "a wooden barrel"},
        {"path": "barrel.glb", "caption": "a barrel"},
        {"path": "barrel.glb", "caption": "a barrel"},
        *({"path": path, "caption": "x"} for path in ("gone.glb", "picture.png", "Barrel.glb", ".", "\0", "é.glb")),
    )
    found = gather(tmp_path, captions)
    assert pairs(found) == [("barrel.glb", "a barrel"), ("barrel.glb", "a wooden barrel")]
    assert found.missing == 6


def test_a_captions_file_of_another_system(tmp_path: Path) -> None:
    fill(tmp_path, "barrel.glb")
    captions = tmp_path / "captions.jsonl"
    captions.write_bytes(b'\xef\xbb\xbf{"path": "barrel.glb", "caption": "a barrel"}\r\n\r\n  \r\n')
    assert pairs(gather(tmp_path, captions)) == [("barrel.glb", "a barrel")]


def test_links_to_meshes_are_the_owners_business(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "barrel.glb")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "barrel.glb").symlink_to(tmp_path / "elsewhere" / "barrel.glb")
    (tmp_path / "set").symlink_to(tmp_path / "real")
    captions = write(tmp_path / "captions.jsonl", {"path": "real/barrel.glb", "caption": "a barrel"})
    assert pairs(gather(tmp_path / "set", captions)) == [("barrel.glb", "a barrel")]


def test_captions_of_other_folders_are_missing_not_wrong(tmp_path: Path) -> None:
    fill(tmp_path, "train/barrel.glb", "test/tree.glb")
    captions = write(
        tmp_path / "manifest.jsonl",
        {"path": "train/barrel.glb", "caption": "a barrel"},
        {"path": "test/tree.glb", "caption": "a tree"},
    )
    found = gather(tmp_path / "train", captions)
    assert (pairs(found), found.missing) == ([("barrel.glb", "a barrel")], 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2 of '.*captions.jsonl' is not JSON \(.*\); write {\"path\": \"barrel.glb\", \"caption\": ...}"),
        ("[" * 100_000, "line 2 of .* is not JSON"),
        ('"a barrel"', "line 2 of .* is not a JSON object; write"),
        ("null", "line 2 of .* is not a JSON object; write"),
        ("\xff", "line 2 of .* is not JSON"),
        (
            '{"caption": "x"}',
            'line 2 of .* has no file name as its "path" but None; write the mesh file\'s relative path',
        ),
        ('{"path": 3, "caption": "x"}', 'has no file name as its "path" but 3;'),
        ('{"path": "", "caption": "x"}', "has no file name as its \"path\" but '';"),
        (
            '{"path": "../x.glb", "caption": "x"}',
            r"line 2 .* has a path that leaves the folder: '../x.glb'; put the mesh",
        ),
        ('{"path": "a/../../../etc/x.glb", "caption": "x"}', "has a path that leaves the folder"),
        (r'{"path": "..\\x.glb", "caption": "x"}', "has a path that leaves the folder"),
        ('{"path": "/x.glb", "caption": "x"}', "has the absolute path '/x.glb'; write it relative to the folder"),
        (r'{"path": "C:\\x.glb", "caption": "x"}', "has the absolute path"),
        (r'{"path": "c:x.glb", "caption": "x"}', "has the absolute path"),
        (r'{"path": "\\\\server\\share\\x.glb", "caption": "x"}', "has the absolute path"),
        ('{"path": "a.glb"}', "line 2 of .* has None for a caption; write a string"),
        ('{"path": "a.glb", "caption": ["x"]}', r"has \['x'\] for a caption; write a string"),
        ('{"path": "a.glb", "caption": " \\n "}', "has an empty caption; write what the mesh shows"),
        (
            '{"path": "a.glb", "caption": "a \\u0007"}',
            r"has a caption with unprintable characters, 'a \\x07'; write plain",
        ),
        ('{"path": "a.glb", "caption": "a \\ud800"}', "has a caption with unprintable characters"),
        (
            json.dumps({"path": "a.glb", "caption": "word " * 15}),
            "has a caption of 15 words and 74 characters, 'word word .*'...; shorten it to at most 14 words and 200",
        ),
        (json.dumps({"path": "a.glb", "caption": "x" * 201}), "has a caption of 1 words and 201 characters"),
    ],
)
def test_captions_that_cannot_be_used(tmp_path: Path, line: str, message: str) -> None:
    fill(tmp_path, "a.glb")
    captions = tmp_path / "captions.jsonl"
    captions.write_bytes(b'{"path": "a.glb", "caption": "fine"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(Mistake, match=message) as caught:
        gather(tmp_path, captions)
    assert len(str(caught.value)) < 1000


def test_captions_of_exactly_the_limits(tmp_path: Path) -> None:
    fill(tmp_path, "a.glb", "b.glb")
    captions = write(
        tmp_path / "captions.jsonl",
        {"path": "a.glb", "caption": "word " * 14},
        {"path": "b.glb", "caption": "x" * 200},
    )
    assert [len(item.caption) for item in gather(tmp_path, captions).items] == [69, 200]


def test_folders_and_files_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Mistake, match=r"there is no folder '.*gone'; check the path"):
        gather(tmp_path / "gone")
    fill(tmp_path, "set/barrel.glb", "empty/notes.txt")
    with pytest.raises(Mistake, match=r"'.*barrel.glb' is not a folder; give the one that the meshes are in"):
        gather(tmp_path / "set" / "barrel.glb")
    with pytest.raises(Mistake, match=re.escape("; put .glb, .gltf, .obj, .ply, .stl, .usdz files there")):
        gather(tmp_path / "empty")
    with pytest.raises(Mistake, match=r"cannot read '.*gone.jsonl' \(No such file or directory\); check --captions"):
        gather(tmp_path / "set", tmp_path / "gone.jsonl")
    captions = write(tmp_path / "captions.jsonl", {"path": "tree.glb", "caption": "a tree"})
    with pytest.raises(
        Mistake, match=r"no caption in '.*captions.jsonl' belongs to a mesh in '.*set'; write each path"
    ):
        gather(tmp_path / "set", captions)
    monkeypatch.setattr(collection, "MOST_BYTES", 10)
    with pytest.raises(Mistake, match=r"captions.jsonl' is larger than 0 MiB; leave out what is no caption"):
        gather(tmp_path / "set", captions)
    monkeypatch.setattr(Path, "rglob", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(Mistake, match=r"cannot list '.*set' \(Permission denied\); check its permissions"):
        gather(tmp_path / "set")


def test_file_names_that_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        Mistake, match=r"the file name 'x/0001_b.glb' does not say what .*; rename it or write --captions"
    ):
        gather(fill(tmp_path, "x/0001_b.glb"))


def test_file_names_that_say_too_much(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"the file name '.*' has a caption of 15 words"):
        gather(fill(tmp_path, "on_" * 15 + ".glb"))


def some(count: int) -> tuple[Item, ...]:
    return tuple(Item(Path(f"/meshes/{i}.glb"), f"thing {i}", f"{i}.glb") for i in range(count))


def test_the_split_is_by_the_hash_of_the_name() -> None:
    kept, held = held_out(some(400), 0.25)
    digests = {item.name: hashlib.sha256(item.name.encode()).hexdigest() for item in some(400)}
    assert {item.name for item in held} == {name for name, digest in digests.items() if digest < "4"}
    assert sorted(kept + held, key=lambda item: int(item.path.stem)) == list(some(400))


def test_no_item_changes_sides_when_others_come_and_go() -> None:
    kept, held = held_out(some(2000))
    assert 60 < len(held) < 140  # 100 expected, deviation 10
    assert list(kept) == [item for item in some(2000) if item not in held]
    more = held_out(some(5000))[1]
    assert set(held) <= set(more)
    assert held_out(reversed(some(2000)))[1] == held[::-1]
    for item in some(50):
        assert held_out([item])[1] == ((item,) if item in held else ())


def test_all_captions_of_a_file_and_all_places_of_a_folder_are_on_one_side() -> None:
    items = [replace(item, caption=caption, path=Path("/moved") / item.name) for item in some(200) for caption in "ab"]
    kept, held = held_out(items, 0.5)
    assert {item.name for item in kept}.isdisjoint(item.name for item in held)
    assert {item.name for item in held} == {item.name for item in held_out(some(200), 0.5)[1]}


def test_shares() -> None:
    assert held_out(some(50), 0) == (some(50), ())
    assert held_out((), 0.5) == ((), ())
    for share in (1, 1.5, -0.1, float("nan")):
        with pytest.raises(Mistake, match=r"a share of .* cannot be held out; use at least 0 and less than 1"):
            held_out(some(5), share)


def test_names_that_are_not_unicode_are_split_too() -> None:
    item = replace(some(1)[0], name="b\udce4rrel.glb")
    assert held_out([item], 0) == ((item,), ())
