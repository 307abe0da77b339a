"""The gRPC contract: the .proto file and the stubs made from it by `make wire`."""
