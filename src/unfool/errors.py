"""Errors that a user caused and can fix."""


class SpecError(ValueError):
    """A mistake in a spec or on the command line, in one sentence."""
