"""Analyses of a defense: its gradients, its loss landscape, and the paths of attacks."""
