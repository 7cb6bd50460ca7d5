"""~/segment_image and ~/segment_all over DDS, with raw and with compressed images from the camera."""
import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sam2_core.metrics import iou
from sam2_ros.msg import Prompt
from sam2_ros.srv import SegmentAll, SegmentImage
from testing.camera_images import image_message, point, roi
from testing.peer import Scene, ids, running_node, whole_mask

SCENE = Scene()


@pytest.fixture(scope='module', params=[False, True], ids=['raw', 'compressed'])
def node(request, tmp_path_factory):
    parameters = {'history_seconds': 60.0, 'image_transport': 'compressed' if request.param else 'raw'}
    with running_node(tmp_path_factory.mktemp('one_shot'), parameters, compressed=request.param) as peer:
        yield peer


def segment(peer, *prompts: Prompt, **fields) -> SegmentImage.Response:
    return peer.ask(SegmentImage, 'segment_image', SegmentImage.Request(prompts=list(prompts), **fields))


def test_prompts_on_the_newest_image_while_something_else_is_tracked(peer):
    peer.start_object(1, SCENE.box(0, 1), SCENE.image(0))
    newest = peer.process_image(SCENE.image(3))
    answer = segment(peer, Prompt(box=roi(SCENE.box(3, 2)), label='blue'),
                     Prompt(id=9, points=[point(*SCENE.centre(3, 1))]))
    assert answer.success, answer.reason
    assert answer.result.header == newest.header
    assert [(instance.id, instance.label) for instance in answer.result.instances] == [(1, 'blue'), (9, '')]
    assert iou(whole_mask(answer.result, 1), SCENE.mask(3, 2)) > 0.6
    after = peer.process_image(SCENE.image(4))
    assert ids(after) == [1] and iou(whole_mask(after, 1), SCENE.mask(4, 1)) > 0.6


def test_an_older_image_and_an_image_of_ones_own(peer):
    old = peer.process_image(SCENE.image(0))
    peer.process_image(SCENE.image(20))
    answer = segment(peer, Prompt(header=old.header, box=roi(SCENE.box(0, 1))))
    assert answer.result.header == old.header
    assert iou(whole_mask(answer.result, 1), SCENE.mask(0, 1)) > 0.6
    mine = image_message(SCENE.image(30), Header(frame_id='album'))
    answer = segment(peer, Prompt(box=roi(SCENE.box(30, 2))), image=mine)
    assert answer.result.header == mine.header
    assert iou(whole_mask(answer.result, 1), SCENE.mask(30, 2)) > 0.6


def test_three_masks_of_an_ambiguous_click_best_first(peer):
    peer.process_image(SCENE.image(0))
    answer = segment(peer, Prompt(id=3, points=[point(*SCENE.centre(0, 1))]), multimask=True)
    assert [instance.id for instance in answer.result.instances] == [3, 3, 3]
    scores = [instance.score for instance in answer.result.instances]
    assert scores == sorted(scores, reverse=True)


def test_everything_in_the_image_largest_first_while_tracking_goes_on(peer):
    peer.start_object(1, SCENE.box(0, 1), SCENE.image(0))
    request = SegmentAll.Request(points_per_side=12, min_score=0.5, min_stability=0.6, time_limit=20.0)
    future = peer.call(SegmentAll, 'segment_all', request)
    arrays = []
    while not future.done():
        arrays.append(peer.process_image(SCENE.image(len(arrays) / 10)))
    answer = future.result()
    assert answer.success and answer.complete
    areas = [instance.area for instance in answer.result.instances]
    assert areas == sorted(areas, reverse=True) and len(areas) >= 1
    assert ids(answer.result) == list(range(1, len(areas) + 1))
    assert len(arrays) >= 3, 'images were processed meanwhile'
    assert all(ids(array) == [1] for array in arrays)
    assert iou(whole_mask(arrays[-1], 1), SCENE.mask((len(arrays) - 1) / 10, 1)) > 0.6


def test_the_time_is_bounded(peer):
    peer.process_image(SCENE.image(0))
    answer = peer.ask(SegmentAll, 'segment_all', SegmentAll.Request(points_per_side=64, time_limit=0.01))
    assert answer.success and not answer.complete


@pytest.mark.parametrize(('prompts', 'fields', 'reason'), [
    ([], {}, 'no prompts: give at least one'),
    ([Prompt(box=roi((0, 0, 5, 5))), Prompt(points=[point(5000, 5)])], {},
     'prompt 2: point (5000, 5): outside the image'),
    ([Prompt(box=roi((0, 0, 5, 5)))], {'image': Image(width=4, height=4, encoding='bayer')},
     "image: encoding 'bayer'")])
def test_what_cannot_be_done_is_refused_by_name(peer, prompts, fields, reason):
    peer.process_image(SCENE.image(0))
    answer = segment(peer, *prompts, **fields)
    assert not answer.success and answer.reason.startswith(reason)
    assert not answer.result.instances


def test_while_inactive_it_says_so(peer):
    assert peer.change_state(Transition.TRANSITION_DEACTIVATE)
    try:
        assert segment(peer, Prompt(box=roi((0, 0, 5, 5)))).reason == 'the node is inactive: activate it first'
        assert peer.ask(SegmentAll, 'segment_all').reason == 'the node is inactive: activate it first'
    finally:
        assert peer.change_state(Transition.TRANSITION_ACTIVATE)
        peer.wait_until_active(SCENE.image(0))
    assert np.isfinite(segment(peer, Prompt(box=roi(SCENE.box(0, 1)))).result.instances[0].score)
