"""The gRPC front door: `pdserve.v1.InferenceService`, health, reflection."""

from router.grpc_front.server import GrpcFront, serve_grpc

__all__ = ["GrpcFront", "serve_grpc"]
