"""Certified l2 radii by randomized smoothing."""
