"""What the runs of a sweep say together: which cell each is, means over seeds, and convergence."""
