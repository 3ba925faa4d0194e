"""USDZ: the archive by its bytes, the scene as OpenUSD reads it, and what its own validators say."""

import io
import json
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from test_package import full, painted

from threed.cli import main
from threed.exporters import export, glb, usdz
from threed.exporters.findings import check
from threed.renderers import usd as usd_reader
from threed.renderers import usd_scene
from threed.renderers.read import opened, read


@pytest.fixture(scope="module")
def ball():
    return replace(painted(trimesh.creation.icosphere(2)), name='it\'s "odd" \\ 椅子\n')


@pytest.fixture
def here(monkeypatch):
    """Scenes are read in this process, which is quicker."""
    pytest.importorskip("pxr")

    def parsed(path):
        told, arrays = usd_scene.found(path)
        return json.loads(json.dumps(told)), arrays

    monkeypatch.setattr(usd_reader, "parsed", parsed)


@pytest.fixture
def usd(tmp_path):
    """A function from an asset to its stage, which lives as long as its file."""
    stages = pytest.importorskip("pxr.Usd")

    def stage(asset):
        export(asset, tmp_path / "it.usdz")
        return stages.Stage.Open(str(tmp_path / "it.usdz"))

    return stage


def findings(stage):
    """What all validators of OpenUSD say, among them those of the program usdchecker."""
    validation = pytest.importorskip("pxr.UsdValidation")
    validators = validation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 20
    return [
        f"{each.GetName()}: {each.GetMessage()}" for each in validation.ValidationContext(validators).Validate(stage)
    ]


def test_the_archive_can_be_mapped_into_memory(ball):
    content = usdz.encode(replace(ball, material=full()))
    assert usdz.encode(replace(ball, material=full())) == content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        assert archive.testzip() is None
    assert [each.filename for each in entries] == ["asset.usda", "BaseColor.png", "MetallicRoughness.png", "Normal.png"]
    for each in entries:
        header = content[each.header_offset :][:30]
        start = each.header_offset + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        assert start % 64 == 0
        assert each.compress_type == zipfile.ZIP_STORED
        assert content[start:][: each.file_size] == zipfile.ZipFile(io.BytesIO(content)).read(each.filename)


