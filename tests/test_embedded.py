"""The embedded prior: its inputs by hand, its network against diffusers' own, its files against damage.

Most tests use a tiny prior with random weights, written in the layout of a real one; a few use the one that ships.
"""

import dataclasses
import json
import math
import runpy
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from threed.distill import embedded
from threed.distill.embedded import Embedded, JointAttention, camera_features
from threed.distill.folder import SHIPPED, deflated, inflated, restore, verify
from threed.distill.prior import Pictures, guide
from threed.renderers.camera import Cameras, orbit

COMPRESS = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "compress_prior.py"))
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def few_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, 2))
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """An uncompressed prior of 16-pixel pictures, saved by diffusers and transformers themselves."""
    from diffusers import UNet2DConditionModel
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = UNet2DConditionModel.load_config(SHIPPED / "unet") | {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "projection_class_embeddings_input_dim": 64,
        "sample_size": 4,
    }
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    text = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(text, add_pooling_layer=False).save_pretrained(folder / "text_encoder")
    shutil.copytree(SHIPPED / "tokenizer", folder / "tokenizer")
    conventions = json.loads((SHIPPED / "prior.json").read_text()) | {"image_size": 16}
    del conventions["compression"]
    (folder / "prior.json").write_text(json.dumps(conventions))
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    """In float32, so that what is equal on paper is equal to rounding."""
    return Embedded.load(tiny_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def shipped():
    return Embedded.load()


@pytest.fixture
def copy(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder, tmp_path / "prior"))


def pictures(count=2, kinds=("albedo", "normal")):
    return Pictures(orbit(count), kinds, torch.tensor([0.2, 0.4, 0.9]))


def noised(prior, count, seed=0):
    shape = (count, 3, prior.image_size, prior.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)), torch.full((count,), 0.6)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


# What the network is told


def test_camera_features_by_hand():
    """The vector of the contract, written out number by number for two cameras and two kinds."""
    angles = [(0.7, -0.2, 3.0), (2.5, 0.4, 3.2)]  # azimuth, elevation, distance
    columns = (torch.tensor(column) for column in zip(*angles, strict=True))
    cameras = Cameras(*columns, torch.full((2,), math.radians(40)))
    found = camera_features(
        Pictures(cameras, ("normal", "albedo"), torch.tensor([1.0, 0.5, 0.0])), ("albedo", "shaded", "normal")
    )

    def expected(azimuth, elevation, distance, kind):
        harmonics = [math.sin(k * azimuth) for k in (1, 2, 3, 4)] + [math.cos(k * azimuth) for k in (1, 2, 3, 4)]
        tilt = [math.sin(elevation), math.cos(elevation), math.sin(2 * elevation), math.cos(2 * elevation)]
        return [1, *harmonics, *tilt, *[0] * 11, *kind, 3 * (distance - 3.1), 1, 0, -1, 1]

    rows = [expected(*angles[c], kind) for kind in ((0, 0, 1), (1, 0, 0)) for c in (0, 1)]
    torch.testing.assert_close(found, torch.tensor(rows, dtype=torch.float32), rtol=1e-6, atol=1e-6)


def test_conditions_hold_the_text_and_its_mean(tiny):
    conditions = tiny.conditions("  A Wooden BARREL ", "", pictures())
    states = tiny.reader(["a wooden barrel"]).tokens[0]
    context, labels = conditions.positive.context, conditions.positive.labels
    torch.testing.assert_close(context, states.expand(4, -1, -1))
    torch.testing.assert_close(labels[:, 32:], states[:5].mean(dim=0).expand(4, -1))  # [CLS] a wooden barrel [SEP]
    assert torch.equal(labels[:, :32], conditions.null.labels[:, :32])
    assert conditions.negative is None


def test_every_picture_may_have_a_prompt_of_its_own(tiny):
    prompts = ["a car", "a wooden barrel", "a car", "a tree"]
    told = tiny.conditions(prompts, "", pictures()).positive
    for row, prompt in enumerate(prompts):
        alone = tiny.conditions(prompt, "", pictures()).positive
        assert torch.equal(told.context[row], alone.context[row])
        assert torch.equal(told.labels[row], alone.labels[row])
    z_t, t = noised(tiny, 4)
    one, same = (tiny.denoise(z_t, t, tiny.conditions(p, "", pictures()).positive) for p in ("a car", ["a car"] * 4))
    assert torch.equal(one.clean, same.clean)
    with pytest.raises(ValueError, match="there are 3 prompts for 4 pictures; give one, or one for each"):
        tiny.conditions(prompts[:3], "", pictures())


