"""The one error of loading."""


class UnsupportedModel(ValueError):
    """A checkpoint that this engine would compute wrongly, or not at all; the message names it and says why."""