@pytest.mark.parametrize("without", ["nothing", "roughness_metallic", "normal", "occlusion"])
def test_openusd_reads_what_was_written(without, ball, usd):
    from pxr import UsdGeom, UsdShade

    material = full() if without == "nothing" else replace(full(), roughness=0.25, metallic=0.5, **{without: None})
    asset = replace(ball, material=material)
    stage = usd(asset)
    assert findings(stage) == []
    assert (UsdGeom.GetStageMetersPerUnit(stage), UsdGeom.GetStageUpAxis(stage)) == (1.0, "Y")
    root = stage.GetDefaultPrim()
    assert root.GetDisplayName() == 'it\'s "odd" \\ 椅子 '
    mesh = UsdGeom.Mesh(root.GetChild("Mesh"))
    indices = np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    assert mesh.GetFaceVertexCountsAttr().Get() == [3] * len(indices)
    np.testing.assert_array_equal(np.array(mesh.GetPointsAttr().Get())[indices], asset.mesh.corners.numpy())
    np.testing.assert_array_equal(np.array(mesh.GetNormalsAttr().Get())[indices], glb.unit_normals(asset).numpy())
    layout = np.array(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").Get())[indices] * [1, -1] + [0, 1]
    np.testing.assert_allclose(layout, asset.uvs[asset.uv_faces].numpy(), atol=1e-7)
    bound, _ = UsdShade.MaterialBindingAPI(mesh).ComputeBoundMaterial()
    shader, _, _ = bound.ComputeSurfaceSource()
    assert shader.GetShaderId() == "UsdPreviewSurface"
    assert looks(shader) == expected(asset.material)


def looks(shader):
    """Each input's number, or its texture's channel, colour space, factors and bytes."""
    found = {}
    for each in shader.GetInputs():
        if not each.HasConnectedSource():
            found[each.GetBaseName()] = each.Get()
            continue
        (source,), _ = each.GetConnectedSources()
        get = lambda name, source=source: source.source.GetInput(name).Get()  # noqa: E731
        archive, _, name = get("file").resolvedPath.rstrip("]").rpartition("[")
        picture = Image.open(io.BytesIO(zipfile.ZipFile(archive).read(name))).tobytes()
        factors = tuple(get("scale")), tuple(get("bias"))
        found[each.GetBaseName()] = str(source.sourceName), get("sourceColorSpace"), factors, picture
    return found


def expected(material):
    """What glTF has of the same material."""
    plain, vectors = ((1, 1, 1, 1), (0, 0, 0, 0)), ((2, 2, 2, 1), (-1, -1, -1, 0))
    bytes_ = {key: Image.open(io.BytesIO(content)).tobytes() for key, content in glb.pictures(material).items()}
    found = {"diffuseColor": ("rgb", "sRGB", plain, bytes_["baseColorTexture"])}
    found |= {"roughness": material.roughness, "metallic": material.metallic}
    shine = bytes_.get("metallicRoughnessTexture")
    if shine:
        found |= {"roughness": ("g", "raw", plain, shine), "metallic": ("b", "raw", plain, shine)}
    if material.occlusion is not None:
        found["occlusion"] = "r", "raw", plain, shine or bytes_["occlusionTexture"]
    if material.normal is not None:
        found["normal"] = "rgb", "raw", vectors, bytes_["normalTexture"]
    return found


@pytest.mark.parametrize("without", ["nothing", "roughness_metallic", "normal", "occlusion"])
def test_what_was_written_is_read(without, ball, tmp_path, here):
    material = full() if without == "nothing" else replace(full(), roughness=0.25, metallic=0.5, **{without: None})
    asset = replace(ball, name="a barrel", material=material)
    export(asset, tmp_path / "first.usdz")
    export(asset, tmp_path / "first.glb")
    ours, plain = read(tmp_path / "first.usdz"), read(tmp_path / "first.glb")
    assert (ours.name, ours.material.roughness, ours.material.metallic) == (
        plain.name,
        plain.material.roughness,
        plain.material.metallic,
    )
    for key in ("base_color", "roughness_metallic", "normal", "occlusion"):
        first, second = getattr(ours.material, key), getattr(plain.material, key)
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second)
    assert torch.equal(ours.mesh.vertices, plain.mesh.vertices)
    assert torch.equal(ours.mesh.faces, plain.mesh.faces)
    torch.testing.assert_close(ours.uvs[ours.uv_faces], plain.uvs[plain.uv_faces], atol=6e-8, rtol=0)  # v is turned
    (first,), (second,) = opened(tmp_path / "first.usdz").primitives, opened(tmp_path / "first.glb").primitives
    np.testing.assert_array_equal(first.normals, second.normals)
    assert [each for each in check(opened(tmp_path / "first.usdz")) if each.severity != "note"] == []  # nor tangents


def packed(path, scene, **files):
    path.write_bytes(usdz.archived({"scene.usda": ("#usda 1.0\n" + scene).encode(), **files}))
    return path


PICTURE = io.BytesIO()
Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(PICTURE, "PNG")
OTHERS = """(
    metersPerUnit = 0.01
    upAxis = "Z"
)
def Xform "Top"
{
    double3 xformOp:translate = (0, 0, 100)
    uniform token[] xformOpOrder = ["xformOp:translate"]

    def Mesh "UCX_hull"
    {
        uniform token orientation = "leftHanded"
        int[] faceVertexCounts = [3]
        int[] faceVertexIndices = [0, 1, 2]
        point3f[] points = [(0, 0, 0), (100, 0, 0), (0, 100, 0)]
    }

    def Mesh "Hidden"
    {
        token visibility = "invisible"
        int[] faceVertexCounts = [3]
        int[] faceVertexIndices = [0, 1, 2]
        point3f[] points = [(0, 0, 0), (100, 0, 0), (0, 100, 0)]
    }

    def Mesh "Sheet" (prepend apiSchemas = ["MaterialBindingAPI"])
    {
        int[] faceVertexCounts = [4, 3]
        int[] faceVertexIndices = [0, 1, 2, 3, 1, 4, 2]
        point3f[] points = [(0, 0, 0), (100, 0, 0), (100, 100, 0), (0, 100, 0), (200, 0, 0)]
        normal3f[] primvars:normals = [(0, 0, 1)] (interpolation = "constant")
        texCoord2f[] primvars:map = [(0, 0), (1, 0), (1, 1), (0, 1), (0.5, 0.25)] (interpolation = "faceVarying")
        int[] primvars:map:indices = [0, 1, 2, 3, 0, 4, 2]
        color3f[] primvars:displayColor = [(1, 0, 0), (0, 1, 0)] (interpolation = "uniform")

        def GeomSubset "Painted" (prepend apiSchemas = ["MaterialBindingAPI"])
        {
            uniform token elementType = "face"
            uniform token familyName = "materialBind"
            int[] indices = [1]
            rel material:binding = </Top/Paint>
        }
    }

    def Material "Paint"
    {
        token outputs:surface.connect = </Top/Paint/S.outputs:surface>
        string inputs:uvs = "map"
        def Shader "S"
        {
            uniform token info:id = "UsdPreviewSurface"
            color3f inputs:diffuseColor = (0.5, 0.25, 2)
            float inputs:metallic = 0.5
            float inputs:roughness.connect = </Top/Paint/T.outputs:r>
            token outputs:surface
        }
        def Shader "T"
        {
            uniform token info:id = "UsdUVTexture"
            asset inputs:file = @./pictures/a.png@
            float2 inputs:st.connect = </Top/Paint/P.outputs:result>
            float outputs:r
        }
        def Shader "P"
        {
            uniform token info:id = "UsdPrimvarReader_float2"
            string inputs:varname.connect = </Top/Paint.inputs:uvs>
            float2 outputs:result
        }
    }
}
"""