def test_negative_prompt_is_a_condition_of_its_own(tiny):
    conditions = tiny.conditions("a car", "a wooden barrel", pictures())
    assert torch.equal(conditions.negative.context, tiny.conditions("a wooden barrel", "", pictures()).positive.context)
    assert torch.equal(conditions.null.context, tiny.conditions("", "", pictures()).positive.context)


def test_every_prompt_is_encoded_once(tiny_folder):
    prior = Embedded.load(tiny_folder)
    for _ in range(3):
        prior.conditions("a car", "a tree", pictures())
    first = prior.texts["a car"].tokens
    assert set(prior.texts) == {"a car", "", "a tree"}
    assert prior.conditions("a car", "", pictures()).positive.context.data_ptr() == first.data_ptr()


def test_encode_is_differentiable_and_keeps_channels(tiny):
    image = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    latents = tiny.encode(image)
    torch.testing.assert_close(latents[1, 2], 2 * image[1, :, :, 2] - 1)
    latents.sum().backward()
    assert torch.equal(image.grad, torch.full_like(image, 2))


# The network


def test_single_views_are_what_diffusers_computes(tiny, tiny_folder):
    """Against the plain UNet, its own attention processor, and an input built by hand."""
    from diffusers import UNet2DConditionModel

    plain = UNet2DConditionModel.from_pretrained(tiny_folder / "unet", low_cpu_mem_usage=False).eval()
    condition = dataclasses.replace(tiny.conditions("a car", "", pictures()).positive, joint=1)
    z_t, t = noised(tiny, 4)
    with torch.no_grad():
        inputs = torch.cat([pixel_unshuffle(z_t, 4), torch.zeros(4, 64, 4, 4)], dim=1)
        output = plain(inputs, 600.0, condition.context, class_labels=condition.labels).sample
    found = tiny.denoise(z_t, t, condition)
    torch.testing.assert_close(found.clean, pixel_shuffle(output, 4), rtol=1e-4, atol=1e-5)
    alpha, sigma = math.cos(0.608 / 1.008 * math.pi / 2), math.sin(0.608 / 1.008 * math.pi / 2)
    torch.testing.assert_close(alpha * found.clean + sigma * found.noise, z_t, rtol=1e-5, atol=1e-5)


def test_joint_attention_is_softmax_over_all_tokens_of_the_group():
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    attention = Attention(query_dim=8, heads=2, dim_head=4, processor=JointAttention()).double()
    x = torch.randn(6, 5, 8, dtype=torch.float64)
    found = attention(x, joint=3)
    for group in range(2):
        tokens = x[3 * group : 3 * group + 3].reshape(15, 8)
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            query, key, value = (
                tokens @ layer.weight[h].T for layer in (attention.to_q, attention.to_k, attention.to_v)
            )
            heads.append((query @ key.T / 2).softmax(dim=-1) @ value)
        mixed = torch.cat(heads, dim=-1) @ attention.to_out[0].weight.T + attention.to_out[0].bias
        torch.testing.assert_close(found[3 * group : 3 * group + 3].reshape(15, 8), mixed)


def test_pictures_of_a_group_see_one_another(tiny):
    condition = tiny.conditions("a car", "", pictures()).positive
    assert condition.joint == 4
    z_t, t = noised(tiny, 4)
    other = z_t.clone()
    other[2] += 0.5
    alone = dataclasses.replace(condition, joint=1)
    before, after = (tiny.denoise(z, t, condition).clean[1] for z in (z_t, other))
    assert relative(after, before) > 1e-4
    before, after = (tiny.denoise(z, t, alone).clean[1] for z in (z_t, other))
    assert relative(after, before) < 1e-5


def test_groups_of_one_equal_separate_calls(tiny):
    condition = dataclasses.replace(tiny.conditions("a car", "", pictures()).positive, joint=1)
    z_t, t = noised(tiny, 4)
    together = tiny.denoise(z_t, t, condition).clean
    for p in range(4):
        one = dataclasses.replace(condition, context=condition.context[p : p + 1], labels=condition.labels[p : p + 1])
        torch.testing.assert_close(
            together[p : p + 1], tiny.denoise(z_t[p : p + 1], t[:1], one).clean, rtol=1e-4, atol=1e-5
        )


def test_one_joint_view_is_an_ordinary_view(tiny):
    condition = tiny.conditions("a car", "", pictures(1, ("albedo",))).positive
    z_t, t = noised(tiny, 1)
    assert condition.joint == 1
    assert relative(tiny.denoise(z_t, t, condition).clean, z_t) > 0


