"""Which placement serves most within the SLO: candidates, bounds, steady goodput, objectives, the search."""
