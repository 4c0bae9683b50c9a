"""Toy worlds with closed-form answers."""
