"""Late prompts over DDS, with raw and with compressed images."""
import pytest
from builtin_interfaces.msg import Time
from std_msgs.msg import Header

from sam2_core.metrics import iou
from sam2_ros.msg import Instance, InstanceEvent, Prompt
from testing.camera_images import roi
from testing.peer import Scene, ids, instance_of, running_node, whole_mask
from testing.waiting import PATIENCE, PROMPT_TIMEOUT

SCENE = Scene()
STEP = 1.5  # scene time between images: 9 pixels


@pytest.fixture(scope='module', params=[False, True], ids=['raw', 'compressed'])
def node(request, tmp_path_factory):
    parameters = {'history_seconds': 60.0, 'image_transport': 'compressed' if request.param else 'raw'}
    with running_node(tmp_path_factory.mktemp('late'), parameters, compressed=request.param) as peer:
        yield peer


def stream(peer, count: int) -> list[Header]:
    """Show the first images of the scene; return their headers."""
    return [peer.process_image(SCENE.image(STEP * number)).header for number in range(count)]


def until_it_joins(peer, first: int, object_id: int):
    """Show images until the object is published; return the instances and the number of that image."""
    for number in range(first, first + 12):
        array = peer.process_image(SCENE.image(STEP * number))
        if object_id in ids(array):
            return array, number
    raise AssertionError(f'object {object_id} has not joined')


def drawn_on(header: Header, number: int, disc: int, **fields) -> Prompt:
    return Prompt(header=header, box=roi(SCENE.box(STEP * number, disc)), **fields)


def test_the_object_is_started_where_it_was_and_reported_where_it_is(peer):
    headers = stream(peer, 15)
    events = peer.subscribe(InstanceEvent, 'events', 100)
    peer.send_prompt(drawn_on(headers[2], 2, 1, id=4, label='disc'))
    peer.wait_for(lambda: peer.statuses, 'the answer')
    status = peer.statuses[0]
    assert status.accepted and status.header == headers[2] and status.id == 4
    array, now = until_it_joins(peer, 15, 4)
    (instance,) = array.instances
    assert (instance.id, instance.label, instance.state) == (4, 'disc', Instance.TRACKED)
    assert iou(whole_mask(array, 4), SCENE.mask(STEP * now, 1)) > 0.6
    assert iou(SCENE.mask(STEP * 2, 1), SCENE.mask(STEP * now, 1)) == 0, 'it has left the place where it was drawn'
    peer.wait_for(lambda: events, 'the event')
    assert [(event.id, event.event, event.header) for event in events] == [(4, InstanceEvent.ADDED, array.header)]


def test_the_service_answers_with_the_object_in_the_image_it_was_drawn_on(peer):
    headers = stream(peer, 8)
    answer = peer.set_prompt(drawn_on(headers[3], 3, 2, label='blue'))
    peer.wait_for(answer.done, 'the answer, without a further image')
    response = answer.result()
    assert response.accepted and response.header == headers[3] and response.id > 0
    seen, drawn = response.instance.roi, roi(SCENE.box(STEP * 3, 2))
    for edge in ('x_offset', 'y_offset', 'width', 'height'):
        assert getattr(seen, edge) == pytest.approx(getattr(drawn, edge), abs=15)
    array, now = until_it_joins(peer, 8, 1)
    assert iou(whole_mask(array, 1), SCENE.mask(STEP * now, 2)) > 0.6


def test_live_objects_are_processed_in_every_image_meanwhile(peer):
    array = peer.start_object(1, SCENE.box(0, 1), SCENE.image(0))
    first = array.header
    arrays = [peer.process_image(SCENE.image(STEP * number)) for number in range(1, 9)]
    peer.send_prompt(drawn_on(first, 0, 2, id=2))
    for number in range(9, 25):
        array = peer.process_image(SCENE.image(STEP * number))
        arrays.append(array)
        assert instance_of(array, 1).state == Instance.TRACKED
        assert iou(whole_mask(array, 1), SCENE.mask(STEP * number, 1)) > 0.5
        if len(array.instances) == 2:
            break
    assert iou(whole_mask(array, 2), SCENE.mask(STEP * number, 2)) > 0.6
    assert all(array.dropped == 0 for array in arrays)


def test_a_late_correction_reaches_the_live_object_under_its_id(peer):
    headers = [peer.start_object(1, SCENE.box(0, 1), SCENE.image(0), 'kept').header]
    headers += [peer.process_image(SCENE.image(STEP * number)).header for number in range(1, 6)]
    status = peer.prompt(drawn_on(headers[3], 3, 1, id=1, action=Prompt.REFINE), None)
    assert status.accepted and status.header == headers[3]
    array = peer.process_image(SCENE.image(STEP * 6))
    assert [(instance.id, instance.label) for instance in array.instances] == [(1, 'kept')]
    assert iou(whole_mask(array, 1), SCENE.mask(STEP * 6, 1)) > 0.6


def test_a_prompt_that_overtakes_its_image_waits_for_it(peer):
    stream(peer, 1)
    before, header = peer.header(), peer.header()  # its stamp is later by microseconds
    peer.send_prompt(drawn_on(header, 2, 1, id=1))
    assert not peer.process_image(peer.message(SCENE.image(STEP), before)).instances
    assert not peer.statuses
    array = peer.process_image(peer.message(SCENE.image(STEP * 2), header))
    assert iou(whole_mask(array, 1), SCENE.mask(STEP * 2, 1)) > 0.6
    peer.wait_for(lambda: peer.statuses, 'the answer')
    assert peer.statuses[0].accepted and peer.statuses[0].header == header


def test_a_stamp_that_has_left_the_history_is_refused_with_its_age(peer):
    headers = stream(peer, 3)
    assert peer.set_parameter('history_seconds', 0.5)[0]
    try:
        later = headers[-1].stamp.sec + 10
        odd = Header(stamp=Time(sec=later, nanosec=50_000_000), frame_id=headers[-1].frame_id)
        peer.send(peer.message(SCENE.image(), odd))  # skipped: a single stamp ahead of the others
        for number in range(3):
            header = peer.header()
            header.stamp = Time(sec=later, nanosec=100_000_000 * (number + 1))
            peer.process_image(peer.message(SCENE.image(), header))
        status = peer.prompt(drawn_on(Header(stamp=Time(sec=headers[-1].stamp.sec)), 0, 1, id=9), None)
        assert not status.accepted
        assert status.reason.startswith('its image is 10.30 s older than the newest; the history has 3 images and '
                                        'covers 0.20 s: send the prompt sooner, or raise history_seconds')
        assert not peer.process_image(peer.message(SCENE.image(), Header(stamp=Time(
            sec=header.stamp.sec, nanosec=900_000_000)))).instances
    finally:
        assert peer.set_parameter('history_seconds', 60.0)[0]
        peer.send(peer.message(SCENE.image(), peer.header()))  # skipped: the clock jumps back with the next one
        peer.process_image(SCENE.image())


def test_a_prompt_for_a_stamp_that_never_comes_is_refused_in_time(peer):
    stream(peer, 1)
    assert peer.set_parameter('prompt_timeout', 0.5)[0]
    try:
        header = peer.header()
        header.stamp.sec += 1000
        peer.send_prompt(drawn_on(header, 0, 1, id=9))
        peer.wait_for(lambda: peer.statuses, 'the refusal', PATIENCE)
        assert not peer.statuses[0].accepted
        assert 'or a later one on /image' in peer.statuses[0].reason
    finally:
        assert peer.set_parameter('prompt_timeout', PROMPT_TIMEOUT)[0]
