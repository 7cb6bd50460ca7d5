"""Prompts from files and from ground truth, checked like prompts in the node."""
import json

import cv2
import numpy as np
import pytest

from sam2_core.offline.prompts import read_video_prompts
from sam2_ros.evaluation.prompts import first_truth_prompts, read_prompts
from sam2_ros.messages.conversions import to_mask, to_nanoseconds
from sam2_ros.msg import Prompt
from sam2_ros.perception.prompt_plan import to_prompt
from sam2_ros.recordings.recording import RecordingError
from testing.discs import HEIGHT, WIDTH, Discs


@pytest.fixture
def recording():
    return Discs(6, hidden={2: (0, 1)}, annotated=(0, 2, 3, 5))


@pytest.fixture
def read(tmp_path, recording):
    """Return a function that writes a text to a file and reads the prompts."""
    def read(text):
        (tmp_path / 'prompts.yaml').write_text(text)
        return read_prompts(tmp_path / 'prompts.yaml', recording)
    return read


def test_file_says_what_people_click(read, recording, tmp_path):
    (tmp_path / 'masks').mkdir()
    cv2.imwrite(str(tmp_path / 'masks' / 'blue.png'), recording.mask(2, 2).astype(np.uint8) * 255)
    boxed, masked, refined, removed = read("""
- {frame: 0, id: 1, label: disc, box: [5.6, 12, 22, 29]}
- {frame: 2, id: 2, mask: masks/blue.png}
- stamp: 50.3
  id: 1
  action: refine
  points: [[24, 20, 1], [50, 36.5, 0]]
- {frame: 5, id: 1, action: remove}
""")
    for prompt, frame in ((boxed, 0), (masked, 2), (refined, 3), (removed, 5)):
        assert to_nanoseconds(prompt.message.header.stamp) == recording.stamps[frame]
        assert prompt.message.header.frame_id == 'camera'
        assert prompt.arrival == recording.arrivals[frame]
    assert [prompt.message.action for prompt in (boxed, masked, refined, removed)] == [
        Prompt.SET, Prompt.SET, Prompt.REFINE, Prompt.REMOVE]
    box = boxed.message.box
    assert (boxed.message.id, boxed.message.label) == (1, 'disc')
    assert (box.x_offset, box.y_offset, box.width, box.height) == (6, 12, 16, 17)
    np.testing.assert_array_equal(to_mask(masked.message.mask), recording.mask(2, 2))
    assert [(point.x, point.y, point.label) for point in refined.message.points] == [(24, 20, 1), (50, 36.5, 0)]


def test_a_file_of_sam2_track_is_read_too(recording, tmp_path):
    entries = [{'frame': 3, 'id': 2, 'label': 'cup', 'box': [5, 6, 30, 40]},
               {'frame': 1, 'id': 1, 'points': [[4, 5, 1], [6, 7, 0]]}, {'frame': 4, 'id': 2, 'action': 'remove'}]
    path = tmp_path / 'prompts.json'
    path.write_text(json.dumps(entries))
    tracked = sorted(read_video_prompts(path, 6), key=lambda item: item.frame)
    for item, prompt in zip(tracked, read_prompts(path, recording), strict=True):
        message = prompt.message
        assert prompt.arrival == recording.arrivals[item.frame]
        assert message.action == {'set': Prompt.SET, 'remove': Prompt.REMOVE}[item.action]
        assert message.label == item.label
        there = to_prompt(message, message.id)
        assert (there.object_id, there.box) == (item.prompt.object_id, item.prompt.box)
        assert (there.points, there.labels) == (item.prompt.points, item.prompt.labels)


def test_prompts_come_in_the_order_of_their_images(read):
    found = read('[{frame: 4, id: 1, box: [1, 1, 9, 9]}, {frame: 1, id: 2, box: [1, 1, 9, 9]}, '
                 '{frame: 4, action: clear}]')
    assert [(prompt.message.id, prompt.message.action) for prompt in found] == [
        (2, Prompt.SET), (1, Prompt.SET), (0, Prompt.CLEAR)]


