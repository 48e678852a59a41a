"""Keeps persons apart across sparsely sampled frames: one track is one person in one shot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from fastdetect.errors import ShapeError
from fastdetect.faces.centerface import Face
from fastdetect.faces.colours import colours

# How far a face may move between two frames, in face sides (the mean of both boxes' longer sides).
MOVE_BASE, MOVE_PER_S, MOVE_MAX = 0.75, 0.75, 2.0
SIZE_RATIO_BASE, SIZE_RATIO_PER_S, SIZE_RATIO_MAX = 1.5, 0.3, 2.0
# Frames a person may be missed and time they may be away; the more generous of the two holds.
MISSED_FRAMES, AWAY_S = 2, 3.0
# Mean absolute Lab difference of two pictures (0 = equal). Over 80 clips, 16 frames each: one person 0.1 to 5.0 from
# frame to frame, persons of different clips over 6.0 in 97 %; frames of one shot 0.1 to 5.3, across cuts over 10.
LOOK_MAX, CUT = 6.5, 7.5
LOOKS_KEPT = 3  # the nearest counts: somebody passing in front spoils one or two
_REFUSED = 1e6


@dataclass
class Track:
    """One person in one shot.

    Args:
        id: 0 for the track with the most face area over all its frames, then 1, 2, ...
        frames: positions in the given list of frames, ascending.
        faces: the face at each of these positions.
    """

    id: int
    frames: list[int]
    faces: list[Face]

    @property
    def area(self) -> float:
        """Sum of the box areas in square pixels."""
        return sum((f.box[2] - f.box[0]) * (f.box[3] - f.box[1]) for f in self.faces)


@dataclass
class _Person:
    """A track that may still grow."""

    frames: list[int] = field(default_factory=list)
    faces: list[Face] = field(default_factory=list)
    looks: list[np.ndarray] = field(default_factory=list)

    def add(self, position: int, face: Face, look: np.ndarray | None) -> None:
        self.frames.append(position)
        self.faces.append(face)
        if look is not None:
            self.looks = [*self.looks[1 - LOOKS_KEPT :], look]


def track(
    faces_per_frame: Sequence[Sequence[Face]],
    times_s: Sequence[float],
    frame_size: tuple[int, int],
    *,
    frames: Sequence[Any] | None = None,
) -> list[Track]:
    """Joins the faces of successive frames into tracks. [ours]

    From frame to frame, faces are assigned to persons so that the sum of costs is smallest (Hungarian). A pair's
    cost is the mean of its movement, size change and, with `frames`, change of look (Lab colours on 4x4 grids, of
    the face and of it with hair and collar, against the nearest of the last three), each over its limit; a pair
    past any limit is refused. Movement is measured from the last place or from where the last speed leads,
    whichever is nearer. With `frames`, a scene cut (the whole picture's Lab colours on an 8x8 grid jump) ends
    every track. A face that joins nothing is a track of its own: none is dropped.

    Args:
        faces_per_frame: the detected faces of every frame.
        times_s: time of every frame in seconds, ascending.
        frame_size: (width, height) of the frames in pixels; bounds how far a predicted place may lie.
        frames: the frames, RGB uint8 [H, W, 3], numpy or torch on any device; without them there is neither look nor
            scene cut to go by.

    Returns:
        The tracks, most face area first.

    Raises:
        ShapeError: lengths differ, or times descend.
    """
    counts = [len(faces_per_frame), len(times_s), len(faces_per_frame) if frames is None else len(frames)]
    if len(set(counts)) > 1:
        raise ShapeError(f"{counts[0]} lists of faces, {counts[1]} times and {counts[2]} frames; wanted as many")
    if any(later < earlier for earlier, later in pairwise(times_s)):
        raise ShapeError("times descend; give the frames in the order of time")
    persons: list[_Person] = []
    live: list[_Person] = []
    seen = None if frames is None else colours(frames, [[f.box for f in faces] for faces in faces_per_frame])
    for position, faces in enumerate(faces_per_frame):
        looks: Sequence[np.ndarray | None] = [None] * len(faces)
        if seen is not None:
            looks = seen[position].faces
            if position and _difference(seen[position].picture, seen[position - 1].picture) > CUT:
                live = []
        now = times_s[position]
        live = [
            p for p in live if position - p.frames[-1] <= MISSED_FRAMES + 1 or now - times_s[p.frames[-1]] <= AWAY_S
        ]
        joined = _assign(live, faces, looks, now, times_s, frame_size)
        for index, (face, look) in enumerate(zip(faces, looks, strict=True)):
            person = joined.get(index)
            if person is None:
                person = _Person()
                persons.append(person)
                live.append(person)
            person.add(position, face, look)
    tracks = [Track(0, p.frames, p.faces) for p in persons]
    tracks.sort(key=lambda t: (-t.area, t.frames[0], t.faces[0].box))
    for index, made in enumerate(tracks):
        made.id = index
    return tracks


def _assign(
    live: list[_Person],
    faces: Sequence[Face],
    looks: Sequence[np.ndarray | None],
    now: float,
    times_s: Sequence[float],
    frame_size: tuple[int, int],
) -> dict[int, _Person]:
    """Which live person each face (by its index) continues."""
    if not live or not faces:
        return {}
    costs = np.array(
        [[_cost(p, f, look, now, times_s, frame_size) for f, look in zip(faces, looks, strict=True)] for p in live]
    )
    if costs.size == 1:  # one person, one face: the usual case needs no assignment, nor a second of imports
        rows, columns = np.zeros((2, 1), int)
    else:
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(costs)
    return {int(c): live[r] for r, c in zip(rows, columns, strict=True) if costs[r, c] < _REFUSED}


def _cost(
    person: _Person,
    face: Face,
    look: np.ndarray | None,
    now: float,
    times_s: Sequence[float],
    frame_size: tuple[int, int],
) -> float:
    last = person.faces[-1]
    gap = now - times_s[person.frames[-1]]
    sides = (max(last.side, 1e-6), max(face.side, 1e-6))
    places = [_centre(last)]
    if len(person.faces) > 1:
        before = times_s[person.frames[-1]] - times_s[person.frames[-2]]
        if before > 0:
            speed = (_centre(last) - _centre(person.faces[-2])) / before
            places.append(np.clip(_centre(last) + speed * gap, 0, frame_size))
    moved = min(float(np.linalg.norm(_centre(face) - place)) for place in places) / (sum(sides) / 2)
    parts = [
        moved / min(MOVE_BASE + MOVE_PER_S * gap, MOVE_MAX),
        abs(math.log(sides[0] / sides[1])) / math.log(min(SIZE_RATIO_BASE + SIZE_RATIO_PER_S * gap, SIZE_RATIO_MAX)),
    ]
    if look is not None:
        parts.append(min(_difference(look, known) for known in person.looks) / LOOK_MAX)
    return _REFUSED if max(parts) > 1 else sum(parts) / len(parts)


def _centre(face: Face) -> np.ndarray:
    return np.array([face.box[0] + face.box[2], face.box[1] + face.box[3]]) / 2


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())
