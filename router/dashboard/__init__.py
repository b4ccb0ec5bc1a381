"""The dashboard that ships: what is live in the cluster, and the page that shows it (routes.py; needs starlette)."""

from router.dashboard.live import LiveView
from router.dashboard.plan import Planned
from router.dashboard.source import Activity, ClusterSource, CoreSource, WorkerState

__all__ = ["Activity", "ClusterSource", "CoreSource", "LiveView", "Planned", "WorkerState"]
