"""Splitwise's simulator, by its rules (docs/compat-simulators.md)."""

from placement.compat.splitwise.curves import Curve, Machines, read_curve

__all__ = ["Curve", "Machines", "read_curve"]
