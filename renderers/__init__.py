"""Cameras, meshes and the differentiable primitives that draw volumes and surfaces."""
