"""Views first: pictures of an object that a prior draws by itself, all around, for a scene to be fitted to.

SyncDreamer (Liu et al. 2023, arXiv 2309.03453), Zero123++ (Shi et al. 2023, arXiv 2310.15110), Wonder3D (Long et al.
2023, arXiv 2310.15008) and Instant3D (Li et al. 2023, arXiv 2311.06214) sample views together and then reconstruct.
As the last begins with a noised blob, drawing may begin over what the start looks like (SDEdit, arXiv 2108.01073).

Drawn pictures are display sRGB in [0, 1] before white, or whatever plain colour a prior has at their borders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from threed import checkpoint
from threed.cutout import cleaned
from threed.distill.prior import Pictures, Prior
from threed.distill.rig import Rig
from threed.distill.sample import FIRST, ddim
from threed.errors import Failure
from threed.hull import pixels_away, projected
from threed.pictures import png, sheet
from threed.recipe import Drawn
from threed.reference import Target, belief
from threed.renderers.camera import Cameras, joined
from threed.renderers.projection import Projection
from threed.renderers.volume import Render
from threed.run import Request, Run
from threed.solid import Solid, SolidConfig
from threed.tets import TetScene
from threed.train import seeded

Look = Callable[[Cameras, int], Render]  # of something, in so many pixels a side

WHITE = 1.0  # what is drawn before: the colour that this project's prior knows best
SLACK = 0.5  # pixels: how far beyond an outline something may be at first, as drawings are not exact
FAINT = 0.15  # how far, in display sRGB, the background of a drawing may be from plain


def views_of(
    how: Drawn, prior: Prior, request: Request, run: Run, start: Look | None, picture: Target | None
) -> list[Target]:
    """What a scene is to look like: drawn once, and kept in the run's folder. Raises Failure where nothing is drawn.

    `start` shows what may be drawn over; `picture` is what the views are beside, where there is one.
    """
    cameras = rigged(how, prior, picture)
    pictures = kept(run)
    if pictures is None:
        over = start(cameras, prior.image_size) if start and how.first < FIRST else None
        chance = torch.Generator(request.device).manual_seed(seeded(request.seed).initial_seed())
        pictures = draw(how, prior, (request.prompt, request.negative), cameras, over, chance)
        run.write("views.png", png(sheet(pictures, len(cameras))))
        checkpoint.save(run.path("views.safetensors"), {"pictures": pictures})
    return [target.to(request.device) for target in targets(pictures, cameras, how)]


def kept(run: Run) -> Float[Tensor, "P S S 3"] | None:
    """What was drawn before the run was interrupted; None where that is not there, or not whole."""
    path = run.path("views.safetensors")
    try:
        return checkpoint.load(path)["pictures"] if path.exists() else None
    except checkpoint.Torn as error:
        run.log.note(f"{error}; drawing the views again")
        return None


def rigged(how: Drawn, prior: Prior, picture: Target | None) -> Cameras:
    """From where the views are seen: around the picture's side, or the front, by the prior's own rig if it has one."""
    rig: Rig = getattr(prior, "rig", None) or how.rig
    seen = (picture.camera.azimuth, picture.camera.elevation) if picture else (0.0, 0.0)
    return rig.cameras(*map(float, seen))


@torch.no_grad()
def draw(
    how: Drawn,
    prior: Prior,
    words: tuple[str, str],  # prompt and negative
    cameras: Cameras,
    over: Render | None,  # what is drawn over, in as many pixels as the prior has
    generator: torch.Generator,  # where the prior is
) -> Float[Tensor, "P S S 3"]:
    """Pictures of every kind that is wanted and that the prior knows, kind-major, in the processor's memory.

    Before white, or before the grey that a prior says is its `background`.
    """
    device, size = generator.device, prior.image_size
    plain = torch.full((3,), getattr(prior, "background", WHITE))  # its own, where it has one
    told = Pictures(cameras, tuple(kind for kind in how.kinds if kind in prior.kinds), plain)
    begun = prior.encode((plain.expand(1, size, size, 3) if over is None else told.of(over)).to(device))
    told = replace(told, cameras=cameras.to(device), background=plain.to(device))
    latents = ddim(
        prior,
        prior.conditions(*words, told),
        (len(told), *begun.shape[1:]),
        how.steps,
        how.scale,
        how.rescale,
        generator,
        limit=1.0 if begun.shape[-1] == size else math.inf,  # what pixels have, and other latents do not
        over=None if over is None else begun,
        first=FIRST if over is None else how.first,
    )
    return prior.decode(latents).float().cpu().clamp(0, 1)


def targets(pictures: Float[Tensor, "P S S 3"], cameras: Cameras, how: Drawn) -> list[Target]:
    """What pictures by these cameras, kind-major, ask of a scene. Raises Failure where one of them shows nothing."""
    count = len(cameras)
    albedo, *others = pictures.split(count)
    behind = torch.stack([border(picture) for picture in pictures])
    alpha = covered(sum(each.square() for each in (pictures - behind).split(count)).sum(-1, keepdim=True).sqrt())
    if empty := [str(one + 1) for one in range(count) if not alpha[one].any()]:
        raise Failure(f"the prior drew nothing in view {', '.join(empty)} of {count}; try another --seed or --prompt")
    rgb = (albedo - (1 - alpha) * behind[:count]).clamp(min=0).minimum(alpha)
    weights = how.weights if len(how.weights) == count else (1.0,) * count
    found = [Target(cameras[k : k + 1], rgb[k], alpha[k], weight=weights[k]) for k in range(count)]
    if not others:
        return found
    normal = 2 * (others[0] - (1 - alpha) * behind[count:]) - alpha
    normal = functional.normalize(normal, dim=-1, eps=1e-4)
    return [replace(t, normal=n, belief=b) for t, n, b in zip(found, normal, belief(normal, cameras), strict=True)]


def border(picture: Float[Tensor, "S S 3"]) -> Float[Tensor, "1 1 3"]:
    """The colour around an object: the median of the outermost pixels."""
    ring = torch.cat([picture[[0, -1]].flatten(0, 1), picture[1:-1, [0, -1]].flatten(0, 1)])
    return ring.median(dim=0).values[None, None]


def covered(apart: Float[Tensor, "C S S 1"]) -> Float[Tensor, "C S S 1"]:
    """Alpha, by how far pictures of all kinds are from their background.

    A pixel on the outline that the object covers by a is a times as far as one beside it that is covered whole. Those
    that have no background around them are covered whole.
    """
    object_ = torch.stack([torch.from_numpy(cleaned(each[..., 0].numpy() > FAINT)) for each in apart])[..., None]
    on_outline = _most(-apart) > -FAINT
    alpha = torch.where(on_outline, apart / _most(apart).clamp(min=FAINT), 1.0)
    return alpha * object_


def _most(values: Float[Tensor, "C S S 1"]) -> Float[Tensor, "C S S 1"]:
    """Of each pixel and its eight neighbours."""
    return functional.max_pool2d(values.movedim(-1, 1), 3, stride=1, padding=1).movedim(1, -1)


@dataclass(frozen=True)
class Outlines:
    """Views as something to begin from: what lies within all of their outlines (Laurentini 1994, the visual hull)."""

    targets: Sequence[Target]  # of one size

    @staticmethod
    def of(picture: Target | None, drawn: Sequence[Target]) -> Outlines:
        """Of views, and of the picture beside which they were drawn."""
        beside = [picture.at(len(drawn[0].alpha))] if picture else []
        return Outlines([target.to("cpu") for target in (*beside, *drawn)])

    def level(self, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """Pixels beyond the outline that a point is farthest beyond, less SLACK; negative within all of them."""
        beyond = [outside(target, points) for target in self.targets]
        return torch.stack(beyond).amax(0) - SLACK

    def solid(self, config: SolidConfig, generator: torch.Generator) -> Solid:
        """In the colours of the views. Raises Failure where their outlines share nothing."""
        try:
            solid = Solid(config, TetScene.from_level(self.level, config.tets))
        except ValueError as error:
            raise Failure(
                f"the drawn views have nothing in common ({error}); try another --seed or --prompt"
            ) from error
        mesh, cameras = solid.surface(), joined([target.camera for target in self.targets])
        rgb, alpha = (torch.stack([getattr(target, name) for target in self.targets]) for name in ("rgb", "alpha"))
        points, normals = mesh.vertices.detach(), mesh.vertex_normals.detach()
        albedo, believed = Projection.of(mesh, cameras, rgb, alpha)(points, normals)
        usual = (believed * albedo).sum(0) / believed.sum(0).clamp(min=1e-6)  # where no view looks
        solid.paint.teach(points, normals, torch.lerp(usual, albedo, believed), config.tets.cell, generator)
        return solid


def outside(target: Target, points: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
    """How many pixels beyond the outline points are seen, negative within it."""
    where = projected(points, target.camera)
    away = pixels_away(target.alpha)[None, None]
    found = functional.grid_sample(away, where[None, None], padding_mode="border", align_corners=False)
    return found.flatten() + (where.abs() - 1).clamp(min=0).sum(-1) * len(target.alpha) / 2
