"""Light and materials: closed forms, brute-force integrals over all directions, and gradients."""

import math

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor
from torch.nn import functional

from threed.renderers import brdf, surface
from threed.renderers.camera import orbit
from threed.renderers.colour import linear_from_srgb, srgb_from_linear
from threed.renderers.environment import ROUGHNESSES, Environment, directions, solid_angles, uv_from_direction
from threed.renderers.light import (
    Harmonics,
    Headlight,
    Light,
    Points,
    Surroundings,
    display,
    furnace,
    harmonics,
    lobe_bands,
    radiance,
)
from threed.renderers.mesh import Mesh

WIDE = torch.float64


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


def random_directions(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, 3, generator=generator, dtype=WIDE), dim=-1)


def every_direction(axis, widest=math.pi, polar=160, around=96):
    """Directions and steradians for an integral over the sphere or a cap, dense around the axis: [N 3], [N 1]."""
    node, weight = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(polar))
    x = (node + 1) / 2
    angle = (widest * x**2)[:, None]
    turn = (torch.arange(around, dtype=WIDE) + 0.5) * (2 * math.pi / around)
    side = functional.normalize(torch.linalg.cross(axis, axis.new_tensor([0.36, 0.48, 0.8])), dim=0)
    ring = turn.cos()[:, None] * side + turn.sin()[:, None] * torch.linalg.cross(axis, side)
    found = angle.cos()[..., None] * axis + angle.sin()[..., None] * ring
    steradians = (weight * widest * x)[:, None] * angle.sin() * (2 * math.pi / around)
    return found.reshape(-1, 3), steradians.expand(-1, around).reshape(-1, 1)


def view_at(cosine):
    return torch.tensor([math.sqrt(1 - cosine**2), 0.0, cosine], dtype=WIDE)


UP = torch.tensor([0.0, 0.0, 1.0], dtype=WIDE)  # the normal of what is integrated over


def brute_radiance(cosine, roughness, metallic, sky, color=1.0):
    """The rendering equation: the BRDF times what comes from everywhere times the cosine."""
    view = view_at(cosine)
    light, steradians = every_direction(2 * cosine * UP - view)
    scattering = brdf.evaluate(
        UP, view, light, view.new_full((3,), color), view.new_tensor([metallic]), view.new_tensor([roughness])
    )
    return (scattering * sky(light) * light[:, 2:].clamp(min=0) * steradians).sum(0)


def points_at(cosine, roughness, metallic, color=1.0, count=1):
    normal = UP.expand(count, 3)
    one = normal.new_ones(count, 1)
    return Points(normal, view_at(cosine).expand(count, 3), one.expand(-1, 3) * color, one * roughness, one * metallic)


def random_points(count, seed=0, dtype=WIDE):
    normal = random_directions(count, seed)
    view = functional.normalize(normal + 0.9 * random_directions(count, seed + 1), dim=-1)
    colour, roughness, metallic = random(count, 5, seed=seed + 2).split([3, 1, 1], dim=-1)
    return Points(*(each.to(dtype) for each in (normal, view, colour, roughness, metallic)))


def sunny(direction):
    """A smooth radiance, brighter around one direction, of no low degree."""
    x, y, z = direction.unbind(-1)
    sun = (4 * (0.6 * x + 0.64 * y + 0.48 * z - 1)).exp()
    return torch.stack([1 + 0.5 * y + 3 * sun, 0.8 + 0.3 * (3 * x).sin() + 0.2 * y * z, 0.5 + 0.5 * sun], dim=-1)


def environment(rows, sky=sunny, dtype=WIDE):
    return Environment.from_texels(sky(directions(rows, 2 * rows)).to(dtype))


def white(direction):
    return torch.ones_like(direction)


# Colour ---------------------------------------------------------------------------------------------------------------


def test_srgb_is_the_standard_and_goes_both_ways():
    grey = torch.tensor([0.0, 10 / 255, 0.5, 1.0], dtype=WIDE)
    expected = torch.tensor([0.0, 10 / 255 / 12.92, (0.555 / 1.055) ** 2.4, 1.0], dtype=WIDE)
    torch.testing.assert_close(linear_from_srgb(grey), expected)
    ramp = torch.linspace(-0.2, 1.5, 1001, dtype=WIDE)
    torch.testing.assert_close(srgb_from_linear(linear_from_srgb(ramp)), ramp, atol=1e-6, rtol=0)
    torch.testing.assert_close(linear_from_srgb(srgb_from_linear(ramp)), ramp, atol=1e-6, rtol=0)


