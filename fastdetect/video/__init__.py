"""Video in: probing, frame sampling, decoding, and worker processes that a bad file cannot take down."""

from fastdetect.video.probe import Limits, VideoInfo, probe
from fastdetect.video.pyav import DecodedClip, Frame, decode
from fastdetect.video.sampling import SamplingPolicy

__all__ = ["DecodedClip", "Frame", "Limits", "SamplingPolicy", "VideoInfo", "decode", "probe"]
