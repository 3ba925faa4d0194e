"""A prior of one's own: a folder of meshes becomes captioned items, and a small diffusion model is trained on them."""
