"""USDZ: the archive by its bytes, the scene as OpenUSD reads it, and what its own validators say."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from PIL import Image
from test_package import full, painted

from threed.cli import main
from threed.exporters import export, glb, usdz


@pytest.fixture(scope="module")
def ball():
    return replace(painted(trimesh.creation.icosphere(2)), name='it\'s "odd" \\ 椅子\n')


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


def test_the_validators_would_say_so(ball, usd, monkeypatch):
    monkeypatch.setattr(usdz, "SCENE", usdz.SCENE.replace("metersPerUnit = 1", ""))
    monkeypatch.setattr(usdz, "ALIGNMENT", 60)
    told = " ".join(findings(usd(ball)))
    assert "metersPerUnit" in told
    assert "ByteMisalignment" in told


@pytest.mark.parametrize(("name", "word"), [("", "asset"), ("椅子", "__"), ("2 chairs", "_2_chairs"), ("a-b", "a_b")])
def test_names_become_words(name, word):
    assert usdz.identifier(name) == word


def test_the_command_writes_it_with_its_levels(ball, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(ball, tmp_path / "it.glb")
    assert main(["export", "it.glb", "--preset", "unity", "--texture-size", "64", "--output", "a.usdz"]) == 0
    told = json.loads((tmp_path / "a_report.json").read_text())
    assert [*told["files"]] == ["a.usdz", "a_lod1.usdz", "a_lod2.usdz", "a_lod3.usdz"]
    assert told["check"] == []
    for name in told["files"]:
        assert zipfile.is_zipfile(tmp_path / name)
