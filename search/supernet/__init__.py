"""The weight-sharing detector: elastic blocks, backbone, neck and head, and the plain detectors cut out of
it."""
