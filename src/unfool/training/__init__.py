"""Training: objectives, and the one loop that brings them down."""
