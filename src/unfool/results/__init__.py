"""What is on disk of a run, and pure functions of it."""
