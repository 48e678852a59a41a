"""fastdetect finds manipulated faces in video, fast."""

__version__ = "0.1.0"