def test_predictions_carry_no_gradient(tiny):
    z_t, t = noised(tiny, 4)
    assert not tiny.denoise(z_t.requires_grad_(), t, tiny.conditions("", "", pictures()).null).clean.requires_grad


# The prior that ships


def test_same_seed_same_bytes(shipped):
    def run(prior):
        return guide(prior, *noised(prior, 4, seed=7), prior.conditions("a wooden barrel", "", pictures()), 4.0, 0.7)

    first, again, afresh = run(shipped), run(shipped), run(Embedded.load())
    assert torch.equal(first.clean, again.clean)
    assert torch.equal(first.clean, afresh.clean)
    assert torch.equal(first.noise, afresh.noise)


def test_the_shipped_prior_paints_what_it_is_told(shipped):
    """Out of noise alone: a red barrel redder than a blue one, the background in the colour it was told."""
    told = pictures(4, ("albedo",))
    z_t, t = noised(shipped, 4)[0], torch.full((4,), 0.97)
    conditions = {color: shipped.conditions(f"a {color} barrel", "", told) for color in ("red", "blue")}
    red, blue = (guide(shipped, z_t, t, conditions[color], 3.0).clean for color in ("red", "blue"))
    assert (red - blue)[:, 0].mean() - (red - blue)[:, 2].mean() > 0.05
    # Guidance would push the background too; the prediction alone tells how well it knows it.
    corner = shipped.denoise(z_t, t, conditions["red"].positive).clean[:, :, :4, :4].mean(dim=(0, 2, 3))
    torch.testing.assert_close(corner, 2 * told.background - 1, rtol=0, atol=0.15)


