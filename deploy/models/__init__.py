"""Models to serve: any architecture with random weights, and one small model that says something."""

from deploy.models.demo_model import demo_model_directory
from deploy.models.make_model import add_arguments, main, make_model
from deploy.models.model_spec import ARCHITECTURES, BadModelSpec, ModelSpec

__all__ = ["ARCHITECTURES", "BadModelSpec", "ModelSpec", "add_arguments", "demo_model_directory", "main", "make_model"]
