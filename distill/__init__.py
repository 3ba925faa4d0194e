"""Frozen diffusion priors and the losses that distil them into a scene."""
