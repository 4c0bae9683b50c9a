"""What a defence is like from inside: its gradients, and the paths of attacks."""
