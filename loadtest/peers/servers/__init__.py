"""What each peer runs: a script as its own documentation recommends, all around the same `Detector`.

These modules are run by the peers' own environments, never by the load test's.
"""
