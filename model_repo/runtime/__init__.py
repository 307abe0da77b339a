"""The runtimes that execute variants, behind one protocol, for measuring and for serving alike."""
