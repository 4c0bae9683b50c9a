"""Tables of prompts for latent models."""
