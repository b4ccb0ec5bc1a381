"""The model that ships with the repository."""

from pathlib import Path


def demo_model_directory() -> Path:
    """The directory of the demo model, ready for from_pretrained."""
    return Path(__file__).parent / "demo"
