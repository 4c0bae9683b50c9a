"""Evaluation: attack each image, judge it on held-out noise, and record and sum up the outcomes."""
