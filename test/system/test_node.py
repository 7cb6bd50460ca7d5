"""One node process with one camera: prompts, tracking, corrections, refusals, image encodings."""
import math
from time import time_ns

import numpy as np
import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from sam2_core.metrics import iou
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import Instance, Prompt
from testing.camera_images import image_message, point, roi
from testing.peer import FRAME_ID, Scene, ids, instance_of, running_node, whole_mask
from testing.waiting import PROMPT_TIMEOUT

GOOD = 0.6  # IoU; nano reaches about 0.9 on this scene
SCENE = Scene()


@pytest.fixture(scope='module')
def node(tmp_path_factory):
    with running_node(tmp_path_factory.mktemp('node')) as peer:
        yield peer


def good(array, time: float, disc: int, scene: Scene = SCENE, object_id: int | None = None) -> bool:
    """Return whether an object, by default the one with the disc's number, covers a disc well."""
    return iou(whole_mask(array, object_id or disc), scene.mask(time, disc)) > GOOD


def mask_message(mask: np.ndarray, peer) -> Image:
    return image_message(mask.astype(np.uint8) * 255, peer.header(), 'mono8')


# --- prompts

def test_a_prompt_gives_an_instance_in_the_image_it_was_applied_to(peer):
    status = peer.prompt(Prompt(id=7, box=roi(SCENE.box(0, 1)), label='disc'), SCENE.image(0))
    assert status.accepted and status.id == 7 and status.reason == ''
    array = peer.instances_at(status.header.stamp)
    assert (array.width, array.height) == (SCENE.width, SCENE.height)
    (instance,) = array.instances
    assert (instance.id, instance.label, instance.state) == (7, 'disc', Instance.TRACKED)
    assert 0.5 < instance.score <= 1 and 0.5 < instance.visibility <= 1
    assert instance.last_seen == array.header.stamp
    assert good(array, 0, 1, object_id=7)
    assert instance.area == whole_mask(array, 7).sum()
    assert (instance.centroid_x, instance.centroid_y) == pytest.approx(SCENE.centre(0, 1), abs=10)
    assert not instance.has_depth


def test_a_click_and_a_mask_are_prompts_too(peer):
    assert peer.prompt(Prompt(id=1, points=[point(*SCENE.centre(0, 1))]), SCENE.image(0)).accepted
    status = peer.prompt(Prompt(id=2, mask=mask_message(SCENE.mask(0, 2), peer)), SCENE.image(0))
    assert status.accepted
    array = peer.instances_at(status.header.stamp)
    assert good(array, 0, 2)
    assert whole_mask(array, 1)[round(SCENE.centre(0, 1)[1]), round(SCENE.centre(0, 1)[0])]


def test_one_object_is_followed_over_thirty_images(peer):
    peer.start_object(1, SCENE.box(0, 1), SCENE.image(0))
    overlaps = []
    for time in range(1, 31):
        array = peer.process_image(SCENE.image(time))
        assert instance_of(array, 1).state == Instance.TRACKED
        overlaps.append(iou(whole_mask(array, 1), SCENE.mask(time, 1)))
    assert min(overlaps) > 0.5 and np.mean(overlaps) > GOOD, overlaps


def test_two_objects_added_at_different_times_keep_their_ids_and_labels(peer):
    peer.start_object(30, SCENE.box(0, 1), SCENE.image(0), 'red')
    for time in range(1, 4):
        peer.process_image(SCENE.image(time))
    peer.start_object(5, SCENE.box(4, 2), SCENE.image(4), 'blue')
    for time in range(5, 15):
        array = peer.process_image(SCENE.image(time))
        assert [(i.id, i.label) for i in sorted(array.instances, key=lambda i: i.id)] == [(5, 'blue'), (30, 'red')]
    assert good(array, 14, 1, object_id=30) and good(array, 14, 2, object_id=5)


def test_id_zero_is_answered_with_the_id_that_was_picked(peer):
    peer.start_object(1, SCENE.box(0, 1), SCENE.image(0))
    status = peer.prompt(Prompt(box=roi(SCENE.box(0, 2))), SCENE.image(0))
    assert status.accepted and status.id not in (0, 1)
    assert ids(peer.instances_at(status.header.stamp)) == [1, status.id]


