"""pdserve: large language models served with prefill and decode on separate pools of workers."""

__version__ = "0.1.0"
