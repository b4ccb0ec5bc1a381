"""`pdserve make-model DIR`."""

from deploy.models.make_model import add_arguments
from deploy.models.make_model import main as run

__all__ = ["add_arguments", "run"]