def test_shipped_folder_is_small_complete_and_licensed():
    files = {p.relative_to(SHIPPED).as_posix(): p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()}
    listed = {line.split(maxsplit=1)[1] for line in (SHIPPED / "SHA256SUMS").read_text().splitlines()}
    assert sum(files.values()) <= 45e6
    assert listed | {"SHA256SUMS"} == set(files)
    weights = {UNET, "text_encoder/model.safetensors", "start/model.safetensors"}
    assert {"LICENSE", "NOTICE", "prior.json"} | weights <= listed
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_loading_needs_no_network_and_says_nothing(tiny_folder, monkeypatch, capfd):
    def refuse(*_):
        raise AssertionError("the prior reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    Embedded.load()
    Embedded.load(tiny_folder)
    assert capfd.readouterr() == ("", "")


def test_float32_where_bfloat16_is_not_native(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert embedded.compute_dtype(torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert embedded.compute_dtype(torch.device("cpu")) == torch.bfloat16


# Compression


def test_compression_errs_by_at_most_half_a_step():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 32, 3, 3, generator=generator) * torch.logspace(-6, 3, 64)[:, None, None, None]
    weight[5] = 0
    small = torch.randn(64, generator=generator).half()
    stored = COMPRESS["compress"]({"conv.weight": weight, "norm.weight": small})
    found = restore(stored)
    assert stored["conv.weight.deflated"].dtype == torch.uint8
    assert set(found) == {"conv.weight", "norm.weight"}
    assert torch.equal(found["norm.weight"], small.float())
    step = weight.flatten(1).abs().amax(dim=1)[:, None] / 127
    error = (found["conv.weight"] - weight).flatten(1).abs()
    assert (error <= step * 0.5001).all()
    assert torch.equal(found["conv.weight"][5], weight[5])


def test_bytes_are_deflated_without_loss():
    """In fewer bytes than there are, where they are not evenly spread; and no stream is read beyond its shape."""
    value = (20 * torch.randn(64, 3, 5, generator=torch.Generator().manual_seed(0))).clamp(-127, 127).to(torch.int8)
    stored = deflated("w", value)
    assert torch.equal(inflated(stored, "w"), value)
    assert stored["w.deflated"].numel() < value.numel()
    zeros = deflated("w", torch.zeros(1 << 24, dtype=torch.int8))
    for shape in ([64, 3, 4], [64, 3, 6], [-64, -3, 5], [0]):
        with pytest.raises(ValueError, match="inflate"):
            inflated(stored | {"w.shape": torch.tensor(shape)}, "w")
        with pytest.raises(ValueError, match="inflate"):
            inflated(zeros | {"w.shape": torch.tensor(shape)}, "w")
    with pytest.raises(ValueError, match="cannot be inflated"):
        inflated(stored | {"w.deflated": torch.zeros(50, dtype=torch.uint8)}, "w")


def test_compressing_again_changes_nothing():
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    once = restore(COMPRESS["compress"]({"w": weight}))
    torch.testing.assert_close(restore(COMPRESS["compress"](once)), once, rtol=1e-6, atol=0)


def test_compressed_folder_predicts_nearly_the_same(tiny, tiny_folder, tmp_path):
    COMPRESS["write"](tiny_folder, tmp_path / "small")
    verify(tmp_path / "small")
    assert (tmp_path / "small" / UNET).stat().st_size < 0.6 * (tiny_folder / UNET).stat().st_size
    compressed = Embedded.load(tmp_path / "small", dtype=torch.float32)
    z_t, t = noised(tiny, 4)
    one, two = (
        prior.denoise(z_t, t, prior.conditions("a car", "", pictures()).positive).clean for prior in (tiny, compressed)
    )
    assert 0 < relative(two, one) < 0.02


# Refusals


def test_too_long_a_prompt_is_refused(tiny):
    with pytest.raises(ValueError, match="takes 22 tokens; shorten it to at most 16"):
        tiny.conditions("barrel " * 20, "", pictures())


def test_another_field_of_view_is_refused(tiny):
    cameras = orbit(2, fov_y=math.radians(50))
    with pytest.raises(ValueError, match="fov_y is 50 degrees; use 40, as in training"):
        tiny.conditions("a car", "", Pictures(cameras, ("albedo",), torch.ones(3)))
    tiny.conditions("a car", "", Pictures(orbit(2, fov_y=math.radians(40.9)), ("albedo",), torch.ones(3)))


def test_an_unknown_kind_is_refused(tiny):
    with pytest.raises(ValueError, match="unknown kind 'depth'; this prior knows albedo, shaded, normal"):
        tiny.conditions("a car", "", pictures(kinds=("albedo", "depth")))


def test_pictures_of_another_size_are_refused(tiny):
    with pytest.raises(ValueError, match="pictures are 32 x 24; render 16 x 16 pixels"):
        tiny.encode(torch.zeros(1, 24, 32, 3))


def test_an_altered_file_is_named(copy, tmp_path):
    small = tmp_path / "small"
    COMPRESS["write"](copy, small)
    content = bytearray((small / UNET).read_bytes())
    content[-1] ^= 1
    (small / UNET).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{UNET}: its checksum differs from SHA256SUMS; copy the prior's folder again"
    ):
        Embedded.load(small)
    (small / UNET).unlink()
    with pytest.raises(ValueError, match=rf"{UNET}.*No such file.*copy the prior's folder again"):
        Embedded.load(small)


def test_a_damaged_installation_says_reinstall(copy, monkeypatch):
    monkeypatch.setattr("threed.distill.folder.SHIPPED", copy)
    with pytest.raises(ValueError, match=r"SHA256SUMS: .*; reinstall the package"):
        Embedded.load(copy)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.*copy the prior's folder again"):
        Embedded.load(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["prior.json", UNET, "text_encoder/model.safetensors", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_missing_and_truncated_files_are_refused(copy, file, damage):
    path = copy / file
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"cannot use {copy}.*{file.split('/')[0]}.*; copy the prior's folder again"):
        Embedded.load(copy)


def test_incomplete_weights_are_refused(copy):
    weights = load_file(copy / UNET)
    del weights["conv_in.bias"]
    save_file(weights, copy / UNET, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights lack 'conv_in\.bias'"):
        Embedded.load(copy)


def test_incomplete_compressed_weights_are_refused(copy, tmp_path):
    COMPRESS["write"](copy, tmp_path / "small")
    weights = load_file(tmp_path / "small" / UNET)
    del weights["conv_in.bias"]
    save_file(weights, tmp_path / "small" / UNET, metadata={"format": "pt"})
    (tmp_path / "small" / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=r"conv_in\.bias"):
        Embedded.load(tmp_path / "small")


def test_unknown_conventions_are_refused(copy):
    conventions = json.loads((copy / "prior.json").read_text())
    (copy / "prior.json").write_text(json.dumps(conventions | {"camera_features": 16}))
    with pytest.raises(ValueError, match="camera_features is 16, this program knows 32"):
        Embedded.load(copy)
    (copy / "prior.json").write_text(json.dumps({k: v for k, v in conventions.items() if k != "patch"}))
    with pytest.raises(ValueError, match=r"prior\.json: 'patch'"):
        Embedded.load(copy)
