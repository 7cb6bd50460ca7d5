"""One node and one model with several cameras: separate topics, ids and histories, raw and compressed images."""
import contextlib

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import Image

from sam2_core.metrics import iou
from sam2_ros.msg import Prompt
from sam2_ros.srv import SegmentImage
from testing.camera_images import roi
from testing.domains import own_domain
from testing.node_process import NodeProcess
from testing.peer import Peer, Scene, ids, running_node, whole_mask
from testing.track_client import CANCELLED, SUCCEEDED, TrackClient

SCENES = {'front': Scene(), 'wrist': Scene(320, 240)}


@pytest.fixture(scope='module', params=[False, True], ids=['raw', 'compressed'])
def cameras(request, tmp_path_factory):
    """Yield a peer for each camera of a node."""
    folder = tmp_path_factory.mktemp('cameras')
    with own_domain() as domain, contextlib.ExitStack() as stack:
        process = NodeProcess(domain, folder / 'node.log', {
            'cameras': '[front,wrist]', 'image_transport': 'compressed' if request.param else 'raw',
            'keep_objects': folder / 'objects.safetensors'})
        stack.callback(process.kill)
        peers = {name: stack.enter_context(contextlib.closing(Peer(domain, process, compressed=request.param,
                                                                   camera=name))) for name in SCENES}
        for name, peer in peers.items():
            peer.wait_until_active(SCENES[name].image(0))
        yield peers


@pytest.fixture
def front_and_wrist(cameras):
    for peer in cameras.values():
        peer.reset()
        peer.instances.clear()
        peer.statuses.clear()
    return cameras['front'], cameras['wrist']


def good(array, name: str, time: float, disc: int, object_id: int) -> bool:
    return iou(whole_mask(array, object_id), SCENES[name].mask(time, disc)) > 0.6


def test_each_camera_has_an_action_of_its_own(front_and_wrist):
    peers = dict(zip(SCENES, front_and_wrist, strict=True))
    goals = {name: TrackClient(peer).send(Prompt(id=1, box=roi(SCENES[name].box(0, 1)), label=name))
             for name, peer in peers.items()}
    for name, goal in goals.items():
        assert goal.follow(SCENES[name].image(0)).label == name
    assert goals['front'].cancel()[0] == CANCELLED
    shown = peers['wrist'].process_image(SCENES['wrist'].image(0))
    assert ids(shown) == [1] and not goals['wrist'].done()
    peers['wrist'].reset()
    assert goals['wrist'].end()[0] == SUCCEEDED
    assert {message.instance.label for message in goals['wrist'].feedback} == {'wrist'}


def test_ids_are_per_camera_and_each_tracks_its_own(front_and_wrist):
    front, wrist = front_and_wrist
    front.start_object(1, SCENES['front'].box(0, 1), SCENES['front'].image(0), 'red')
    wrist.start_object(1, SCENES['wrist'].box(0, 2), SCENES['wrist'].image(0), 'blue')
    wrist.start_object(2, SCENES['wrist'].box(0, 1), SCENES['wrist'].image(0))
    for time in range(1, 8):
        seen_front = front.process_image(SCENES['front'].image(time))
        seen_wrist = wrist.process_image(SCENES['wrist'].image(time))
        assert (seen_front.width, seen_wrist.width) == (480, 320)
        assert [(i.id, i.label) for i in seen_front.instances] == [(1, 'red')]
        assert [(i.id, i.label) for i in seen_wrist.instances] == [(1, 'blue'), (2, '')]
    assert good(seen_front, 'front', 7, 1, 1)
    assert good(seen_wrist, 'wrist', 7, 2, 1) and good(seen_wrist, 'wrist', 7, 1, 2)


