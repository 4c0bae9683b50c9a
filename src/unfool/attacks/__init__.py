"""Attacks: pure functions from a model and images to adversarial images."""
