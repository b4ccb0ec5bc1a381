"""Simulators that obey the rules of DistServe's and Splitwise's own, so that their published answers can be checked."""
