"""Output that follows a constraint: which tokens may come next, computed beside the forward pass.

Who compiles constraints imports `compiler`: it loads llguidance, the rest does not.
"""

from engine.grammar.mask_thread import MaskThread

__all__ = ["MaskThread"]