@pytest.mark.parametrize("convert", [linear_from_srgb, srgb_from_linear])
def test_srgb_has_finite_gradients_everywhere(convert):
    value = torch.tensor([-1.0, 0.0, 1e-3, 0.2, 1.0, 4.0], dtype=WIDE, requires_grad=True)
    assert torch.autograd.gradcheck(convert, value)


# The BRDF -------------------------------------------------------------------------------------------------------------


def test_the_brdf_at_normal_incidence_is_its_closed_form():
    """At alpha 1 the density is 1 / pi and the visibility 1/2 for view and light alike."""
    one = UP.new_ones(1)
    colour = UP.new_tensor([0.2, 0.5, 1.0])
    metal = brdf.evaluate(UP, UP, UP, colour, one, one)
    torch.testing.assert_close(metal, colour / (4 * math.pi))
    plastic = brdf.evaluate(UP, UP, UP, colour, 0 * one, one)
    torch.testing.assert_close(plastic, (0.96 * colour + 0.04 / 4) / math.pi)
    tilted = brdf.evaluate(UP, view_at(0.6), -view_at(0.6) * UP.new_tensor([1, 1, -1]), colour, one, one / 2)
    density, shadow = 16 / math.pi, (0.6 + math.sqrt(1 / 16 + 15 / 16 * 0.36)) ** -2
    torch.testing.assert_close(tilted, (colour + (1 - colour) * 0.4**5) * density * shadow)


def test_the_brdf_is_reciprocal_and_dark_below_the_surface():
    points, light = random_points(500), random_directions(500, seed=7)
    forth = brdf.evaluate(points.normal, points.view, light, points.base_color, points.metallic, points.roughness)
    back = brdf.evaluate(points.normal, light, points.view, points.base_color, points.metallic, points.roughness)
    torch.testing.assert_close(forth, back)
    above = ((points.normal * light).sum(-1) > 0) & ((points.normal * points.view).sum(-1) > 0)
    assert 100 < above.sum() < 400
    assert forth[above].min() > 0
    assert not forth[~above].any()


@pytest.mark.parametrize("roughness", [0.2, 0.6, 1.0])
def test_facets_cover_their_surface_once(roughness):
    """The density of half vectors times the cosine integrates to 1."""
    half, steradians = every_direction(UP)
    sine_squared = half[:, :2].square().sum(-1, keepdim=True)
    density = brdf.distribution(sine_squared, UP.new_tensor(roughness**2))
    assert (density * half[:, 2:].clamp(min=0) * steradians).sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("roughness", [0.2, 0.35, 0.6, 1.0])
@pytest.mark.parametrize("cosine", [0.05, 0.3, 0.7, 1.0])
def test_the_split_sum_table_is_the_integral_of_the_brdf(cosine, roughness):
    """`scale` and `bias` are the albedos of two metals: a white one mirrors their sum, a half-black one tells them."""
    scale, bias = brdf.directional_albedo(UP.new_tensor([cosine]), UP.new_tensor([roughness]))
    metal = brute_radiance(cosine, roughness, 1.0, white)[0].item()
    grey = brute_radiance(cosine, roughness, 1.0, white, color=0.5)[0].item()
    assert metal <= 1
    assert (scale + bias).item() == pytest.approx(metal, abs=2e-3)
    assert (scale / 2 + bias).item() == pytest.approx(grey, abs=2e-3)


def test_a_mirror_s_albedo_is_fresnel_s():
    cosine = torch.linspace(0.05, 1, 20, dtype=WIDE)[:, None]
    scale, bias = brdf.directional_albedo(cosine, torch.zeros_like(cosine))
    torch.testing.assert_close(scale + bias, torch.ones_like(cosine), atol=1e-9, rtol=0)
    torch.testing.assert_close(bias, brdf.schlick(cosine), atol=1e-3, rtol=0)


# The furnace ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["harmonics", "environment"])
def even_light(request):
    return furnace(torch.ones(3, dtype=WIDE)) if request.param == "harmonics" else environment(8, white)


