"""`pdserve plan` and `simulate` by our own rules: the cluster as pdserve runs it."""
