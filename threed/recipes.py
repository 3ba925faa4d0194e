"""Every default of the project, as data: the command line, the documentation and the tests read recipes here."""

from __future__ import annotations

from dataclasses import replace

from threed.distill.anneal import Anneal
from threed.distill.hifa import HiFA, root
from threed.distill.nfsd import NFSD
from threed.distill.personal import DreamBooth, Inversion, Learns
from threed.distill.rig import Rig
from threed.distill.sds import SDS
from threed.distill.sjc import SJC
from threed.distill.vsd import BSD, VSD
from threed.nerf import NeRFConfig
from threed.paint import PaintConfig, PaintedConfig
from threed.recipe import FAULTS, Drawn, Recipe, Reference, Stage, Terms
from threed.renderers.ops import HashGrid
from threed.sdf import SDFConfig
from threed.solid import SolidConfig
from threed.tets import TetConfig
from threed.views import Views

# What the embedded prior learns of a picture where it is asked to: numbers for two cores.
LEARNS = Learns(
    Inversion(steps=100, rate=0.02, batch=2, vectors=1),
    DreamBooth(steps=60, rate=1e-3, batch=1, drawn=2, drawn_steps=10, drawn_scale=1.0),
    framing=(0.94, 1.06),
)


def falling(scale: float, first: float, last: float) -> SDS:
    """Score distillation of clean pictures, at this guidance scale and at timesteps that fall in a line."""
    return SDS(scale=scale, t_min=Anneal(first, last), t_max=Anneal(first, last), weight="clean")


COARSE = Stage(
    name="coarse",
    scene=NeRFConfig(),
    steps=150,
    views=Views(),
    kinds=("albedo", "normal"),
    # Poole et al., with Imagen: 15,000 steps, scale 100, t in [0.02, 0.98], w = sigma^2. A small prior that predicts
    # clean pictures wants little guidance, and a shape settles best from noisy to less noisy.
    loss=falling(2.0, 0.98, 0.3),
)

GENTLE = NeRFConfig(shape_rate=0.02, colour_rate=0.004)  # for a volume that is nearly what it will be
SMOOTH = Terms(normal_consistency=Anneal(100.0))

FINE = TetConfig(resolution=64)
EVEN = HashGrid(levels=3, coarsest=8, finest=32)  # too coarse to make speckles of what no picture shows
FITTED = Stage(
    name="fit",
    scene=SolidConfig(FINE, PaintConfig(EVEN, rate=0.0)),
    steps=40,
    views=Views(),
    kinds=("albedo",),
    loss=None,
    terms=Terms(normal_consistency=Anneal(30.0)),
    reference=Reference(rgb=Anneal(0.0)),  # the picture itself goes onto what has its outline
)

# Zero123++'s cameras. What the prior that ships draws from noise alone does not agree from view to view.
AROUND = Drawn(
    rig=Rig((30.0, 90.0, 150.0, 210.0, 270.0, 330.0), (20.0, -10.0) * 3, fov=40.0),
    kinds=("albedo", "normal"),
    steps=8,
    scale=2.0,
    first=0.6,
)
# It hardly heeds a picture, so what it draws stays near to what the start has made of that.
BESIDE = replace(AROUND, steps=6, first=0.4)
SEEN = SolidConfig(
    TetConfig(resolution=40, margin=0.25, distance_rate=0.1),
    PaintConfig(HashGrid(levels=4, coarsest=8, finest=48), rate=0.03),  # as fine as what is drawn
)
SETTLING = SolidConfig(
    replace(SEEN.tets, distance_rate=0.02, deformation_rate=0.02),
    replace(SEEN.paint, rate=0.01),
)


