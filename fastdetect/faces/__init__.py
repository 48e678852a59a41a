"""Faces in frames: detector, tracker, crop and quality measures."""

from fastdetect.faces.centerface import CenterFaceDetector, Face
from fastdetect.faces.crop import crop_face

__all__ = ["CenterFaceDetector", "Face", "crop_face"]
