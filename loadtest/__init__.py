"""Open-loop load over the wire, and a verdict on what came back."""
