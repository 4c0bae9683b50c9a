"""The playground: a page in the browser that shows what a defense does to an image."""
