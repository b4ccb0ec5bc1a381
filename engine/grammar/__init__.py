"""Output that follows a constraint: which tokens may come next, computed beside the forward pass."""

from engine.grammar.compiler import GrammarCompiler
from engine.grammar.mask_thread import MaskThread

__all__ = ["GrammarCompiler", "MaskThread"]
