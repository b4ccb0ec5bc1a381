"""The cluster as it runs, under a virtual clock: the same scheduler, block ledger, handoff and routing code."""
