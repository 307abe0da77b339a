"""The rendered conveyor set: fasteners on a moving belt."""
