"""The model, the paged KV pool, the sampler and the step loop: one engine for both phases."""
