"""Component benchmarks: each prints its figure beside the machine's limit or a peer."""
