"""Tracked masks as a results bag and as training data, read back by the readers that users have."""
import json
import struct

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.image import message_to_cvimage

from sam2_core.datasets import SkippedFiles, open_recordings, run_length
from sam2_core.datasets.image_files import label_png, read_labels
from sam2_core.masks import mask_box
from sam2_ros.evaluation.report.results_bag import jpeg_message, write_results
from sam2_ros.evaluation.report.training_export import export
from sam2_ros.evaluation.results import Answer, FrameOutput, ObjectOutput, Run
from sam2_ros.messages.conversions import from_pixels, to_rgb
from sam2_ros.msg import Instance
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.recordings.label_bags import bag_format
from testing.discs import HEIGHT, WIDTH, Discs

LOW = {3: 2, 5: 1}  # image -> object whose score is low there
HIDDEN = {2: (4, 6)}
LATENCY = 40_000_000


def output(mask, score=0.9):
    if not mask.any():
        return ObjectOutput(Instance.OCCLUDED, 0.0, 0.1)
    x0, y0, x1, y1 = box = mask_box(mask)
    return ObjectOutput(Instance.TRACKED, score, 0.99, box, np.packbits(mask[y0:y1, x0:x1]))


@pytest.fixture
def recording():
    return Discs(8, hidden=HIDDEN)


@pytest.fixture
def run(recording):
    """Return a run without the second image; masks equal the truth, and some scores are low."""
    frames = [FrameOutput(index, recording.stamps[index], recording.arrivals[index] + LATENCY,
                          {object_id: output(recording.mask(object_id, index),
                                             0.4 if LOW.get(index) == object_id else 0.9) for object_id in (1, 2)})
              for index in range(8) if index != 1]
    answers = [Answer(recording.arrivals[0], recording.stamps[0], 'SET', 1, 'red', True, applied=recording.stamps[0],
                      answered=recording.arrivals[0] + LATENCY),
               Answer(recording.arrivals[2], recording.stamps[2], 'SET', 9, '', False, 'a box outside the image',
                      answered=recording.arrivals[2])]
    return Run(recording.name, 'real-time', 1.0, 8, HEIGHT, WIDTH, {1: 'red', 2: 'blue'}, frames, answers)


# --- the bag to look at

def read_bag(path):
    """Return [(time, message)] by topic, from a reader that does not know our types."""
    found = {}
    with AnyReader([path]) as reader:
        for connection, time, raw in reader.messages():
            found.setdefault(connection.topic, []).append((time, reader.deserialize(raw, connection.msgtype)))
    return found


