"""The runs of a sweep together: their cells, means over seeds, and convergence."""