@pytest.mark.parametrize('entry, reason', [
    ('{id: 1, box: [1, 1, 9, 9]}', 'must have either frame or stamp'),
    ('{frame: 0, stamp: 1.5, id: 1, box: [1, 1, 9, 9]}', 'must have either frame or stamp'),
    ('{frame: 6, id: 1, box: [1, 1, 9, 9]}', 'frame 6: must be 0 to 5, the recording has 6 images'),
    ('{frame: 1.5, id: 1, box: [1, 1, 9, 9]}', 'frame 1.5: must be 0 to 5'),
    ('{stamp: 50.25, id: 1, box: [1, 1, 9, 9]}', 'no image has it; the nearest has 50.[23]00000, '),
    ('{stamp: soon, id: 1, box: [1, 1, 9, 9]}', "stamp 'soon': must be a number of seconds"),
    ('{frame: 0, id: 1, bax: [1, 1, 9, 9]}', "'bax' is not known: must be one of frame, stamp, action"),
    ('{frame: 0, id: 70000, box: [1, 1, 9, 9]}', 'id 70000: must be an integer from 1 to 65535'),
    ('{frame: 0, action: refine, box: [1, 1, 9, 9]}', 'action refine without id'),
    ('{frame: 0, id: 1, action: add, box: [1, 1, 9, 9]}', "action 'add': must be one of set, refine, remove, clear"),
    ('{frame: 0, id: 1, action: remove, box: [1, 1, 9, 9]}', 'action remove with box: leave box out'),
    ('{frame: 0, id: 1, label: 5, box: [1, 1, 9, 9]}', 'label 5: must be text'),
    ('{frame: 0, id: 1}', 'prompt without content: give points, a box or a mask'),
    ('{frame: 0, id: 1, box: [9, 1, 9, 9]}', 'box .9, 1, 9, 9.: x1 must exceed x0'),
    ('{frame: 0, id: 1, box: [200, 1, 209, 9]}', 'box .* outside the image of 160 x 120 pixels'),
    ('{frame: 0, id: 1, box: 7}', r'box 7: must be \[x0, y0, x1, y1\]'),
    ('{frame: 0, id: 1, points: [[4, 5]]}', r'point \[4, 5\]: must be \[x, y, 1\]'),
    ('{frame: 0, id: 1, points: 4}', 'points 4: must be a list'),
    ('{frame: 0, id: 1, mask: none.png}', 'none.png: No such file'),
    ('{frame: 0, id: 1, mask: small.png}', r'mask of shape \(5, 5\): must be \(120, 160\), as the image'),
    ('{frame: 0, id: 1, mask: empty.png}', 'mask without a single pixel'),
    ('cup', "'cup': must have the form"),
])
def test_wrong_entry_is_named_with_its_cure(read, tmp_path, entry, reason):
    cv2.imwrite(str(tmp_path / 'small.png'), np.full((5, 5), 255, np.uint8))
    cv2.imwrite(str(tmp_path / 'empty.png'), np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(RecordingError, match=reason) as failure:
        read(f'- {{frame: 0, id: 9, box: [1, 1, 9, 9]}}\n- {entry}\n')
    assert str(failure.value).startswith(f'prompts {tmp_path / "prompts.yaml"}, entry 2: ')


@pytest.mark.parametrize('text, reason', [
    ('{frame: 0}', 'must be a list of prompts'), ('', 'must be a list of prompts'), ('[{frame: 0', 'prompts.yaml')])
def test_file_that_is_no_list_of_prompts_is_named(read, text, reason):
    with pytest.raises(RecordingError, match=reason):
        read(text)


def test_a_mask_of_several_objects_is_refused_with_its_values(read, recording, tmp_path):
    cv2.imwrite(str(tmp_path / 'all.png'), recording.truth(2).astype(np.uint8))
    with pytest.raises(RecordingError, match=r'entry 1: all.png: mask with the values 0, 1, 2: .*mask == id'):
        read('[{frame: 2, id: 1, mask: all.png}]')


def test_clicks_off_the_object_alone_start_none(read):
    with pytest.raises(RecordingError, match='entry 1: .*a new object cannot start'):
        read('[{frame: 2, id: 1, points: [[5, 5, 0]]}]')
    read('[{frame: 2, id: 1, action: refine, points: [[5, 5, 0]]}]')


def test_missing_file_is_named(recording, tmp_path):
    with pytest.raises(RecordingError, match='nowhere.yaml: No such file or directory'):
        read_prompts(tmp_path / 'nowhere.yaml', recording)


def test_first_truth_of_each_object_is_its_prompt(recording):
    red, blue = first_truth_prompts(recording)
    assert (red.message.id, red.message.label, red.arrival) == (1, 'red', recording.arrivals[0])
    assert (blue.message.id, blue.message.label, blue.arrival) == (2, 'blue', recording.arrivals[2])
    np.testing.assert_array_equal(to_mask(red.message.mask), recording.mask(1, 0))
    np.testing.assert_array_equal(to_mask(blue.message.mask), recording.mask(2, 2))
    assert to_nanoseconds(blue.message.header.stamp) == recording.stamps[2]


def test_recording_without_truth_gives_no_prompts():
    with pytest.raises(RecordingError, match='discs: no ground truth, or no object in it; name'):
        first_truth_prompts(Discs(annotated=()))