@pytest.mark.parametrize('kind', ['click', 'mask'])
def test_a_correction_takes_a_wrong_part_away_and_lasts(peer, kind):
    """The first prompt stays in memory: as wrong as it is here, nano needs three corrections to give it up."""
    both = SCENE.mask(0, 1) | SCENE.mask(0, 2)
    status = peer.prompt(Prompt(id=1, mask=mask_message(both, peer), label='x'), SCENE.image(0))
    column, row = (round(value) for value in SCENE.centre(0, 2))
    for array in (peer.instances_at(status.header.stamp), peer.process_image(SCENE.image(0))):
        assert whole_mask(array, 1)[row, column]
    correction = Prompt(id=1, action=Prompt.REFINE)
    if kind == 'click':
        correction.points = [point(column, row, label=0)]
    else:
        correction.mask = mask_message(SCENE.mask(0, 1), peer)
    arrays = []
    for _ in range(3):
        status = peer.prompt(correction, SCENE.image(0))
        assert status.accepted, status.reason
        arrays.append(peer.instances_at(status.header.stamp))
    for array in (*arrays, peer.process_image(SCENE.image(0)), peer.process_image(SCENE.image(0))):
        assert not whole_mask(array, 1)[row, column]
        assert good(array, 0, 1)
        assert (instance_of(array, 1).id, instance_of(array, 1).label) == (1, 'x')


def test_correction_by_clicks_keeps_the_object(peer):
    peer.start_object(1, SCENE.box(0, 1), SCENE.image(0), 'x')
    clicks = [point(*SCENE.centre(1, 1)), point(*SCENE.centre(1, 2), label=0)]
    status = peer.prompt(Prompt(id=1, action=Prompt.REFINE, points=clicks, label='y'), SCENE.image(1))
    assert status.accepted, status.reason
    array = peer.instances_at(status.header.stamp)
    assert [(i.id, i.label) for i in array.instances] == [(1, 'y')] and good(array, 1, 1)


def test_set_of_a_known_id_starts_the_object_again(peer):
    peer.start_object(1, SCENE.box(0, 1), SCENE.image(0), 'first')
    array = peer.start_object(1, SCENE.box(0, 2), SCENE.image(0), 'second')
    assert ids(array) == [1] and instance_of(array, 1).label == 'second'
    assert good(array, 0, 2, object_id=1)


def test_remove_clear_and_reset_forget(peer):
    for object_id in (1, 2):
        peer.start_object(object_id, SCENE.box(0, object_id), SCENE.image(0))
    assert peer.prompt(Prompt(id=1, action=Prompt.REMOVE), SCENE.image(0)).accepted
    assert ids(peer.process_image(SCENE.image(0))) == [2]
    assert peer.prompt(Prompt(action=Prompt.CLEAR), SCENE.image(0)).accepted
    assert ids(peer.process_image(SCENE.image(0))) == []
    peer.start_object(9, SCENE.box(0, 1), SCENE.image(0))
    assert peer.ask(Trigger, 'reset').success
    assert ids(peer.process_image(SCENE.image(0))) == []


REFUSED = [
    (Prompt(id=1), 'prompt without content'),
    (Prompt(id=1, points=[point(math.nan, 5)]), 'point (nan, 5): must be finite'),
    (Prompt(id=1, points=[point(1000, 5)]), 'point (1000, 5): outside the image of 480 x 360 pixels'),
    (Prompt(id=1, box=roi((500, 10, 520, 20))), 'outside the image of 480 x 360 pixels'),
    (Prompt(id=1, mask=image_message(np.ones((20, 30), np.uint8), Header(), 'mono8')),
     'mask of shape (20, 30): must be (360, 480)'),
    (Prompt(id=1, mask=Image(width=480, height=360, encoding='rgb8')), "mask with encoding 'rgb8': must be mono8"),
    (Prompt(id=77, action=Prompt.REFINE, points=[point(5, 5)]), 'id 77 is not known (known: 9): SET it first'),
    (Prompt(id=77, action=Prompt.REMOVE), 'id 77 is not known (known: 9)'),
    (Prompt(id=1, action=200, points=[point(5, 5)]), 'action 200: must be one of'),
]


