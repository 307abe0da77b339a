"""The gateway: HTTP and gRPC edges over one service that answers frames within their latency budgets."""
