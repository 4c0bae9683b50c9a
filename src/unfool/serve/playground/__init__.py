"""The playground: a web page that shows what a defense does to an image."""
