"""Turn a labelled data set into a published frontier of detection models."""
