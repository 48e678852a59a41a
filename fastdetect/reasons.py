"""Reason codes: why a file has no verdict, or why its verdict deserves less trust. The strings are stable."""

from enum import StrEnum


class Reason(StrEnum):
    NO_FACE = "NO_FACE"
    FACE_TOO_SMALL = "FACE_TOO_SMALL"
    TOO_BLURRY = "TOO_BLURRY"
    TOO_DARK = "TOO_DARK"
    TOO_SHORT = "TOO_SHORT"
    TOO_FEW_FACES = "TOO_FEW_FACES"
    LOW_QUALITY = "LOW_QUALITY"
    OUT_OF_DOMAIN = "OUT_OF_DOMAIN"
    DECODE_ERROR = "DECODE_ERROR"
    TRUNCATED = "TRUNCATED"
    UNSUPPORTED_CODEC = "UNSUPPORTED_CODEC"
    UNSUPPORTED_CONTAINER = "UNSUPPORTED_CONTAINER"
    NO_VIDEO_STREAM = "NO_VIDEO_STREAM"
    TOO_LARGE = "TOO_LARGE"
    TIMEOUT = "TIMEOUT"
    CRASH = "CRASH"
    NOT_FOUND = "NOT_FOUND"
    NOT_PERMITTED = "NOT_PERMITTED"
