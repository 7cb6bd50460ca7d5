"""Results on disk: each frame comes back as it was, also after the file was cut off."""
import os

import numpy as np
import pytest
import torch

from sam2_core import FrameResult, ObjectResult
from sam2_core.masks import mask_box
from sam2_core.offline.display import TrackDisplay
from sam2_core.offline.store import FrameRecord, FrameStore, frame_record


def result(frame: int) -> FrameResult:
    random = np.random.default_rng(frame)
    masks = [random.random((20, 30)) > 0.6, np.zeros((20, 30), bool)]
    objects = {number: ObjectResult(mask, torch.zeros(4, 4), mask_box(mask), random.random(), random.normal())
               for number, mask in enumerate(masks, 3)}
    return FrameResult(objects, 20, 30)


def check(store: FrameStore, frame: int) -> None:
    found, expected = store.read(frame).result(), result(frame)
    assert (found.height, found.width, list(found.objects)) == (20, 30, [3, 4])
    for object_id, item in found.objects.items():
        wanted = expected.objects[object_id]
        np.testing.assert_array_equal(item.mask, wanted.mask)
        assert (item.box, item.iou, item.object_score) == (wanted.box, wanted.iou, wanted.object_score)


def test_frames_come_back_in_any_order(tmp_path):
    with FrameStore(tmp_path / 'store') as store:
        for frame in (9, 8, 3, 100_000):
            store.append(frame, frame_record(result(frame)))
        store.append(5, FrameRecord(0, 0, {}, 'torn'))
        for frame in (3, 100_000, 9, 8):
            check(store, frame)
        assert store.read(5).unreadable == 'torn'
        assert [store.read(frame) for frame in (0, 4, 10, 100_001)] == [None] * 4


def test_what_was_written_after_a_state_is_dropped(tmp_path):
    with FrameStore(tmp_path / 'store') as store:
        store.append(1, frame_record(result(1)))
        size = store.size
        for frame in (2, 3):
            store.append(frame, frame_record(result(frame)))
    os.truncate(tmp_path / 'store', (tmp_path / 'store').stat().st_size - 7)  # the end of a line is missing
    with FrameStore(tmp_path / 'store', size) as store:
        check(store, 1)
        assert [store.read(frame) for frame in (2, 3)] == [None, None]
        store.append(3, frame_record(result(3)))
        check(store, 3)
        assert store.read(2) is None


def test_a_store_that_has_lost_data_is_refused(tmp_path):
    (tmp_path / 'store').write_bytes(b'x' * 10)
    with pytest.raises(ValueError, match='store: has 10 bytes, 20 were written.*start again with --overwrite'):
        FrameStore(tmp_path / 'store', 20)


def test_lines_tell_rate_and_time_left_where_there_is_no_terminal():
    now, lines, moves = [0.0], [], []
    display = TrackDisplay({'backward': 100, 'forward': 300, 'files': 0}, lines.append,
                           lambda *values: moves.append(values), False, lambda: now[0])
    for done in range(1, 101):
        now[0] += 0.5
        display.moved('backward', 100 - done, done, 100)
    assert moves[-1] == (0.25, 0, 'backwards, 2 frames/s')
    assert lines == ['frame 40 backwards, 15 %, 2 frames/s, 3 min left']  # 340 frames at 2 a second
    display.moved('forward', 0, 1, 300)
    assert moves[-1][0] == pytest.approx(101 / 400)
