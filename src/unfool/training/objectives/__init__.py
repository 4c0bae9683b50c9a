"""Training objectives, one per file: each maps a model, images and labels to the loss per image."""
