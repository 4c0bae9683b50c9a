"""Torch modules of networks; nothing of diffusion or attacks."""
