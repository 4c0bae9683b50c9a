"""Loaders of diffusion models from the files that their authors published."""
