"""Evaluation: attack every image, judge on held-out noise, write it down, sum it up."""
