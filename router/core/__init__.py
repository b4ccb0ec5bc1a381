"""Everything behind the router's front doors: worker sessions and the life of requests. Start at `core.py`."""
