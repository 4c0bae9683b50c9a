"""Diffusion models as their authors published them: the names in their files, and their networks."""
