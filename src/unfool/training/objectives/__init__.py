"""Training objectives, one file each: a model, images and labels to the loss of each image."""
