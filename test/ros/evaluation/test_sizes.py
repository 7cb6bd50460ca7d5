"""Recordings whose images change in size: the evaluation allows it, as the node does."""
import json

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')

from rosbags.highlevel import AnyReader

from sam2_core.datasets import SkippedFiles, open_recordings
from sam2_ros import compare
from sam2_ros.evaluate import main
from sam2_ros.evaluation.report.pictures import write_video
from sam2_ros.evaluation.report.results_bag import jpeg_message
from sam2_ros.evaluation.results import Answer, FrameOutput, ObjectOutput, Run
from sam2_ros.evaluation.scoring.samples import AS_SEEN, AT_STAMP, judge
from sam2_ros.messages.conversions import from_pixels, to_rgb
from sam2_ros.msg import Instance
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.recordings.bag_writer import BagWriter
from sam2_ros.recordings.label_bags import bag_format
from sam2_ros.recordings.recording import RecordingError
from testing.discs import HEIGHT, WIDTH, Discs, header

CHANGE, IMAGES = 4, 8  # from this image on they are twice as large
LARGE = 2 * HEIGHT, 2 * WIDTH


class Zoomed(Discs):
    """Discs whose images double in size from image CHANGE on."""

    def size(self, index):
        return LARGE if index >= CHANGE else (HEIGHT, WIDTH)

    def image(self, index):
        return from_pixels(self.scaled(to_rgb(super().image(index)), index), 'rgb8', header(index))

    def truth(self, index):
        truth = super().truth(index)
        return None if truth is None else self.scaled(truth, index)

    def scaled(self, pixels, index):
        return cv2.resize(pixels, self.size(index)[::-1], interpolation=cv2.INTER_NEAREST)


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    discs, path = Zoomed(IMAGES), tmp_path_factory.mktemp('zoomed') / 'bag'
    with BagWriter(path) as writer:
        for index, arrival in enumerate(discs.arrivals):
            image = jpeg_message(to_rgb(discs.image(index)), header(index), 95)
            writer.write('/camera/image/compressed', image, arrival)
            writer.write('/camera/truth', from_pixels(discs.truth(index), 'mono16', header(index)), arrival)
    return path


@pytest.fixture(scope='module')
def output(bag, tmp_path_factory):
    out = tmp_path_factory.mktemp('out')
    assert main([str(bag), '--bag', 'images', '--export', 'coco', 'davis', 'bag', '--min-score', '0', '--device', 'cpu',
                 '--output', str(out)]) == 0
    return out


def test_the_figures_are_those_of_the_masks_in_each_image(output):
    metrics = json.loads((output / 'metrics.json').read_text())
    assert metrics['processed'] == metrics['annotated'] == IMAGES and metrics['problems'] == []
    assert metrics['mean']['J'] > 0.8
    for item in metrics['objects'].values():
        assert item['frames']['index'] == [1, 2, 3, 4, 5, 6] and min(item['frames']['J']) > 0.7
    assert f'{IMAGES} images of {WIDTH} x {HEIGHT}, {LARGE[1]} x {LARGE[0]} pixels' in (
        output / 'report.html').read_text()
    assert compare.main([str(output / 'metrics.json')] * 2) == 0


def test_the_video_keeps_the_size_of_the_first_image(output):
    video, frames = cv2.VideoCapture(str(output / 'overlay.mp4')), []
    while (found := video.read())[0]:
        frames.append(found[1])
    assert len(frames) == IMAGES and {frame.shape[1] for frame in frames} == {WIDTH}
    difference = np.abs(frames[CHANGE][:HEIGHT].astype(int) - frames[CHANGE - 1][:HEIGHT])
    assert np.median(difference) <= 8, 'the same scene at the same scale'


def test_the_bag_of_results_has_every_image_with_its_size(output):
    sizes = {}
    with AnyReader([output / 'results']) as reader:
        for connection, _, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            if hasattr(message, 'height'):
                sizes.setdefault(connection.topic, []).append((message.height, message.width))
    wanted = [Zoomed(IMAGES).size(index) for index in range(IMAGES)]
    assert sizes['/sam2/instances'] == sizes['/sam2/label_image'] == wanted


