"""A diffusion model as a classifier."""