@pytest.mark.parametrize('way', ['topic', 'service'])
def test_refused_prompts_say_why_and_harm_nobody(peer, way):
    peer.start_object(9, SCENE.box(0, 1), SCENE.image(0), 'kept')
    for prompt, reason in REFUSED:
        prompt.header = peer.process_image(SCENE.image(0)).header
        if way == 'topic':
            answer = peer.prompt(prompt, SCENE.image(0))
            assert answer.header == prompt.header
        else:
            future = peer.set_prompt(prompt)
            peer.show_until(future.done, SCENE.image(0))
            answer = future.result()
            assert answer.instance == Instance()
        assert not answer.accepted and reason in answer.reason
        assert answer.id == prompt.id
    array = peer.process_image(SCENE.image(1))
    assert [(i.id, i.label) for i in array.instances] == [(9, 'kept')] and good(array, 1, 1, object_id=9)


def test_more_objects_than_the_limit_are_refused_and_the_limit_can_be_raised(peer):
    assert peer.set_parameter('max_objects', 1)[0]
    try:
        peer.start_object(1, SCENE.box(0, 1), SCENE.image(0))
        status = peer.prompt(Prompt(box=roi(SCENE.box(0, 2))), SCENE.image(0))
        assert not status.accepted and 'max_objects is 1' in status.reason
    finally:
        assert peer.set_parameter('max_objects', 32)[0]
    assert peer.prompt(Prompt(box=roi(SCENE.box(0, 2))), SCENE.image(0)).accepted


# --- the service

def test_set_prompt_answers_with_the_instance_that_is_published(peer):
    future = peer.set_prompt(Prompt(box=roi(SCENE.box(0, 1)), label='asked'))
    peer.show_until(future.done, SCENE.image(0))
    answer = future.result()
    assert answer.accepted and answer.reason == '' and answer.id > 0
    array = peer.wait_for(lambda: peer.instances_at(answer.header.stamp), 'the same image on the topic')
    assert array.header == answer.header
    assert answer.instance == instance_of(array, answer.id) and answer.instance.label == 'asked'
    peer.wait_for(lambda: peer.statuses, 'the same answer on ~/prompt_status')
    assert [(status.id, status.accepted, status.header) for status in peer.statuses] == [
        (answer.id, True, answer.header)]


def test_a_waiting_call_blocks_nothing(peer):
    waiting = [peer.set_prompt(Prompt(id=object_id, box=roi(SCENE.box(0, object_id)))) for object_id in (1, 2)]
    assert peer.state() == 'active'
    assert peer.parameter('max_objects') == 32
    topic = peer.prompt(Prompt(id=5, action=Prompt.REMOVE), image=None)
    assert not topic.accepted
    assert not any(future.done() for future in waiting), 'no image was shown yet'
    peer.show_until(lambda: all(future.done() for future in waiting), SCENE.image(0))
    assert [future.result().id for future in waiting] == [1, 2]
    assert all(future.result().accepted for future in waiting)


# --- the camera

def test_quality_of_service_is_as_documented(peer):
    def reliability(infos) -> list:
        return [info.qos_profile.reliability for info in infos if info.node_name == 'sam2']
    assert reliability(peer.node.get_subscriptions_info_by_topic('/image')) == [ReliabilityPolicy.BEST_EFFORT]
    assert reliability(peer.node.get_subscriptions_info_by_topic('/sam2/prompt')) == [ReliabilityPolicy.RELIABLE]
    for name in ('instances', 'label_image', 'overlay', 'prompt_status'):
        assert reliability(peer.node.get_publishers_info_by_topic(f'/sam2/{name}')) == [ReliabilityPolicy.RELIABLE]


