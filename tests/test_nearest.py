"""Trees of points: the nearest by brute force, also where SciPy's balanced ones never end."""

import torch

from threed.renderers.nearest import tree


def test_the_nearest_of_points_that_mostly_lie_on_a_plane():
    """Nine in ten have x = 0, while the CPU makes zeros of the smallest numbers."""
    generator = torch.Generator().manual_seed(0)
    points, asked = torch.rand(4000, 3, generator=generator), torch.rand(200, 3, generator=generator)
    points[:, 0] = (torch.rand(4000, generator=generator) > 0.9).float()
    torch.set_flush_denormal(True)
    try:
        away, _ = tree(points.numpy()).query(asked.numpy())
    finally:
        torch.set_flush_denormal(False)
    brute = (asked[:, None] - points).norm(dim=-1).amin(1)
    torch.testing.assert_close(torch.from_numpy(away).float(), brute, atol=1e-6, rtol=0)