@pytest.mark.parametrize("roughness", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("cosine", [0.05, 0.5, 1.0])
def test_white_things_vanish_in_a_white_furnace(even_light, cosine, roughness):
    plastic = radiance(points_at(cosine, roughness, metallic=0.0), even_light)
    torch.testing.assert_close(plastic, torch.ones_like(plastic), atol=1e-6, rtol=0)
    metal = radiance(points_at(cosine, roughness, metallic=1.0), even_light)
    scale, bias = brdf.directional_albedo(UP.new_tensor([[cosine]]), UP.new_tensor([[roughness]]))
    torch.testing.assert_close(metal, (scale + bias).expand(-1, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(even_light.irradiance(UP[None]), torch.full_like(metal, math.pi), atol=1e-6, rtol=0)


def test_no_material_sends_back_more_light_than_arrives(even_light):
    found = radiance(random_points(2000), even_light)
    assert found.max() <= 1 + 1e-6
    assert found.min() >= 0


def test_gltf_s_dielectric_gains_light_at_grazing_angles_and_the_split_sum_does_not():
    """The reason why `radiance` dims the diffuse part by the albedo of the mirror above it."""
    assert 1.4 < brute_radiance(0.05, 0.2, 0.0, white).max() < 2
    assert brute_radiance(1.0, 0.2, 0.0, white).max() < 1
    assert radiance(points_at(0.05, 0.2, 0.0), furnace(UP.new_ones(3))).max() <= 1 + 1e-6


# Harmonics ------------------------------------------------------------------------------------------------------------


def banded(direction):
    """A positive radiance of orders 0 to 2."""
    return harmonics(direction) @ coefficients()


def coefficients():
    return torch.cat([torch.full((1, 3), 6.0, dtype=WIDE), random(8, 3) - 0.5])


def test_harmonics_are_orthonormal_and_texels_add_up_to_the_sphere():
    basis, steradians = harmonics(directions(9, 12)), solid_angles(9, 12)
    assert steradians.min() > 0
    assert steradians.sum().item() * 12 == pytest.approx(4 * math.pi)
    product = torch.einsum("hwa,hwb,hw->ab", basis, basis, steradians.expand(9, 12))
    torch.testing.assert_close(product, torch.eye(9, dtype=WIDE))


def test_the_irradiance_of_a_banded_environment_is_exact():
    found = environment(16, banded)
    torch.testing.assert_close(found.harmonics.coefficients, coefficients(), atol=1e-10, rtol=0)
    for normal in random_directions(6):
        light, steradians = every_direction(normal, math.pi / 2)
        expected = (banded(light) * (light @ normal)[:, None] * steradians).sum(0)
        torch.testing.assert_close(found.irradiance(normal), expected, atol=1e-8, rtol=0)
        torch.testing.assert_close(Harmonics(coefficients()).irradiance(normal), found.irradiance(normal))


def test_the_roughest_lobe_is_lambert_s_and_the_smoothest_a_mirror():
    bands = lobe_bands()
    torch.testing.assert_close(bands[0], torch.ones_like(bands[0]))
    torch.testing.assert_close(bands[-1], bands.new_tensor([1, 2 / 3, 1 / 4]))
    assert (bands.diff(dim=0)[:, 1:] < 0).all()
    light, normal = Harmonics(coefficients()), random_directions(20)
    rough = light.reflected(normal, torch.ones(20, 1, dtype=WIDE))
    torch.testing.assert_close(rough, light.irradiance(normal) / math.pi)
    smooth = light.reflected(normal, torch.zeros(20, 1, dtype=WIDE))
    torch.testing.assert_close(smooth, banded(normal))


# Environments ---------------------------------------------------------------------------------------------------------


def test_a_mirror_shows_the_environment():
    texels = random(8, 16, 3)
    seen = Environment.from_texels(texels).reflected(directions(8, 16), torch.zeros(8, 16, 1, dtype=WIDE))
    torch.testing.assert_close(seen, texels, atol=1e-9, rtol=0)
    axes = uv_from_direction(torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 0, -1.0], [0, 1.0, 0], [0, -1.0, 0]]))
    expected = torch.tensor([[0.5, 0.5], [0.75, 0.5], [0.25, 0.5], [0.5, 0.0], [0.5, 1.0]])
    torch.testing.assert_close(axes, expected, atol=1e-4, rtol=0)


