"""Triton kernels and their launchers, nothing else; fastdetect.ops checks arguments and registers the ops."""
