"""Faces in frames: detector, tracker, crop and quality measures."""

from fastdetect.faces.centerface import CenterFaceDetector, Face
from fastdetect.faces.crop import crop_face
from fastdetect.faces.quality import FaceQuality, face_quality
from fastdetect.faces.tracker import Track, track

__all__ = ["CenterFaceDetector", "Face", "FaceQuality", "Track", "crop_face", "face_quality", "track"]