def blurred(sky, direction, roughness):
    """Karis' integral by brute force, with normal and view at the mirrored direction."""
    light, steradians = every_direction(direction, math.pi / 2)
    cosine = (light @ direction)[:, None]
    weight = brdf.distribution((1 - cosine) / 2, cosine.new_tensor(roughness**2)) * cosine * steradians
    return (sky(light) * weight).sum(0) / weight.sum()


@pytest.mark.parametrize("roughness", ROUGHNESSES[2:])
def test_filtered_environments_approach_the_integral(roughness):
    seen = random_directions(24)
    expected = torch.stack([blurred(sunny, each, roughness) for each in seen])
    errors = [
        (environment(rows).reflected(seen, seen.new_full((24, 1), roughness)) - expected).abs().max().item()
        for rows in (8, 16, 32)
    ]
    assert errors[2] < 0.01
    assert errors[2] < errors[1] < errors[0]


def test_between_levels_roughness_is_interpolated_well():
    light, seen = environment(32), random_directions(12)
    for roughness in (0.19, 0.44, 0.81):
        expected = torch.stack([blurred(sunny, each, roughness) for each in seen])
        found = light.reflected(seen, seen.new_full((12, 1), roughness))
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_filtering_a_banded_environment_is_what_harmonics_say():
    """Two ways to one integral: a convolution of texels, and three numbers."""
    light, seen = environment(32, banded), random_directions(24)
    for roughness in ROUGHNESSES:
        rough = seen.new_full((24, 1), roughness)
        expected = Harmonics(coefficients()).reflected(seen, rough)
        torch.testing.assert_close(light.reflected(seen, rough), expected, atol=3e-3, rtol=0)


def test_environments_have_no_seam_and_no_hole_at_the_poles():
    texels, seen = random(8, 16, 3), random_directions(50)
    rough = random(50, 1, seed=3)
    whole = Environment.from_texels(texels).reflected(seen, rough)
    quarter = Environment.from_texels(texels.roll(4, 1)).reflected(
        torch.stack([-seen[:, 2], seen[:, 1], seen[:, 0]], dim=-1), rough
    )
    torch.testing.assert_close(whole, quarter, atol=1e-6, rtol=0)
    over = torch.tensor([[1e-3, 1, 0], [-1e-3, 1, 0], [1e-3, -1, 0], [-1e-3, -1, 0]], dtype=WIDE)
    left, right = Environment.from_texels(texels).reflected(over, torch.zeros(4, 1, dtype=WIDE)).view(2, 2, 3).unbind(1)
    torch.testing.assert_close(left, right, atol=1e-2, rtol=0)


@pytest.mark.parametrize("size", [(4, 8), (129, 258), (16, 31), (16, 300)])
def test_environments_that_cannot_be_filtered_are_refused(size):
    with pytest.raises(ValueError, match=rf"{size[0]} rows and {size[1]} columns.*resize it to 64 rows and 128"):
        Environment.from_texels(torch.ones(*size, 3))


@pytest.mark.parametrize(("roughness", "within"), [(0.25, 0.03), (0.5, 0.1), (0.75, 0.1), (1.0, 0.005)])
def test_the_split_sum_is_near_the_rendering_equation(roughness, within):
    """White metal at three angles, under a light of strong contrast from all of eight sides."""
    texels = directions(32, 64)
    for side in ((a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)):
        turn = torch.tensor(side, dtype=WIDE)
        light = Environment.from_texels(sunny(texels * turn))
        for cosine in (0.1, 0.4, 0.8):
            expected = brute_radiance(cosine, roughness, 1.0, lambda direction: sunny(direction * turn))  # noqa: B023
            found = radiance(points_at(cosine, roughness, 1.0), light)[0]
            assert ((found - expected).abs() / expected).mean() < within


# Gradients ------------------------------------------------------------------------------------------------------------


def inputs(points) -> list[Tensor]:
    return [
        each.clone().requires_grad_()
        for each in (points.normal, points.base_color, points.roughness, points.metallic, points.view)
    ]


def test_the_brdf_s_gradients_are_those_of_finite_differences():
    points = random_points(6, seed=4)
    light = functional.normalize(points.normal + 0.5 * random_directions(6, seed=9), dim=-1)

    def evaluate(normal, colour, roughness, metallic, view):
        return brdf.evaluate(normal, view, light, colour, metallic, roughness)

    given = inputs(points)
    assert (evaluate(*given) > 0).all()
    assert torch.autograd.gradcheck(evaluate, given)