def test_outputs_carry_the_stamp_of_the_image_and_an_honest_latency(peer):
    message = image_message(SCENE.image(0), peer.header())
    array = peer.process_image(message)
    assert array.header == message.header and array.header.frame_id == FRAME_ID
    assert 0 < to_nanoseconds(array.latency) < time_ns() - to_nanoseconds(array.header.stamp)


def test_latency_follows_simulated_time(peer):
    clock = peer.node.create_publisher(Clock, '/clock', QoSProfile(depth=1))
    assert peer.set_parameter('use_sim_time', True)[0]
    try:
        now = Clock()
        now.clock.sec, now.clock.nanosec = 100, 500_000_000
        header = Header(frame_id=FRAME_ID)
        header.stamp.sec = 100
        message = image_message(SCENE.image(0), header)

        def latency_is_half_a_second():
            clock.publish(now)
            peer.send(message)
            array = peer.instances_at(header.stamp)
            return array and (array.latency.sec, array.latency.nanosec) == (0, 500_000_000)
        peer.wait_for(latency_is_half_a_second, 'latency by the simulated clock')
    finally:
        assert peer.set_parameter('use_sim_time', False)[0]
        peer.node.destroy_publisher(clock)


def test_images_that_come_too_fast_are_dropped_counted_and_never_late(peer):
    messages = [image_message(SCENE.image(0), peer.header()) for _ in range(20)]
    for message in messages:
        peer.send(message)
    peer.wait_for(lambda: peer.instances_at(messages[-1].header.stamp), 'the newest image')
    stamps = [(array.header.stamp.sec, array.header.stamp.nanosec) for array in peer.instances]
    assert stamps == sorted(stamps)
    dropped = sum(array.dropped for array in peer.instances)
    assert len(peer.instances) < 20
    assert len(peer.instances) + dropped <= 20


def test_a_camera_that_stops_and_comes_back(peer):
    peer.start_object(1, SCENE.box(0, 1), SCENE.image(0), 'disc')
    assert peer.set_parameter('prompt_timeout', 0.5)[0]
    try:
        status = peer.prompt(Prompt(id=2, box=roi(SCENE.box(0, 2))), image=None)
        assert not status.accepted
        assert status.reason == 'no image on /image for 0.5 s: is the camera running?'
        answer = peer.set_prompt(Prompt(id=2, box=roi(SCENE.box(0, 2))))
        peer.wait_for(answer.done, 'the service to give up')
        assert not answer.result().accepted and 'no image on /image' in answer.result().reason
    finally:
        assert peer.set_parameter('prompt_timeout', PROMPT_TIMEOUT)[0]
    peer.restart_camera(SCENE.image(0))
    for time in range(1, 4):
        array = peer.process_image(SCENE.image(time))
    assert [(i.id, i.label) for i in array.instances] == [(1, 'disc')] and good(array, 3, 1)


def test_objects_survive_a_change_of_the_image_size(peer):
    for object_id in (1, 2):
        peer.start_object(object_id, SCENE.box(0, object_id), SCENE.image(0))
    for time, size in enumerate([(640, 480), (640, 480), (320, 240), (480, 360), (480, 360)], start=1):
        scene = Scene(*size)
        array = peer.process_image(scene.image(time))
        assert (array.width, array.height) == size
        assert good(array, time, 1, scene) and good(array, time, 2, scene)


def bad_images() -> list[Image]:
    image = image_message(SCENE.image(0), Header())

    def changed(**values) -> Image:
        copy = Image(header=image.header, height=image.height, width=image.width, encoding=image.encoding,
                     step=image.step, data=image.data)
        for name, value in values.items():
            setattr(copy, name, value)
        return copy
    return [changed(step=7), changed(encoding='32FC1'), changed(encoding='nonsense'), changed(height=0, width=0),
            changed(data=image.data[:1000]), changed(step=image.step + 1), Image()]


