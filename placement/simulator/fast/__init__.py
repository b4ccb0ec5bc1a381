"""The simulator compiled: what a search runs thousands of times.

Models: first come first served queues, chunked prefill, batching, KV admission and preemption, prefix cache and what a
handoff need not send for it, handoff over shared links, both routing policies over the rules of the real ledgers,
latency as the workers measure it; split, mixed and colocated. Does not model: deadlines, priorities, failures, role
changes, what workers of one machine cost one another. `run.unsupported` says so of a
given case, and the simulator of the real code takes it. Every function here follows one of that simulator or of
`scheduling`, named in its docstring, but for those of `steady`, `board` and `soonest`, which say what they stand for;
tests/placement/test_fast.py holds all equal on random cases.
"""