def test_scenes_of_others_are_read(tmp_path, here):
    """In centimetres with z up, of polygons, by faces, corners and wholes, with two materials and odd names."""
    files = {"pictures/a.png": PICTURE.getvalue()}
    hull, bare, painted_ = opened(packed(tmp_path / "it.usdz", OTHERS, **files)).primitives
    assert [each.is_collider for each in (hull, bare, painted_)] == [True, False, False]
    np.testing.assert_allclose(hull.vertices[hull.faces], [[[0, 1, -1], [1, 1, 0], [0, 1, 0]]], atol=1e-12)
    quad = [[[0, 1, 0], [1, 1, 0], [1, 1, -1]], [[0, 1, 0], [1, 1, -1], [0, 1, -1]]]
    np.testing.assert_allclose(bare.vertices[bare.faces], quad, atol=1e-12)
    np.testing.assert_allclose(painted_.vertices[painted_.faces], [[[1, 1, 0], [2, 1, 0], [1, 1, -1]]], atol=1e-12)
    for each in (bare, painted_):
        np.testing.assert_allclose(each.normals, np.tile([0, 1, 0], (len(each.vertices), 1)), atol=1e-12)
    np.testing.assert_array_equal(bare.colours, np.tile([1, 0, 0], (6, 1)))
    assert (bare.uvs, bare.skin.color, painted_.colours) == (None, None, None)
    np.testing.assert_array_equal(painted_.uvs[painted_.faces[0]], [[0, 1], [0.5, 0.75], [1, 0]])
    skin = painted_.skin
    assert (skin.color, skin.factor, skin.metallic, skin.roughness) == (None, (0.5, 0.25, 1.0), 0.5, 1.0)
    red = np.arange(48).reshape(4, 4, 3)[..., 0]
    np.testing.assert_array_equal(np.asarray(skin.shine)[..., 1:], np.stack([red, np.full_like(red, 255)], axis=-1))


