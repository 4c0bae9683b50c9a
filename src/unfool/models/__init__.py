"""Networks that classify images, and the weights they load."""
