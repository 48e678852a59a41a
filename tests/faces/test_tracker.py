"""track: one person, one track; two persons, two; nothing lost."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from fastdetect.errors import ShapeError
from fastdetect.faces import Face, crop_face, track

SIZE = (1280, 720)


def face(x: float, y: float = 300, side: float = 100, score: float = 0.9) -> Face:
    """A face centred at (x, y)."""
    box = (x - side * 0.4, y - side / 2, x + side * 0.4, y + side / 2)
    return Face(box, score, np.zeros((5, 2), np.float32))


def centres(made) -> list[float]:
    return [(f.box[0] + f.box[2]) / 2 for f in made.faces]


def times(count: int, gap: float = 0.3) -> list[float]:
    return [gap * i for i in range(count)]


def test_nothing_gives_no_tracks():
    assert track([], [], SIZE) == []
    assert track([[], [], []], times(3), SIZE) == []


@pytest.mark.parametrize("gap", [0.04, 0.3, 1.0, 3.0, 40.0])
def test_one_person_who_fidgets_is_one_track_at_any_gap(gap):
    rng = np.random.default_rng(0)
    faces = [[face(600 + rng.uniform(-20, 20), 300 + rng.uniform(-20, 20), rng.uniform(95, 105))] for _ in range(16)]
    [only] = track(faces, times(16, gap), SIZE)
    assert only.id == 0
    assert only.frames == list(range(16))
    assert only.faces == [f for [f] in faces]


def test_two_side_by_side_are_two_tracks_and_the_larger_is_first():
    rng = np.random.default_rng(1)
    faces = []
    for i in range(16):
        pair = [face(500 + rng.uniform(-25, 25), side=100), face(620 + rng.uniform(-25, 25), side=110)]
        faces.append(pair if i % 2 else pair[::-1])
    large, small = track(faces, times(16), SIZE)
    assert (large.id, small.id) == (0, 1)
    assert [f.side for f in large.faces] == pytest.approx([110] * 16)
    assert [f.side for f in small.faces] == pytest.approx([100] * 16)


def test_two_who_cross_keep_their_ways_by_speed_alone():
    faces = [[face(300 + 50 * i), face(1000 - 50 * i)] for i in range(14)]  # half a face side a frame
    one, other = track(faces, times(14), SIZE)
    assert len(one.frames) == len(other.frames) == 14
    for made in (one, other):
        steps = [b - a for a, b in pairwise(centres(made))]
        assert min(steps) * max(steps) > 0


def test_two_who_cross_and_hide_each_other_in_real_pictures(detector, head):
    dark = (head[:, ::-1] * 0.45).astype(np.uint8)
    frames = []
    for i in range(13):
        frame = np.full((360, 960, 3), 120, np.uint8)
        a, b = 20 + 60 * i, 740 - 60 * i
        frame[80:280, b : b + 200] = dark
        frame[100:300, a : a + 200] = head
        frames.append(frame)
    faces = detector.detect(frames)
    assert {len(f) for f in faces} == {1, 2}  # the one behind is hidden in the middle
    tracks = track(faces, times(13), (960, 360), frames=frames)
    assert len(tracks) == 2
    assert sum(len(t.frames) for t in tracks) == sum(map(len, faces))
    luma = [
        [crop_face(frames[i], f.box, size=16).mean() for i, f in zip(t.frames, t.faces, strict=True)] for t in tracks
    ]
    luma.sort()
    assert max(luma[0]) < min(luma[1])


def test_scene_cut_starts_a_new_track(detector, portrait, carphone):
    other = [cv2.resize(c, (626, 512))[:, 57:569] for c in carphone[:4]]
    frames = [portrait] * 4 + other
    faces = detector.detect(frames)
    tracks = track(faces, times(8), (512, 512), frames=frames)
    assert sorted(t.frames for t in tracks) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_cut_parts_even_one_person_who_stays_in_place(detector, head):
    def shot(level: int) -> np.ndarray:
        frame = np.full((720, 960, 3), level, np.uint8)
        frame[300:500, 400:600] = head
        return frame

    frames = [shot(100)] * 3 + [shot(190)] * 3
    tracks = track(detector.detect(frames), times(6), (960, 720), frames=frames)
    assert sorted(t.frames for t in tracks) == [[0, 1, 2], [3, 4, 5]]


def test_another_person_in_the_same_place_starts_a_new_track(detector, head):
    def shot(picture: np.ndarray) -> np.ndarray:
        frame = np.full((720, 960, 3), 120, np.uint8)
        frame[300:500, 400:600] = picture
        return frame

    frames = [shot(head)] * 3 + [shot((head[:, ::-1] * 0.45).astype(np.uint8))] * 3
    faces = detector.detect(frames)
    assert [len(f) for f in faces] == [1] * 6
    assert len(track(faces, times(6), (960, 720))) == 1  # places alone cannot tell
    assert sorted(t.frames for t in track(faces, times(6), (960, 720), frames=frames)) == [[0, 1, 2], [3, 4, 5]]


def test_a_talking_head_is_one_track(detector, carphone):
    [only] = track(detector.detect(carphone), times(len(carphone), 0.5), (176, 144), frames=carphone)
    assert only.frames == list(range(len(carphone)))


def test_a_brightness_ramp_is_no_cut(detector, portrait):
    frames = [(portrait * (0.6 + 0.05 * i)).astype(np.uint8) for i in range(8)]
    [only] = track(detector.detect(frames), times(8), (512, 512), frames=frames)
    assert len(only.frames) == 8


def test_missed_frames_are_bridged_and_a_long_absence_is_not():
    seen = [[face(600)]]
    [only] = track([*seen, [], [], *seen], times(4, 5.0), SIZE)  # two missed samples, however long they last
    assert only.frames == [0, 3]
    [only] = track([*seen, *[[]] * 9, *seen], times(11), SIZE)  # 3.0 s away
    assert only.frames == [0, 10]
    assert len(track([*seen, *[[]] * 12, *seen], times(14), SIZE)) == 2
    assert len(track([*seen, [], [], [], *seen], times(5, 5.0), SIZE)) == 2  # three missed samples, 20 s


@pytest.mark.parametrize(
    ("moved", "grown", "gap", "tracks"),
    [
        (150, 1.0, 0.04, 2),  # one and a half face sides
        (150, 1.0, 1.5, 1),
        (250, 1.0, 2.9, 2),  # two sides are the most at any gap
        (0, 1.7, 0.04, 2),
        (0, 1.7, 1.5, 1),
        (0, 2.2, 2.9, 2),  # and twice the size
    ],
)
def test_the_longer_the_gap_the_farther_a_face_may_move_and_grow(moved, grown, gap, tracks):
    assert len(track([[face(600)], [face(600 + moved, side=100 * grown)]], [0.0, gap], SIZE)) == tracks


def test_nobody_is_expected_outside_the_frame():
    walk = [[face(x)] for x in (710, 800, 890, 980)]  # would be at 1610 when the next is looked at
    assert len(track([*walk, *[[]] * 6, [face(1265)]], times(11), SIZE)) == 1


def test_leaving_on_one_side_while_another_comes_on_the_other():
    faces = [[face(1200)], [face(1230)], [face(60)], [face(90)]]
    assert sorted(t.frames for t in track(faces, times(4), SIZE)) == [[0, 1], [2, 3]]


def test_close_up_after_a_wide_shot_is_another_track():
    faces = [[face(600, side=60)], [face(600, side=60)], [face(600, side=200)]]
    assert sorted(t.frames for t in track(faces, times(3), SIZE)) == [[0, 1], [2]]


def test_spurious_detection_is_a_track_of_one():
    faces = [[face(600)] for _ in range(10)]
    faces[4] = [face(100, 100, 40, score=0.51), face(600)]
    main, stray = track(faces, times(10), SIZE)
    assert main.frames == list(range(10))
    assert (stray.id, stray.frames) == (1, [4])


def test_every_face_is_in_one_track_whatever_comes():
    rng = np.random.default_rng(2)
    for _ in range(20):
        count = int(rng.integers(1, 12))
        faces = [
            [face(*rng.uniform(0, 1000, 2), rng.uniform(1, 300)) for _ in range(rng.integers(0, 6))]
            for _ in range(count)
        ]
        tracks = track(faces, np.sort(rng.uniform(0, 30, count)).tolist(), SIZE)
        got = [(i, id(f)) for t in tracks for i, f in zip(t.frames, t.faces, strict=True)]
        assert sorted(got) == sorted((i, id(f)) for i, of_frame in enumerate(faces) for f in of_frame)
        assert all(a < b for t in tracks for a, b in pairwise(t.frames))
        assert [t.id for t in tracks] == list(range(len(tracks)))
        areas = [t.area for t in tracks]
        assert areas == sorted(areas, reverse=True)


def test_order_of_faces_in_a_frame_does_not_matter():
    rng = np.random.default_rng(3)
    faces = [[face(200 + 250 * j + rng.uniform(-30, 30), side=90 + 10 * j) for j in range(4)] for _ in range(12)]
    shuffled = [[f[j] for j in rng.permutation(4)] for f in faces]
    assert track(faces, times(12), SIZE) == track(shuffled, times(12), SIZE)


def test_repeated_timestamps():
    with np.errstate(all="raise"):
        [only] = track([[face(600)], [face(610)], [face(620)], [face(630)]], [0.0, 0.0, 0.0, 0.1], SIZE)
    assert len(only.frames) == 4


def test_lengths_and_order_are_checked():
    with pytest.raises(ShapeError, match="2 lists of faces, 1 times"):
        track([[], []], [0.0], SIZE)
    with pytest.raises(ShapeError, match="and 1 frames"):
        track([[], []], [0.0, 1.0], SIZE, frames=[np.zeros((9, 9, 3), np.uint8)])
    with pytest.raises(ShapeError, match="descend"):
        track([[], []], [1.0, 0.0], SIZE)
