"""Diffusion: schedules, denoisers, the one reverse loop and its exact gradient."""
