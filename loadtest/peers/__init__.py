"""The gateway beside the servers that people use instead, in one run on one machine."""
