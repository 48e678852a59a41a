"""Metrics, calibration and the evaluation protocol: how well a model does, and what its thresholds mean."""
