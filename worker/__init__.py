"""What prefill and decode workers share: the engine thread, the router session, status."""
