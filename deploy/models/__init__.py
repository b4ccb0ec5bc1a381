"""Models to serve: any architecture with random weights, and one small model that says something.

The `make-model` command is not listed here, so that its module can also be run with `python -m`.
"""

from deploy.models.demo_model import demo_model_directory
from deploy.models.model_spec import ARCHITECTURES, BadModelSpec, ModelSpec

__all__ = ["ARCHITECTURES", "BadModelSpec", "ModelSpec", "demo_model_directory"]
