"""What decoders of many files have in common: one file is a batch of one."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence

from fastdetect.errors import MediaError
from fastdetect.video.probe import DEFAULT_LIMITS, Limits, VideoInfo
from fastdetect.video.pyav import DecodedClip
from fastdetect.video.sampling import DEFAULT_POLICY, SamplingPolicy

Source = str | os.PathLike[str] | VideoInfo


class BatchDecoder(ABC):
    """Decodes many files at once; keep it, what it has set up is reused, also after errors."""

    def decode(
        self,
        source: Source,
        policy: SamplingPolicy = DEFAULT_POLICY,
        *,
        max_seconds: float | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> DecodedClip:
        """Decode one file; arguments, result and errors as `fastdetect.video.pyav.decode`."""
        clip = self.decode_many([source], policy, max_seconds=max_seconds, limits=limits)[0]
        if isinstance(clip, MediaError):
            raise clip
        return clip

    @abstractmethod
    def decode_many(
        self,
        sources: Sequence[Source],
        policy: SamplingPolicy = DEFAULT_POLICY,
        *,
        max_seconds: float | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> list[DecodedClip | MediaError]:
        """Decode many files of any sizes and frame rates.

        Args:
            sources: paths, or what `probe` said of them where that is known.
            policy: which frames.
            max_seconds: use only this much of each clip's beginning, in seconds.
            limits: bounds; see `Limits`.

        Returns:
            One result per file, in order: the clip, or why there is none.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the decoder holds; it can be used again."""
