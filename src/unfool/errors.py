"""The errors that a user caused and can mend."""


class SpecError(ValueError):
    """A mistake in a spec or on the command line, in one sentence."""