TRIANGLE = """def Mesh "M"
{
    int[] faceVertexCounts = [3]
    int[] faceVertexIndices = [0, 1, 2]
    point3f[] points = [(0, 0, 0), (1, 0, 0), (0, 1, 0)]
}
"""
BROKEN = {
    "a reference outside": ('def "A" (prepend references = @/etc/a.usda@</A>) {}', "/A is made of what stands else"),
    "a payload outside": ('def "A" (prepend payload = @../a.usda@) {}', "/A is made of what stands elsewhere"),
    "one in a variant": (
        'def "A" (prepend variantSets = "v")\n{\nvariantSet "v" = {\n"x" (prepend references = @a.usda@) {\n}\n}\n}\n',
        "is made of what stands elsewhere",
    ),
    "itself many times": (
        'class "C"\n{\n}\ndef "A" (prepend inherits = </C>)\n{\n}\n',
        "/A is made of what stands elsewhere",
    ),
    "clips": (
        'def "A" (clips = {dictionary default = {asset[] assetPaths = [@a.usda@] } }) {}',
        "/A is made of what stands elsewhere",
    ),
    "another layer": ("(subLayers = [@/etc/a.usda@])", "its scene is made of several; flatten it with usdcat"),
    "a picture outside": (OTHERS.replace("./pictures/", "../"), "'../a.png', which is not in it"),
    "a picture at the root": (OTHERS.replace("./pictures/a.png", "/etc/passwd"), "'/etc/passwd', which is not in it"),
    "no picture": (OTHERS.replace("./pictures/a.png", "scene.usda"), "cannot be parsed"),
    "points that are not there": (TRIANGLE.replace("1, 2]", "1, 3]"), "between points that it does not have"),
    "polygons that do not fit": (TRIANGLE.replace("[3]", "[4]"), "has 3 corners, and polygons of 4"),
    "lines": (TRIANGLE.replace("[3]", "[2, 1]"), "has 3 corners, and polygons of 3"),
    "no text": ("def {", r"cannot be parsed \(\[scene.usda\]:2:1: parse error"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_leads_outside_or_does_not_fit_is_refused(what, tmp_path, here):
    scene, message = BROKEN[what]
    path = packed(tmp_path / "it.usdz", scene, **{"pictures/a.png": PICTURE.getvalue()})
    with pytest.raises(ValueError, match=message):
        opened(path)
    assert len(opened(packed(path, TRIANGLE)).primitives) == 1  # the file is read anew, not remembered


def test_a_scene_is_read_in_a_process_of_its_own(ball, tmp_path, monkeypatch):
    """Over a nest without bottom OpenUSD ends the process, and this one stays."""
    pytest.importorskip("pxr")
    export(ball, tmp_path / "ball.usdz")
    (found,) = opened(tmp_path / "ball.usdz").primitives
    np.testing.assert_array_equal(found.vertices[found.faces], ball.mesh.corners.numpy())
    nest = packed(tmp_path / "nest.usdz", 'def "A"\n{\n' * 100_000)
    with pytest.raises(ValueError, match="OpenUSD broke down over it, with exit code"):
        opened(nest)
    with pytest.raises(ValueError, match="/A is made of what stands elsewhere; flatten it with usdcat"):
        opened(packed(nest, BROKEN["a reference outside"][0]))
    monkeypatch.setattr(usd_reader, "PATIENCE", 0.01)
    with pytest.raises(ValueError, match=r"OpenUSD was not done with it after 0\.01 seconds"):
        opened(tmp_path / "ball.usdz")


def test_archives_are_what_usdz_allows(tmp_path):
    pytest.importorskip("pxr")
    path = tmp_path / "it.usdz"
    for method, name, message in (
        (zipfile.ZIP_DEFLATED, "a.usda", "is compressed, which USDZ forbids"),
        (zipfile.ZIP_STORED, "a.png", "begins with 'a.png', which is no scene"),
    ):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr(name, "#usda 1.0\n")
        with pytest.raises(ValueError, match=message):
            opened(path)


def test_the_extra_is_named_where_it_is_missing(ball, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pxr", None)
    export(ball, tmp_path / "it.usdz")
    assert main(["check", str(tmp_path / "it.usdz")]) == 2
    assert 'needs the package usd-core (pip install "threed-assets[usdz]")' in capsys.readouterr().out


def test_the_validators_would_say_so(ball, usd, monkeypatch):
    monkeypatch.setattr(usdz, "SCENE", usdz.SCENE.replace("metersPerUnit = 1", ""))
    monkeypatch.setattr(usdz, "ALIGNMENT", 60)
    told = " ".join(findings(usd(ball)))
    assert "metersPerUnit" in told
    assert "ByteMisalignment" in told


@pytest.mark.parametrize(("name", "word"), [("", "asset"), ("椅子", "__"), ("2 chairs", "_2_chairs"), ("a-b", "a_b")])
def test_names_become_words(name, word):
    assert usdz.identifier(name) == word


def test_the_command_writes_it_with_its_levels(ball, tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    export(ball, tmp_path / "it.glb")
    assert main(["export", "it.glb", "--preset", "unity", "--texture-size", "64", "--output", "a.usdz"]) == 0
    told = json.loads((tmp_path / "a_report.json").read_text())
    assert [*told["files"]] == ["a.usdz", "a_lod1.usdz", "a_lod2.usdz", "a_lod3.usdz"]
    assert [each["file"] for each in told["check"]] == [*told["files"]]
    assert all(each["severity"] == "note" for judged in told["check"] for each in judged["findings"])
    for name in told["files"]:
        assert zipfile.is_zipfile(tmp_path / name)
