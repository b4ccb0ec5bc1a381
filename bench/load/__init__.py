"""The load generator: open loop, over gRPC or any OpenAI server; behind `pdserve bench` and bench.served."""