def test_gradients_reach_materials_normals_and_texels():
    grey = (0.2 + random(8, 8, 1, seed=5)).requires_grad_()

    def shade(grey, normal, colour, roughness, metallic, view):
        light = Environment.from_texels(grey * grey.new_tensor([0.5, 1.0, 2.0]))
        return radiance(Points(normal, view, colour, roughness, metallic), light)

    assert torch.autograd.gradcheck(shade, [grey, *inputs(random_points(5, seed=6))])


def test_gradients_reach_harmonics():
    def shade(sky, normal, colour, roughness, metallic, view):
        return radiance(Points(normal, view, colour, roughness, metallic), Harmonics(sky))

    assert torch.autograd.gradcheck(shade, [coefficients().requires_grad_(), *inputs(random_points(5, seed=6))])


@pytest.mark.parametrize("roughness", [0.0, 1.0])
def test_gradients_are_finite_where_directions_degenerate(roughness):
    """Both poles, seen head-on, all but head-on, from the side and from behind; black, and single precision."""
    normal = torch.tensor([[0.0, 1, 0], [0, -1, 0], [1e-20, 1, 0], [0, 1, 0], [0, 1, 0]], requires_grad=True)
    view = torch.tensor([[0.0, 1, 0], [0, -1, 0], [0, 1, 0], [1, 0, 0], [0, -1, 0]])
    material = [torch.zeros(5, 3), torch.full((5, 1), roughness), torch.full((5, 1), 0.5)]
    material = [each.requires_grad_() for each in material]
    texels = random(8, 16, 3).float().requires_grad_()
    points = Points(normal, view, *material)
    shown = Environment.from_texels(texels).shade(points).sum() + Harmonics(coefficients().float()).shade(points).sum()
    direct = brdf.evaluate(normal, view, normal, material[0], material[2], material[1]).sum()
    for gradient in torch.autograd.grad(shown + direct, [normal, *material, texels]):
        assert gradient.isfinite().all()


# Lights ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 7])
def test_every_light_shades_points_in_display_srgb(count):
    points = random_points(count, dtype=torch.float32)
    lights = [Headlight(torch.eye(3)), furnace(torch.full((3,), 4.0)), environment(8, dtype=torch.float32)]
    for light in lights:
        assert isinstance(light, Light)
        shown = light.shade(points)
        assert shown.shape == (count, 3)
        assert shown.dtype == torch.float32
        assert ((shown >= 0) & (shown <= 1)).all()
    for light in lights[1:]:
        assert isinstance(light, Surroundings)
        torch.testing.assert_close(display(points, light), srgb_from_linear(radiance(points, light)).clamp(0, 1))


def test_base_colours_are_display_srgb():
    """Plastic as grey as the display's middle, without its gloss, sends back 21 per cent and shows as the middle."""
    points = points_at(1.0, 1.0, metallic=0.0, color=0.5)
    scale, bias = brdf.directional_albedo(UP.new_tensor([[1.0]]), UP.new_tensor([[1.0]]))
    mirrored = 0.04 * scale + bias
    expected = (1 - mirrored) * 0.21404114 + mirrored
    torch.testing.assert_close(radiance(points, furnace(UP.new_ones(3))), expected.expand(-1, 3), atol=1e-8, rtol=0)
    half = furnace(UP.new_full((3,), 0.21404114))
    torch.testing.assert_close(
        half.shade(points_at(0.5, 0.5, 0.0)), torch.full((1, 3), 0.5, dtype=WIDE), atol=1e-6, rtol=0
    )


def test_the_headlight_is_the_one_of_surface_renders():
    sphere = trimesh.creation.icosphere(2)
    mesh = Mesh(torch.tensor(np.array(sphere.vertices)), torch.tensor(np.array(sphere.faces)))
    camera = orbit(3)[1:2]
    camera = type(camera)(*(each.double() for each in vars(camera).values()))
    render = surface.render(mesh, camera, 24, 24, supersample=1)
    covered = render.alpha[..., 0] == 1
    normal = render.normal[covered] @ camera.rotation[0].mT
    one = normal.new_ones(len(normal), 1)
    points = Points(
        normal, functional.normalize(camera.position - normal, dim=-1), one * render.albedo[covered], one, one
    )
    torch.testing.assert_close(Headlight(camera.rotation[0]).shade(points), render.rgb[covered])