def reconstructed(dropped: float = 0.0) -> tuple[Stage, Stage]:
    """A surface, fitted to views that were drawn, without the `dropped` share of their normals; then in small steps.

    What the views do not agree on leaves spikes, which go by these.
    """
    stage = replace(
        FITTED,
        scene=SEEN,
        terms=Terms(normal_consistency=Anneal(100.0)),
        reference=Reference(normal=Anneal(1000.0), resolution=64, drawn=4, dropped=dropped),
    )
    firm = Terms(normal_consistency=Anneal(1000.0))
    return stage, replace(stage, name="settle", scene=SETTLING, steps=15, terms=firm)


HELD = replace(
    COARSE,
    name="volume",
    scene=GENTLE,
    reference=Reference(),
)

# The rate is that of colours: of the embedded prior, which knows pixels in [-1, 1], a latent is worth half as much.
LATENT = replace(COARSE, name="latent", scene=NeRFConfig(latents=True, colour_rate=0.005))
# At such low timesteps this prior's guidance turns brown into grey; without any, colours stay what they were.
REFINE = replace(COARSE, name="refine", scene=GENTLE, steps=20, loss=falling(1.0, 0.3, 0.2))

PLAIN = SolidConfig().tets
WIDE = replace(PLAIN, margin=0.5, distance_rate=0.1)  # for a ball that grows, to as much as a metre