def test_each_keeps_its_objects_over_cleanup(front_and_wrist):
    front, wrist = front_and_wrist
    front.start_object(1, SCENES['front'].box(0, 1), SCENES['front'].image(0), 'red')
    wrist.start_object(7, SCENES['wrist'].box(0, 2), SCENES['wrist'].image(0), 'blue')
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP,
                       Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert front.change_state(transition)
    for name, peer, expected in (('front', front, (1, 'red')), ('wrist', wrist, (7, 'blue'))):
        peer.wait_for_camera(SCENES[name].image(1))
        array = peer.process_image(SCENES[name].image(2))
        assert [(instance.id, instance.label) for instance in array.instances] == [expected]
    assert good(array, 'wrist', 2, 2, 7)


def test_images_that_come_together_are_both_processed(front_and_wrist):
    front, wrist = front_and_wrist
    front.start_object(1, SCENES['front'].box(0, 1), SCENES['front'].image(0))
    wrist.start_object(1, SCENES['wrist'].box(0, 1), SCENES['wrist'].image(0))
    for time in range(1, 8):
        messages = {peer: peer.message(SCENES[name].image(time))
                    for name, peer in (('front', front), ('wrist', wrist))}
        for peer, message in messages.items():
            peer.send(message)
        arrays = [peer.wait_for(lambda peer=peer, message=message: peer.instances_at(message.header.stamp), 'instances')
                  for peer, message in messages.items()]
        assert [array.header for array in arrays] == [message.header for message in messages.values()]
    assert good(arrays[0], 'front', 7, 1, 1) and good(arrays[1], 'wrist', 7, 1, 1)


def test_each_has_its_services_and_its_history(front_and_wrist):
    front, wrist = front_and_wrist
    old = front.process_image(SCENES['front'].image(0))
    front.process_image(SCENES['front'].image(5))
    wrist.process_image(SCENES['wrist'].image(0))
    prompts = [Prompt(header=old.header, box=roi(SCENES['front'].box(0, 1)))]
    answer = front.ask(SegmentImage, 'segment_image', SegmentImage.Request(prompts=prompts))
    assert answer.success and answer.result.header == old.header and answer.result.width == 480
    answer = wrist.ask(SegmentImage, 'segment_image', SegmentImage.Request(
        prompts=[Prompt(box=roi(SCENES['wrist'].box(0, 1)))]))
    assert answer.success and answer.result.width == 320
    front.start_object(1, SCENES['front'].box(0, 1), SCENES['front'].image(0))
    wrist.start_object(1, SCENES['wrist'].box(0, 1), SCENES['wrist'].image(0))
    wrist.reset()
    assert ids(front.process_image(SCENES['front'].image(0))) == [1]
    assert ids(wrist.process_image(SCENES['wrist'].image(0))) == []


def test_one_that_falls_silent_or_sends_rubbish_is_not_the_others_trouble(front_and_wrist):
    front, wrist = front_and_wrist
    front.start_object(1, SCENES['front'].box(0, 1), SCENES['front'].image(0))
    pictures = front.subscribe(Image, 'label_image')
    wrist.send_prompt(Prompt(id=5, box=roi((0, 0, 9, 9))))  # waits for an image of its camera
    message = wrist.message(SCENES['wrist'].image(0))
    message.data = message.data[:100]
    wrist.send(message)
    for time in range(1, 6):
        array = front.process_image(SCENES['front'].image(time))
    assert good(array, 'front', 5, 1, 1)
    front.wait_for(lambda: pictures, 'the label image')
    assert np.frombuffer(pictures[-1].data, np.uint16).max() == 1
    assert ids(wrist.process_image(SCENES['wrist'].image(0))) == [5]


@pytest.mark.parametrize(('names', 'reason'), [
    ('[front,front]', "cameras 'front': named twice"), ('["2nd"]', "cameras '2nd': a name consists of letters")])
def test_names_that_cannot_be_topics_end_the_process_with_the_reason(tmp_path, names, reason):
    with running_node(tmp_path, {'cameras': names}, active=False) as peer:
        assert peer.process.wait() == 1
        assert reason in peer.process.log
