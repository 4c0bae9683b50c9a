"""What a defense is like from inside: its gradients, and the paths of attacks."""