def test_exported_masks_have_the_size_of_their_image_and_clips_one_size_each(output, tmp_path):
    coco = json.loads(next((output / 'coco' / 'annotations').iterdir()).read_text())
    sizes = {image['id']: (image['height'], image['width']) for image in coco['images']}
    assert set(sizes.values()) == {(HEIGHT, WIDTH), LARGE}
    assert all(tuple(item['segmentation']['size']) == sizes[item['image_id']] for item in coco['annotations'])
    assert sorted(path.name for path in (output / 'davis' / 'JPEGImages').iterdir()) == ['bag', 'bag_part2']
    for kind, formats in (('davis', {}), ('bag', {'formats': {'bag': bag_format()}})):
        skipped = SkippedFiles(tmp_path / f'{kind}.jsonl')
        recordings = open_recordings(output / kind, skipped, **formats)
        assert [len(recording) for recording in recordings] == [CHANGE, IMAGES - CHANGE] and not skipped.all()
        for recording, size in zip(recordings, ((HEIGHT, WIDTH), LARGE), strict=True):
            images, masks = recording.read([0, 1])
            assert {image.shape[:2] for image in images} == {mask.shape[1:] for mask in masks} == {size}


def write_bag(path, truth):
    """Write a bag of raw images of one size with these label images."""
    with BagWriter(path) as writer:
        for index, arrival in enumerate(Discs(len(truth)).arrivals):
            writer.write('/camera/image', Discs(8).image(index), arrival)
            writer.write('/camera/truth', from_pixels(truth[index], 'mono16', header(index)), arrival)
    return path


def test_a_label_image_of_another_size_costs_its_image_alone(tmp_path):
    """The report names both sizes, and the prompt comes from the next label image."""
    truth = [Discs(8).truth(index) for index in range(6)]
    truth[0] = truth[0][:50]
    bag = write_bag(tmp_path / 'bag', truth)
    with BagRecording(bag) as recording, pytest.raises(RecordingError, match='/camera/truth at stamp 50.000: label '
                                                       'image of 160 x 50 pixels: must be 160 x 120, as its image'):
        recording.truth(0)
    assert main([str(bag), '--device', 'cpu', '--bag', 'none', '--no-video', '--output', str(tmp_path / 'out')]) == 0
    metrics = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    assert metrics['annotated'] == 5 and metrics['prompts'] == {'accepted': 2, 'refused': []}
    problem, = metrics['problems']
    assert 'label image of 160 x 50 pixels: must be 160 x 120' in problem
    assert all(item['frames']['index'] == [2, 3, 4] for item in metrics['objects'].values())


def outcome(mask):
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = (int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return ObjectOutput(Instance.TRACKED, 0.9, 0.9, (x0, y0, x1, y1), np.packbits(mask[y0:y1, x0:x1]))


def test_what_a_robot_had_of_an_image_of_another_size_is_scaled_to_the_truth():
    """The output of image 3 is the newest when image 4, twice as large, arrives; the disc has not moved."""
    discs = Zoomed(5)
    discs.mask = lambda object_id, index: Discs.mask(discs, object_id, 0)
    mask = Discs.mask(Discs(), 1, 0)
    frames = [FrameOutput(3, discs.stamps[3], discs.arrivals[3] + 1, {1: outcome(mask)}, size=(HEIGHT, WIDTH))]
    run = Run('zoomed', 'real-time', 1.0, 5, HEIGHT, WIDTH, {}, frames,
              [Answer(discs.arrivals[0], discs.stamps[0], 'SET', 1, '', True, '', discs.stamps[0])])
    judged = judge(run, discs)
    assert judged.problems == []
    assert [sample.j for sample in judged.samples[AT_STAMP][1]] == [1.0]
    assert judged.samples[AS_SEEN][1][-1].index == 4 and judged.samples[AS_SEEN][1][-1].j == 1.0


@pytest.mark.parametrize('size', [(60, 160), (240, 80), (121, 161)])
def test_an_image_of_another_shape_is_shown_as_a_whole_between_bars(tmp_path, size):
    discs = Discs(2)
    first = discs.image(0)
    discs.image = lambda index: from_pixels(np.full((*size, 3), 255, np.uint8), 'rgb8', header(1)) if index else first
    discs.truth = lambda index: None
    assert write_video(Run('discs', 'lock-step', 1.0, 2, HEIGHT, WIDTH), discs, tmp_path / 'a.mp4')
    video = cv2.VideoCapture(str(tmp_path / 'a.mp4'))
    video.read()
    shown = video.read()[1][:HEIGHT, :, 0] > 128
    rows, columns = np.nonzero(shown)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    scale = min(HEIGHT / size[0], WIDTH / size[1])
    assert abs(height - scale * size[0]) <= 3 and abs(width - scale * size[1]) <= 3