def stamp_of(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def test_results_are_read_without_our_types(tmp_path, run, recording):
    write_results(run, recording, tmp_path / 'out')
    bag = read_bag(tmp_path / 'out')
    assert set(bag) == {'/sam2/instances', '/sam2/label_image', '/sam2/overlay/compressed', '/sam2/prompt_status'}
    for topic in ('/sam2/instances', '/sam2/label_image', '/sam2/overlay/compressed'):
        assert [(time, stamp_of(message), message.header.frame_id) for time, message in bag[topic]] == [
            (frame.available, frame.stamp, 'camera') for frame in run.frames]
    for frame, (_, message), (_, labels), (_, overlay) in zip(
            run.frames, *(bag[f'/sam2/{name}'] for name in ('instances', 'label_image', 'overlay/compressed')),
            strict=True):
        assert (message.height, message.width) == (HEIGHT, WIDTH)
        assert message.latency.nanosec == LATENCY + recording.arrivals[0] - recording.stamps[0]
        np.testing.assert_array_equal(message_to_cvimage(labels), recording.truth(frame.index))
        picture = cv2.imdecode(overlay.data, cv2.IMREAD_COLOR)
        assert picture.shape == (HEIGHT, WIDTH, 3)
        for instance in message.instances:
            truth = recording.mask(instance.id, frame.index)
            assert instance.label == {1: 'red', 2: 'blue'}[instance.id]
            assert instance.state == (Instance.TRACKED if truth.any() else Instance.OCCLUDED)
            assert instance.area == np.count_nonzero(truth)
    hidden = bag['/sam2/instances'][3][1]  # of image 4
    assert stamp_of(hidden) == recording.stamps[4]
    assert hidden.instances[1].last_seen.nanosec == recording.stamps[3] % 10**9
    assert [(message.id, message.accepted, message.reason) for _, message in bag['/sam2/prompt_status']] == [
        (1, True, ''), (9, False, 'a box outside the image')]


def test_images_can_be_copied_beside_the_results(tmp_path, run, recording):
    write_results(run, recording, tmp_path / 'out', images=True)
    with BagRecording(tmp_path / 'out') as copy:  # the overlay is no camera
        assert list(copy.stamps) == [frame.stamp for frame in run.frames]
        np.testing.assert_array_equal(to_rgb(copy.image(1)), to_rgb(recording.image(2)))


# --- data to train on

def opened(folder, skipped, name='auto', **formats):
    found = open_recordings(folder, skipped, name, **formats)
    assert not skipped.all()
    return found


@pytest.fixture
def skipped(tmp_path):
    return SkippedFiles(tmp_path / 'skipped.jsonl')


SURE = [0, 2, 4, 6, 7]  # of the images that were processed, those without a low score


def check_clip(clip, recording, tolerance):
    assert len(clip) == len(SURE)
    read = clip.read(range(len(SURE)))
    for index, image, masks in zip(SURE, *read, strict=True):
        difference = np.abs(image.astype(int) - to_rgb(recording.image(index)))
        assert np.median(difference) <= tolerance
        np.testing.assert_array_equal(masks, np.stack([recording.mask(1, index), recording.mask(2, index)]))


def test_davis_folders_train_and_have_indexed_labels(tmp_path, run, recording, skipped):
    exported = export('davis', run, recording, tmp_path / 'data')
    assert (exported.images, exported.unsure, exported.empty) == (5, 2, 0)
    assert exported.masks == 8  # two of five images show one disc
    clip, = opened(tmp_path / 'data', skipped)
    check_clip(clip, recording, tolerance=2)
    label = (tmp_path / 'data' / 'Annotations' / 'discs' / '00002.png').read_bytes()
    assert label[25] == 3  # colour type: palette


def test_coco_trains_and_says_what_each_mask_is(tmp_path, run, recording, skipped):
    export('coco', run, recording, tmp_path / 'data')
    images = opened(tmp_path / 'data', skipped)
    processed = [0, *range(2, 8)]
    assert len(images) == len(processed)  # an image stands for itself: one sure mask is enough
    for index, image in zip(processed, images, strict=True):
        expected = [mask for object_id in (1, 2) if (mask := recording.mask(object_id, index)).any()
                    and LOW.get(index) != object_id]
        np.testing.assert_array_equal(image.read([0]).masks[0], np.stack(expected))
    content = json.loads((tmp_path / 'data' / 'annotations' / 'instances_discs.json').read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    for annotation in content['annotations']:
        assert names[annotation['category_id']] == {1: 'red', 2: 'blue'}[annotation['track_id']]
        mask = recording.mask(annotation['track_id'], annotation['image_id'] - 1)
        x0, y0, x1, y1 = mask_box(mask)
        assert annotation['bbox'] == [x0, y0, x1 - x0, y1 - y0]
        assert annotation['area'] == np.count_nonzero(mask) and annotation['score'] == 0.9


def test_label_bag_trains(tmp_path, run, recording, skipped):
    export('bag', run, recording, tmp_path / 'data')
    bag, = opened(tmp_path / 'data', skipped, formats={'bag': bag_format()})
    check_clip(bag, recording, tolerance=0)


def test_score_says_what_is_sure(tmp_path, run, recording):
    assert export('davis', run, recording, tmp_path / 'all', min_score=0.4).images == 7
    assert export('davis', run, recording, tmp_path / 'none', min_score=0.95).images == 0
    with pytest.raises(ValueError, match='min_score 1.5: must be 0 to 1'):
        export('davis', run, recording, tmp_path / 'other', min_score=1.5)


def test_object_that_is_seldom_sure_costs_no_images(tmp_path, run, recording, skipped):
    for frame in run.frames[:4]:
        frame.objects[2] = output(recording.mask(2, frame.index), 0.3)
    exported = export('davis', run, recording, tmp_path / 'data')
    assert exported.objects_left_out == (2,)
    assert (exported.images, exported.unsure) == (6, 1)  # all but that in which the other disc is unsure
    clip, = opened(tmp_path / 'data', skipped)
    np.testing.assert_array_equal(clip.read([2]).masks[0], recording.mask(1, 3)[None])


def test_images_without_an_object_in_sight_are_left_out(tmp_path, run, recording):
    run.frames = [FrameOutput(0, recording.stamps[0], recording.arrivals[0], {1: output(np.zeros((4, 4), bool))})]
    exported = export('davis', run, recording, tmp_path / 'data')
    assert (exported.images, exported.empty) == (0, 1)


def test_recorded_jpegs_are_copied_as_they_are(tmp_path, run, recording):
    stored = {index: jpeg_message(to_rgb(recording.image(index)), recording.image(index).header, 60)
              for index in range(8)}
    recording.image = stored.__getitem__
    export('davis', run, recording, tmp_path / 'data')
    assert (tmp_path / 'data' / 'JPEGImages' / 'discs' / '00002.jpg').read_bytes() == bytes(stored[2].data)


def test_a_jpeg_with_an_orientation_is_exported_without_it(tmp_path, run, recording):
    """Masks belong to the stored pixels: a reader that rotates the image would separate them."""
    stored = {index: jpeg_message(to_rgb(recording.image(index)), recording.image(index).header, 60)
              for index in range(8)}
    plain = bytes(stored[2].data)
    tiff = b'II*\0' + struct.pack('<IHHHIHH', 8, 1, 0x112, 3, 1, 6, 0) + bytes(4)
    segment = b'\xff\xe1' + struct.pack('>H', len(tiff) + 8) + b'Exif\0\0' + tiff
    stored[2].data = plain[:2] + segment + plain[2:] + bytes(7)
    recording.image = stored.__getitem__
    export('davis', run, recording, tmp_path / 'data')
    assert (tmp_path / 'data' / 'JPEGImages' / 'discs' / '00002.jpg').read_bytes() == plain


@pytest.mark.parametrize('kind', ['coco', 'davis', 'bag'])
def test_recordings_share_a_folder_and_none_is_overwritten(tmp_path, run, recording, kind):
    export(kind, run, recording, tmp_path / 'data')
    with pytest.raises(FileExistsError, match='already exists'):
        export(kind, run, recording, tmp_path / 'data')
    recording.name = 'later/one'
    export(kind, run, recording, tmp_path / 'data')
    assert len(list((tmp_path / 'data').rglob('*later_one*'))) >= 1


def test_unknown_kind_is_refused(tmp_path, run, recording):
    with pytest.raises(ValueError, match="export 'yolo': must be one of coco, davis, bag"):
        export('yolo', run, recording, tmp_path)


# --- formats

@pytest.mark.parametrize('seed', range(8))
def test_run_lengths_are_read_as_they_were_written(seed):
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.random((61, 47)).astype(np.float32), (0, 0), 1 + seed) > 0.5
    np.testing.assert_array_equal(run_length.decode(run_length.encode(mask), 61, 47), mask)


@pytest.mark.parametrize('value', [False, True])
def test_run_lengths_of_one_value(value):
    mask = np.full((5, 7), value)
    np.testing.assert_array_equal(run_length.decode(run_length.encode(mask), 5, 7), mask)


def test_run_lengths_are_those_of_coco():
    """Derived by hand from the format: 2 zeros, 3 ones, 1 zero, 40 ones -> 2, 3, 1, 37."""
    mask = np.array([0] * 2 + [1] * 3 + [0] + [1] * 40, bool).reshape(23, 2, order='F')
    assert run_length.encode(mask) == '231U1'


@pytest.mark.parametrize('highest', [7, 254, 255, 60000])
def test_label_png_keeps_every_id(tmp_path, highest):
    labels = np.zeros((13, 21), np.uint16)
    labels[3:6, 4:11], labels[8:, 15:] = 1, highest
    (tmp_path / 'labels.png').write_bytes(label_png(labels))
    np.testing.assert_array_equal(read_labels(tmp_path / 'labels.png'), labels)


def test_label_png_has_the_colours_of_davis(tmp_path):
    """Objects 1 and 2 are dark red and dark green in DAVIS."""
    (tmp_path / 'labels.png').write_bytes(label_png(np.array([[0, 1, 2, 3]], np.uint16)))
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / 'labels.png')), cv2.COLOR_BGR2RGB)
    assert picture[0].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]


def test_images_with_other_encodings_become_jpegs(tmp_path, run, recording):
    read = recording.image
    recording.image = lambda index: from_pixels(to_rgb(read(index))[..., ::-1], 'bgr8', read(index).header)
    export('davis', run, recording, tmp_path / 'data')
    stored = cv2.imread(str(tmp_path / 'data' / 'JPEGImages' / 'discs' / '00002.jpg'))[..., ::-1]
    assert np.median(np.abs(stored.astype(int) - to_rgb(read(2)))) <= 2