def still(tets: TetConfig) -> TetConfig:
    """A surface that no longer moves."""
    return replace(tets, distance_rate=0.0, deformation_rate=0.0)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in [
        Recipe(
            name="instant",
            about="the start alone: a volume out of the text, in seconds",
            start="volume",
        ),
        Recipe(
            name="lrm",
            about="a volume out of a picture, in seconds (as Hong et al. 2023), and the picture onto it",
            wants="picture",
            start="volume",
        ),
        Recipe(
            name="carved",
            about="a volume carved to the picture's outline while it is drawn, its surface fitted to the picture",
            wants="picture",
            start="carved",
            stages=(FITTED,),
        ),
        Recipe(
            name="realfusion",
            about="that volume under score distillation, held to the picture (Melas-Kyriazi et al. 2023)",
            wants="picture",
            start="carved",
            # Melas-Kyriazi et al.: 5,000 steps, scale 100, t in [0.02, 0.98]; picture 5, mask 0.5, orientation 0.01,
            # entropy 1e-4; a word by textual inversion, of 3,000 steps, which the embedded prior gains nothing by.
            stages=(
                replace(
                    HELD,
                    steps=60,
                    loss=falling(2.0, 0.6, 0.1),
                    terms=Terms(opacity=Anneal(1.0), orientation=Anneal(10.0)),
                ),
            ),
        ),
        Recipe(
            name="zero123",
            about="few steps at timesteps that fall fast, held to the picture (Liu et al. 2023)",
            wants="picture",
            start="carved",
            # Liu et al., as threestudio has it: 600 steps, scale 3, t from [0.4, 0.85] to [0.2, 0.5] by the 200th,
            # score distillation 0.1, picture 500, mask 50, orientation 1, sparsity 0.1, opacity 0.1.
            stages=(
                replace(
                    HELD,
                    steps=40,
                    loss=SDS(
                        scale=3.0,
                        t_min=Anneal(0.4, 0.2, until=1 / 3),
                        t_max=Anneal(0.85, 0.5, until=1 / 3),
                        weight="clean",
                    ),
                    terms=Terms(sparsity=Anneal(1.0), opacity=Anneal(1.0), orientation=Anneal(10.0)),
                ),
            ),
        ),
        Recipe(
            name="magic123",
            about="coarse to fine, the picture seen every other step (Qian et al. 2023): a volume, then its surface",
            wants="picture",
            start="carved",
            # Qian et al.: 5,000 + 5,000 steps, scale 100 of a text prior and, 40 times as heavy, 5 of a view prior, t
            # in [0.2, 0.6]; picture 5, mask 0.5, depth 0.01, normals 0.5, seen every fourth step.
            stages=(
                replace(
                    HELD,
                    steps=40,
                    loss=SDS(scale=2.0, t_min=Anneal(0.2), t_max=Anneal(0.6), weight="clean"),
                    terms=Terms(opacity=Anneal(1.0), orientation=Anneal(10.0)),
                    reference=Reference(depth=Anneal(10.0), normal=Anneal(100.0), every=2),
                ),
                replace(
                    HELD,
                    name="fine",
                    scene=SolidConfig(FINE),
                    steps=30,
                    loss=falling(2.0, 0.3, 0.1),
                    terms=SMOOTH,
                ),
            ),
        ),
        Recipe(
            name="dreamcraft3d",
            about="a volume, its surface by normals, its texture by bootstrapped distillation (Sun et al. 2023)",
            wants="picture",
            start="carved",
            # Sun et al.: 5,000 steps each; geometry at t from [0.7, 0.85] to [0.2, 0.5], picture 1000, mask 100, depth
            # 0.05; texture by BSD at scale 2, t up to 0.5, then 0.2, the picture 1000 beside 0.01 of it.
            stages=(
                replace(
                    HELD,
                    steps=40,
                    loss=SDS(scale=2.0, t_min=Anneal(0.5, 0.2), t_max=Anneal(0.85, 0.5), weight="clean"),
                    terms=Terms(orientation=Anneal(10.0)),
                    reference=Reference(depth=Anneal(10.0)),
                ),
                replace(
                    HELD,
                    name="geometry",
                    scene=SolidConfig(FINE),
                    steps=30,
                    kinds=("normal",),
                    loss=falling(2.0, 0.3, 0.1),
                    terms=SMOOTH,
                    reference=Reference(rgb=Anneal(0.0)),
                ),
                replace(
                    HELD,
                    name="texture",
                    scene=SolidConfig(still(FINE), PaintConfig(rate=0.03)),
                    steps=30,
                    kinds=("albedo",),
                    loss=BSD(scale=2.0, rate=2e-3, t_min=Anneal(0.3, 0.1), t_max=Anneal(0.5, 0.2), weight="clean"),
                ),
            ),
        ),
        Recipe(
            name="syncdreamer",
            about="views first: sixteen from above, drawn together, and a surface fitted to them (Liu et al. 2023)",
            wants="picture",
            start="carved",
            # Liu et al.: scale 2, 50 steps; NeuS, 2,000 steps, colours 0.5, mask 1, eikonal 0.1.
            drawn=replace(
                BESIDE,
                rig=Rig(tuple(22.5 * k for k in range(16)), (30.0,) * 16, fov=40.0),
                kinds=("albedo",),
            ),
            stages=reconstructed(),
        ),
        Recipe(
            name="zero123plus",
            about="views first: six, from above and below in turn (Zero123++, Shi et al. 2023), and a surface",
            wants="picture",
            start="carved",
            # Shi et al., version 1.2: scale 4, 28 to 75 steps, a lens of 30 degrees; no reconstruction of their own.
            drawn=BESIDE,
            stages=reconstructed(),
        ),
        Recipe(
            name="wonder3d",
            about="views first: six level with the picture, colours and normals (Long et al. 2023), and a surface",
            wants="picture",
            start="carved",
            # Long et al.: scale 1 to 3, 20 to 50 steps, no perspective; NeuS, 3,000 steps, colours 0.5, mask 1, normals
            # 1 without the worst fifth, eikonal 0.2, smoothness 1, and these weights of the views.
            drawn=replace(
                BESIDE,
                rig=Rig((0.0, 45.0, 90.0, 180.0, -90.0, -45.0), (0.0,) * 6, fov=40.0, relative=True),
                weights=(1.0, 0.8, 0.2, 1.0, 0.4, 0.7),
            ),
            stages=reconstructed(dropped=0.2),
        ),
        Recipe(
            name="refined",
            about="the start, then score distillation at low timesteps only: what is there already is kept",
            start="volume",
            stages=(replace(COARSE, scene=GENTLE, steps=60, loss=falling(2.0, 0.5, 0.2)),),
        ),
        Recipe(
            name="instant3d",
            about="views first: drawn together, and a surface fitted to them (Li et al. 2023), in seconds",
            start="volume",
            # Li et al.: four views in one picture, begun with a noised blob, and a transformer that makes a volume of
            # them. Without one, four do not tell what is hollow: here it is six.
            drawn=AROUND,
            stages=reconstructed(),
        ),
        Recipe(
            name="dreamfusion",
            about="a hash-grid NeRF under score distillation (Poole et al. 2022), then its isosurface",
            stages=(COARSE,),
        ),
        Recipe(
            name="prolificdreamer",
            about="variational score distillation (Wang et al. 2023): a volume, then its surface, then its texture",
            stages=(
                # Wang et al.: 25,000 steps at scale 7.5 (gaudy here), rank 4 at 1e-4, t up to 0.98, then 0.5.
                replace(
                    COARSE,
                    loss=VSD(scale=2.0, rate=2e-3, t_min=Anneal(0.98, 0.3), t_max=Anneal(0.98, 0.3), weight="clean"),
                ),
                replace(
                    COARSE,
                    name="geometry",
                    scene=SolidConfig(),
                    steps=30,
                    kinds=("normal",),
                    loss=falling(2.0, 0.3, 0.1),
                    terms=SMOOTH,
                ),
                replace(
                    COARSE,
                    name="texture",
                    scene=SolidConfig(still(PLAIN), PaintConfig(rate=0.03)),
                    steps=40,
                    kinds=("albedo",),
                    loss=VSD(scale=2.0, rate=2e-3, t_min=Anneal(0.5, 0.1), t_max=Anneal(0.5, 0.1), weight="clean"),
                ),
            ),
        ),
        Recipe(
            name="magic3d",
            about="coarse to fine (Lin et al. 2022): that, then a surface on a tetrahedral grid at low timesteps",
            stages=(
                COARSE,
                replace(
                    COARSE,
                    name="fine",
                    scene=SolidConfig(),
                    steps=60,
                    # Lin et al.: 3,000 steps at 512 pixels, t in [0.02, 0.5], normal consistency 1e4 under their sums.
                    loss=falling(2.0, 0.3, 0.1),
                    terms=SMOOTH,
                ),
            ),
        ),
        Recipe(
            name="fantasia3d",
            about="a surface from a ball by its normals alone, then its material under a light (Chen et al. 2023)",
            stages=(
                replace(
                    COARSE,
                    name="geometry",
                    scene=SolidConfig(WIDE, start_radius=0.7),
                    steps=240,
                    kinds=("normal",),
                    # Chen et al.: 2,000 steps, the first half with t in [0.02, 0.5]; this prior settles as COARSE says.
                    loss=falling(2.0, 0.98, 0.3),
                    terms=SMOOTH,
                ),
                replace(
                    COARSE,
                    name="appearance",
                    scene=SolidConfig(still(WIDE), PaintConfig(rate=0.03, finish=True)),
                    steps=60,
                    kinds=("shaded",),
                    loss=falling(4.0, 0.98, 0.3),
                ),
            ),
        ),
        Recipe(
            name="textmesh",
            about="a signed distance, rendered as a volume (Tsalicoglou et al. 2023), then its surface",
            stages=(replace(COARSE, scene=SDFConfig(), terms=Terms(eikonal=Anneal(200.0))),),
        ),
        Recipe(
            name="latent-nerf",
            about="a volume in the prior's own latents (Metzer et al. 2022), then in colours",
            # Metzer et al.: 5,000 steps of 64 x 64 latents, scale 100, t in [0.02, 0.98]; then colours at 512 pixels.
            stages=(LATENT, REFINE),
        ),
        Recipe(
            name="sketch-shape",
            about="that, held to the shape of a mesh far from its surface, and free near it (Metzer et al. 2022)",
            start="mesh",
            stages=(
                replace(
                    LATENT,
                    scene=NeRFConfig(latents=True, colour_rate=0.005, lenience=0.1),
                    # Metzer et al.: 5e-6 beside sums over latents and means over their timesteps' weights; 1 elsewhere.
                    terms=Terms(sketch=Anneal(1000.0)),
                ),
                REFINE,
            ),
        ),
        Recipe(
            name="latent-paint",
            about="a mesh in new colours, painted in the prior's own latents (Metzer et al. 2022)",
            start="mesh",
            # Metzer et al.: 5,000 steps of a texture of 128 x 128 latents.
            stages=(
                replace(
                    COARSE,
                    name="paint",
                    scene=PaintedConfig(PaintConfig(rate=0.015, latents=True)),
                    steps=80,
                    loss=falling(4.0, 0.9, 0.3),
                ),
            ),
        ),
        Recipe(
            name="mvdream",
            about="views that are denoised together, led to the picture they make of themselves (Shi et al. 2023)",
            stages=(
                replace(
                    COARSE,
                    # Shi et al.: 10,000 steps of 4 views a quarter turn apart, scale 50, the rest as here.
                    loss=SDS(
                        scale=4.0,
                        rescale=0.5,
                        t_min=Anneal(0.98, 0.02, until=0.8),
                        t_max=Anneal(0.98, 0.5, until=0.8),
                        weight="clean",
                    ),
                ),
            ),
        ),
        Recipe(
            name="hifa",
            about="pictures denoised all the way, timesteps that fall by the root, thin surfaces (Zhu et al. 2023)",
            stages=(
                replace(
                    COARSE,
                    steps=75,
                    # Zhu et al.: 10,000 steps at 512 pixels, scale 100, 4 steps of denoising, t from 0.98 to 0.3.
                    loss=HiFA(scale=2.0, t_min=root(0.98, 0.3), t_max=root(0.98, 0.3), weight="clean", steps=3),
                    terms=Terms(z_variance=Anneal(100.0)),
                ),
            ),
        ),
        Recipe(
            name="nfsd",
            about="score distillation without the noise that was added (Katzir et al. 2023)",
            negative=FAULTS,
            # Katzir et al.: t in [0.02, 0.98], scale 7.5, which turns wood teal and red here; 2 leaves it grey.
            stages=(
                replace(COARSE, loss=NFSD(scale=2.0, t_min=Anneal(0.98, 0.1), t_max=Anneal(0.98, 0.1), weight="clean")),
            ),
        ),
        Recipe(
            name="sjc",
            about="perturb and average: score distillation as a chain rule (Wang et al. 2022)",
            # Wang et al.: 10,000 steps of a grid of voxels of latents, scale 100, t in [0.01, 0.97], one draw.
            stages=(replace(COARSE, loss=SJC(scale=2.0, t_min=Anneal(0.97, 0.3), t_max=Anneal(0.97, 0.3))),),
        ),
        Recipe(
            name="repaint",
            about="a mesh in new colours: score distillation of its albedo alone; its triangles stay as they are",
            start="mesh",
            stages=(
                replace(
                    COARSE,
                    name="paint",
                    scene=PaintedConfig(),
                    steps=80,
                    loss=falling(4.0, 0.9, 0.3),
                ),
            ),
        ),
        Recipe(
            name="resculpt",
            about="a mesh in another shape: its surface moves by its normals alone, its colours stay where they were",
            start="mesh",
            stages=(
                replace(
                    COARSE,
                    name="geometry",
                    scene=SolidConfig(paint=PaintConfig(rate=0.0)),
                    steps=80,
                    kinds=("normal",),
                    loss=falling(4.0, 0.9, 0.2),
                    terms=SMOOTH,
                ),
            ),
        ),
        Recipe(
            name="reshape",
            about="a mesh that becomes something else (Lin et al. 2022, section 5): its surface and its colours move",
            start="mesh",
            stages=(
                replace(
                    COARSE,
                    name="fine",
                    scene=SolidConfig(paint=PaintConfig(rate=0.03)),
                    steps=100,
                    loss=falling(4.0, 0.9, 0.2),
                    terms=SMOOTH,
                ),
            ),
        ),
    ]
}
