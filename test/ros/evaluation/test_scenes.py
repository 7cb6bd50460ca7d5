"""The three scenes of the regression gate, recorded as bags, show what their names promise."""
import numpy as np
import pytest

from sam2_ros.evaluation.scenes import HEIGHT, IMAGES, SCENES, WIDTH, main, record_scene
from sam2_ros.messages.conversions import to_nanoseconds, to_rgb
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.tabletop.scene import LABELS


@pytest.fixture(scope='module')
def bags(tmp_path_factory):
    """Return the three recordings, written by the command."""
    folder = tmp_path_factory.mktemp('scenes')
    assert main([str(folder)]) == 0
    recordings = {name: BagRecording(folder / name) for name in SCENES}
    yield recordings
    for recording in recordings.values():
        recording.close()


def visible(recording, object_id):
    """Return the number of pixels of an object in each image."""
    return np.array([np.count_nonzero(recording.truth(index) == object_id) for index in range(IMAGES)])


@pytest.mark.parametrize('name', SCENES)
def test_every_image_has_truth_and_depth_and_every_object_a_prompt(bags, name):
    recording = bags[name]
    assert recording.problems == [] and recording.name == name and len(recording.stamps) == IMAGES
    for index in (0, IMAGES - 1):
        assert to_rgb(recording.image(index)).shape == (HEIGHT, WIDTH, 3)
        assert recording.truth(index).shape == (HEIGHT, WIDTH)
        depth, info = recording.depth(index)
        assert to_nanoseconds(depth.header.stamp) == to_nanoseconds(info.header.stamp) == recording.stamps[index]
        metres = np.frombuffer(depth.data, np.uint16) / 1000
        assert 0.5 < np.median(metres[metres > 0]) < 1.5 and info.k[0] == WIDTH
    truth = recording.truth(0)
    assert {prompt.message.id for prompt in recording.prompts} == set(np.unique(truth)) - {0}
    for prompt in recording.prompts:
        rows, columns = np.nonzero(truth == prompt.message.id)
        box = prompt.message.box
        assert (box.x_offset, box.y_offset) == (columns.min(), rows.min())
        assert (box.width, box.height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert to_nanoseconds(prompt.message.header.stamp) == recording.stamps[0] < prompt.arrival


def test_easy_keeps_everything_in_sight(bags):
    assert bags['easy'].labels == LABELS
    for object_id in LABELS:
        pixels = visible(bags['easy'], object_id)
        assert pixels.min() > 0.7 * pixels.max()


def test_occlusion_hides_the_ball_wholly_and_gives_it_back(bags):
    pixels = visible(bags['occlusion'], 1)
    hidden = np.flatnonzero(pixels == 0)
    assert len(hidden) >= 5 and np.ptp(hidden) == len(hidden) - 1  # once
    assert pixels[0] > 1000 and pixels[-15:].min() > 1000


def test_twins_look_alike_and_pass_each_other(bags):
    scene = SCENES['twins'].tabletop()
    assert scene.objects[1].texture is scene.objects[2].texture and scene.objects[1].solid == scene.objects[2].solid
    places = np.array([[np.nonzero(bags['twins'].truth(index) == object_id)[1].mean() for object_id in (1, 2)]
                       for index in range(IMAGES)])
    assert np.count_nonzero(np.diff(np.sign(places[:, 0] - places[:, 1]))) == 1
    assert visible(bags['twins'], 1).min() < 0.8 * visible(bags['twins'], 1).max()


def test_the_same_scene_has_the_same_pixels_every_time(bags, tmp_path):
    record_scene('twins', tmp_path / 'again')
    with BagRecording(tmp_path / 'again') as again:
        for index in range(0, IMAGES, 10):
            assert again.image(index) == bags['twins'].image(index)
            assert again.depth(index) == bags['twins'].depth(index)
        assert [prompt.message for prompt in again.prompts] == [prompt.message for prompt in bags['twins'].prompts]


def test_bag_that_is_there_is_left_alone(bags, tmp_path, capsys):
    (tmp_path / 'easy').mkdir()
    assert main([str(tmp_path), '--scene', 'easy']) == 1
    assert 'easy: exists already; remove it' in capsys.readouterr().err