def test_bad_images_are_skipped_counted_and_named_in_the_log(peer):
    peer.start_object(1, SCENE.box(0, 1), SCENE.image(0))
    for bad in bad_images():
        bad.header = peer.header()
        peer.send(bad)
        array = peer.process_image(SCENE.image(0))
        assert array.dropped == 1 and good(array, 0, 1)

    def named() -> bool:  # the log is throttled: a warning about an earlier image may suppress it
        bad = bad_images()[0]
        bad.header = peer.header()
        peer.send(bad)
        peer.process_image(SCENE.image(0))
        return '/image: image skipped: step 7: a row of 480 pixels rgb8 has 1440 bytes' in peer.process.log

    peer.wait_for(named, 'the reason in the log')
    assert 'Traceback' not in peer.process.log


@pytest.mark.parametrize('encoding', ['bgr8', 'rgba8', 'bgra8', 'mono8', 'yuv422_yuy2'])
def test_the_camera_may_speak_any_common_encoding(peer, encoding):
    rgb = SCENE.image(0)
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    pixels = {'bgr8': lambda: rgb[..., ::-1], 'rgba8': lambda: np.concatenate((rgb, alpha), -1),
              'bgra8': lambda: np.concatenate((rgb[..., ::-1], alpha), -1), 'mono8': lambda: rgb[..., 0],
              'yuv422_yuy2': lambda: yuyv(rgb)}[encoding]()
    future = peer.set_prompt(Prompt(id=1, box=roi(SCENE.box(0, 1))))
    while not future.done():
        array = peer.process_image(image_message(pixels, peer.header(), encoding))
    assert future.result().accepted, future.result().reason
    array = peer.wait_for(lambda: peer.instances_at(future.result().header.stamp), 'the prompted image')
    assert good(array, 0, 1)


def yuyv(rgb: np.ndarray) -> np.ndarray:
    red, green, blue = (rgb[..., channel].astype(float) for channel in range(3))
    luma = 16 + 0.257 * red + 0.504 * green + 0.098 * blue
    u = (128 - 0.148 * red - 0.291 * green + 0.439 * blue)[:, ::2]
    v = (128 + 0.439 * red - 0.368 * green - 0.071 * blue)[:, ::2]
    colour = np.stack((u, v), -1).reshape(luma.shape)
    return np.stack((luma, colour), -1).round().astype(np.uint8)


# --- pictures

def test_label_image_and_overlay_are_published_to_whoever_subscribes(peer):
    for object_id in (1, 2):
        peer.start_object(object_id, SCENE.box(0, object_id), SCENE.image(0))
    labels, overlays = peer.subscribe_pictures('label_image'), peer.subscribe_pictures('overlay')

    def complete():
        peer.process_image(SCENE.image(0))
        pictured = [[message.header for message in messages] for messages in (labels, overlays)]
        return next((array for array in peer.instances if all(array.header in headers for headers in pictured)), None)
    array = peer.wait_for(complete, 'an image with a label image and an overlay')
    (label,) = (m for m in labels if m.header == array.header)
    (overlay,) = (m for m in overlays if m.header == array.header)
    assert (label.encoding, label.step) == ('mono16', 2 * SCENE.width)
    pixels = np.frombuffer(label.data, np.uint16).reshape(SCENE.height, SCENE.width)
    for object_id in (1, 2):
        np.testing.assert_array_equal(pixels == object_id, whole_mask(array, object_id))
    assert (overlay.encoding, overlay.height, overlay.width) == ('rgb8', SCENE.height, SCENE.width)
    difference = np.abs(np.frombuffer(overlay.data, np.uint8).reshape(SCENE.image(0).shape).astype(int)
                        - SCENE.image(0)).sum(-1)
    column, row = (round(value) for value in SCENE.centre(0, 1))
    assert difference[row, column] > 30 and difference[-1, -1] == 0


def test_an_object_out_of_sight_stays_listed_without_a_mask(peer):
    peer.start_object(1, SCENE.box(0, 1), SCENE.image(0))
    seen = peer.process_image(SCENE.image(1))
    array = peer.process_image(SCENE.image(2, hidden=(1,)))
    (instance,) = array.instances
    assert instance.state == Instance.OCCLUDED and instance.visibility < 0.5
    assert instance.last_seen == seen.header.stamp
    assert instance.roi.width == 0 and instance.mask.width == 0 and instance.area == 0
