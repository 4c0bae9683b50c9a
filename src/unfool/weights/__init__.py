"""Models that come with the package, each a folder with a card."""
