"""What a cluster is told: frozen dataclasses, each field with its help, its limits and nothing read from elsewhere.

    ServeConfig            one `pdserve serve`
      RouterConfig         the front doors and the router
      WorkerConfig         every worker of the cluster
    WorkerStart            one worker process: WorkerConfig resolved, and who it is; travels as JSON

`check()` looks at everything and returns every problem; a problem is one line: what, value, what is allowed.
"""

from pdserve.config.router import RouterConfig, SloClass, TenantKey
from pdserve.config.serve import ServeConfig
from pdserve.config.worker import WorkerConfig, WorkerStart

__all__ = ["RouterConfig", "ServeConfig", "SloClass", "TenantKey", "WorkerConfig", "WorkerStart"]
