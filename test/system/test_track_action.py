"""The action ~/track over DDS: feedback, and every way in which a goal ends."""
import math

import pytest
from action_msgs.srv import CancelGoal
from builtin_interfaces.msg import Time
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from sam2_ros.action import Track
from sam2_ros.msg import Instance, Prompt
from testing.camera_images import point, roi
from testing.peer import FRAME_ID, Scene, ids, instance_of, running_node
from testing.track_client import ABORTED, CANCELLED, SUCCEEDED, TrackClient
from testing.waiting import PROMPT_TIMEOUT

Result = Track.Result
SCENE = Scene(240, 180)
PARAMETERS = {'image_size': 256, 'history_seconds': 60.0, 'lost_after': 0.1}


@pytest.fixture(scope='module')
def node(tmp_path_factory):
    with running_node(tmp_path_factory.mktemp('track'), PARAMETERS) as peer:
        yield peer


@pytest.fixture(scope='module')
def client(node):
    return TrackClient(node)


def box(disc: int = 1, time: float = 0, **fields) -> Prompt:
    return Prompt(box=roi(SCENE.box(time, disc)), **fields)


def follow(object_id: int) -> Prompt:
    return Prompt(action=Prompt.REFINE, id=object_id)


def without_mask(instance: Instance) -> Instance:
    instance.mask = Image()
    return instance


def test_feedback_is_the_object_of_every_image_until_a_prompt_removes_it(peer, client):
    peer.start_object(7, SCENE.box(0, 2), SCENE.image(0))
    goal = client.send(box(label='disc'))
    first = goal.follow(SCENE.image(0))
    assert first.id not in (0, 7) and first.label == 'disc' and first.state == Instance.TRACKED
    for time in range(1, 8):
        hidden = (1,) if time > 5 else ()
        header = peer.process_image(SCENE.image(time, hidden)).header
        peer.wait_for(lambda: goal.feedback[-1].header == header, 'the feedback for an image')  # noqa: B023
    assert any(message.instance.state != Instance.TRACKED for message in goal.feedback), 'also where it is hidden'
    shown = [array for array in peer.instances if first.id in ids(array)]
    assert [message.header for message in goal.feedback] == [array.header for array in shown]
    assert [message.instance for message in goal.feedback] == [without_mask(instance_of(array, first.id))
                                                               for array in shown]
    peer.send_prompt(Prompt(action=Prompt.REMOVE, id=first.id))
    status, result = goal.end()  # without an image
    assert (status, result.reason, result.id) == (SUCCEEDED, Result.REMOVED, first.id)
    assert result.text == f'object {first.id} was removed by a prompt'
    assert (result.header, result.instance) == (goal.feedback[-1].header, goal.feedback[-1].instance)
    assert ids(peer.process_image(SCENE.image(8))) == [7]


@pytest.mark.parametrize('way', ['CLEAR', 'reset'])
def test_a_goal_succeeds_when_all_objects_are_removed(peer, client, way):
    goals = [client.send(box(disc)) for disc in (1, 2)]
    for goal in goals:
        goal.follow(SCENE.image(0))
    if way == 'CLEAR':
        peer.send_prompt(Prompt(action=Prompt.CLEAR))
    else:
        assert peer.ask(Trigger, 'reset').success
    for goal in goals:
        status, result = goal.end()
        assert (status, result.reason) == (SUCCEEDED, Result.REMOVED)
        assert result.text == f'object {result.id} was removed with all others'


def test_cancelling_removes_an_object_that_the_goal_has_started(peer, client):
    goal = client.send(box(id=5))
    goal.follow(SCENE.image(0))
    status, result = goal.cancel()
    assert (status, result.reason, result.id) == (CANCELLED, Result.CANCELLED, 5)
    assert result.text == 'cancelled; object 5 was removed, since this goal had started it'
    assert ids(peer.process_image(SCENE.image(0))) == []


@pytest.mark.parametrize('prompt', [follow(5), Prompt(action=Prompt.REFINE, id=5, points=[point(*SCENE.centre(0, 1))])],
                         ids=['follow', 'correct'])
def test_cancelling_leaves_a_known_object(peer, client, prompt):
    peer.start_object(5, SCENE.box(0, 1), SCENE.image(0), 'mine')
    goal = client.send(prompt)
    assert goal.follow(SCENE.image(0)).label == 'mine'
    assert peer.instances_at(goal.feedback[0].header.stamp)
    status, result = goal.cancel()
    assert (status, result.reason, result.text, result.id) == (CANCELLED, Result.CANCELLED, 'cancelled', 5)
    assert ids(peer.process_image(SCENE.image(0))) == [5]


@pytest.mark.parametrize('object_id', [0, 5])
def test_cancelling_takes_a_prompt_back_that_waits_for_its_image(peer, client, object_id):
    peer.start_object(5, SCENE.box(0, 1), SCENE.image(0))
    peer.statuses.clear()
    later = peer.header()
    goal = client.send(box(id=object_id, header=later))
    status, result = goal.cancel()
    assert (status, result.reason) == (CANCELLED, Result.CANCELLED)
    assert result.text == 'taken back before it was applied'
    peer.wait_for(lambda: peer.statuses, 'the answer to the prompt')
    assert [(answer.accepted, answer.reason) for answer in peer.statuses] == [(False, result.text)]
    array = peer.process_image(peer.message(SCENE.image(0), later))
    assert ids(array) == [5] and not goal.feedback


def test_a_lost_object_ends_its_goal_and_is_removed_only_by_the_goal_that_started_it(peer, client):
    peer.start_object(9, SCENE.box(0, 2), SCENE.image(0))
    goals = [client.send(box(id=5), 0.3), client.send(follow(9), 0.3)]
    for goal in goals:
        goal.follow(SCENE.image(0))
    patient = client.send(follow(9))
    patient.follow(SCENE.image(0))
    for goal, text in zip(goals, ('; object 5 was removed, since this goal had started it', ''), strict=True):
        status, result = goal.end(SCENE.image(0, hidden=(1, 2)))
        assert (status, result.reason) == (ABORTED, Result.LOST)
        unseen = seconds(result.header.stamp) - seconds(result.instance.last_seen)
        assert unseen > 0.3
        assert result.text == f'object {result.id} was not visible for {unseen:.3f} s (lost_timeout 0.3 s){text}'
        before = seconds(goal.feedback[-2].header.stamp) - seconds(goal.feedback[-2].instance.last_seen)
        assert before <= 0.3, 'not ended before it was due'
    assert ids(peer.process_image(SCENE.image(0, hidden=(1, 2)))) == [9]
    assert not patient.done()
    assert patient.cancel()[0] == CANCELLED


def seconds(stamp: Time) -> float:
    return stamp.sec + stamp.nanosec / 1e9


def test_an_object_that_the_node_forgets_ends_its_goal(peer, client):
    goal = client.send(box(id=5))
    goal.follow(SCENE.image(0))
    assert peer.set_parameter('forget_after', 0.2)[0]
    try:
        status, result = goal.end(SCENE.image(0, hidden=(1,)))
    finally:
        assert peer.set_parameter('forget_after', 0.0)[0]
    assert (status, result.reason) == (ABORTED, Result.LOST)
    assert result.text == 'object 5 was forgotten: not visible for longer than forget_after'


REFUSED = [
    (box(id=5, header=Header(frame_id='another')), 0.0, "prompt in frame 'another'"),
    (Prompt(points=[point(1000, 5)]), 0.0, 'point (1000, 5): outside the image of 240 x 180 pixels'),
    (Prompt(), 0.0, 'prompt without content'),
    (follow(77), 0.0, 'id 77 is not known (known: 3): start it with a SET prompt'),
    (follow(0), 0.0, 'id 0 is not known (known: 3): start it with a SET prompt'),
    (Prompt(action=Prompt.REFINE, id=77, points=[point(5, 5)]), 0.0, 'id 77 is not known (known: 3): SET it first'),
    (Prompt(action=Prompt.REFINE, id=3, label='mug'), 0.0, "label 'mug' without points, a box or a mask"),
    (Prompt(action=Prompt.REMOVE, id=3), 0.0, 'action 2: must be 0 (SET) or 1 (REFINE) in a goal'),
    (Prompt(action=9), 0.0, 'action 9: must be 0 (SET) or 1 (REFINE) in a goal'),
    (box(), -1.0, 'lost_timeout -1: must be finite and not negative; 0 means never'),
    (box(), math.nan, 'lost_timeout nan: must be finite'),
]


def test_a_goal_that_cannot_be_begun_says_why_and_changes_nothing(peer, client):
    peer.start_object(3, SCENE.box(0, 1), SCENE.image(0))
    for prompt, timeout, reason in REFUSED:
        goal = client.send(prompt, timeout)
        status, result = goal.end(SCENE.image(0))
        assert (status, result.reason) == (ABORTED, Result.REFUSED)
        assert result.text.startswith(reason), result.text
        assert result.header == Header() and not goal.feedback
    assert ids(peer.process_image(SCENE.image(0))) == [3]


def test_an_unknown_object_is_refused_without_an_image(peer, client):
    status, result = client.send(follow(77)).end()
    assert (status, result.reason) == (ABORTED, Result.REFUSED)
    assert result.text == 'id 77 is not known (known: none): start it with a SET prompt'


@pytest.mark.parametrize('late', [False, True], ids=['now', 'late'])
def test_a_new_object_under_the_same_id_replaces_that_of_a_goal(peer, client, late):
    header = peer.process_image(SCENE.image(0)).header if late else Header()
    first = client.send(box(1, id=5, label='first'))
    first.follow(SCENE.image(0))
    second = client.send(box(2, id=5, label='second', header=header))
    status, result = first.end(SCENE.image(0))
    assert (status, result.reason) == (ABORTED, Result.REPLACED)
    assert result.text == 'another prompt started a new object under id 5'
    assert second.follow(SCENE.image(0)).label == 'second'
    assert {message.instance.label for message in first.feedback} == {'first'}
    assert {message.instance.label for message in second.feedback} == {'second'}
    assert second.cancel()[0] == CANCELLED
    assert ids(peer.process_image(SCENE.image(0))) == []


def test_a_goal_whose_prompt_is_late_reports_its_object_from_when_it_is_live(peer, client):
    old = peer.process_image(SCENE.image(0)).header
    for time in range(1, 7):
        peer.process_image(SCENE.image(time))
    goal = client.send(box(1, header=old, label='late'))
    first = goal.follow(SCENE.image(7))
    assert first.label == 'late'
    assert seconds(goal.feedback[0].header.stamp) > seconds(old.stamp)
    shown = next(array for array in peer.instances if array.instances)
    assert goal.feedback[0].header == shown.header, 'from the first image with the object on'
    assert goal.cancel()[0] == CANCELLED
    assert ids(peer.process_image(SCENE.image(7))) == []


def test_two_clients_follow_one_object_and_one_of_them_owns_it(peer, client):
    other = TrackClient(peer)
    owner = client.send(box(id=5))
    owner.follow(SCENE.image(0))
    guest = other.send(follow(5))
    guest.follow(SCENE.image(0))
    header = peer.process_image(SCENE.image(1)).header
    for goal in (owner, guest):
        peer.wait_for(lambda: goal.feedback[-1].header == header, 'feedback')  # noqa: B023
    assert owner.cancel()[0] == CANCELLED
    status, result = guest.end()
    assert (status, result.reason) == (SUCCEEDED, Result.REMOVED)


def test_fifty_goals_at_once_are_bounded_by_max_objects(peer, client):
    assert peer.set_parameter('max_objects', 5)[0]
    try:
        goals = [client.send(box()) for _ in range(50)]
        peer.show_until(lambda: sum(goal.done() for goal in goals) == 45, SCENE.image(0))
        refused = [goal.end()[1] for goal in goals if goal.done()]
        assert {result.reason for result in refused} == {Result.REFUSED}
        assert all(result.text.startswith('5 objects are tracked already and max_objects is 5') for result in refused)
        tracked = [goal for goal in goals if not goal.done()]
        followed = {goal.follow(SCENE.image(0)).id for goal in tracked}
        assert followed == set(ids(peer.process_image(SCENE.image(0)))) and len(followed) == 5
        cancel_all = peer.node.create_client(CancelGoal, f'{peer.private}/track/_action/cancel_goal')
        peer.wait_for(cancel_all.service_is_ready, 'the service that cancels goals')
        answer = cancel_all.call_async(CancelGoal.Request())
        peer.wait_for(answer.done, 'the cancellation of all goals')
        assert len(answer.result().goals_canceling) == 5
        assert {goal.end()[0] for goal in tracked} == {CANCELLED}
    finally:
        assert peer.set_parameter('max_objects', 64)[0]
    assert ids(peer.process_image(SCENE.image(0))) == []


def test_goals_beyond_the_limit_are_refused(peer, client):
    peer.start_object(5, SCENE.box(0, 1), SCENE.image(0))
    goals = [client.send(follow(5)) for _ in range(101)]
    status, result = goals[-1].end()
    assert (status, result.reason) == (ABORTED, Result.REFUSED)
    assert result.text == '100 goals are open already: cancel one first'
    peer.send_prompt(Prompt(action=Prompt.REMOVE, id=5))
    assert {goal.end()[1].reason for goal in goals[:-1]} == {Result.REMOVED}


def test_deactivation_ends_every_goal_and_keeps_the_objects(peer, client):
    started = client.send(box(id=5))
    started.follow(SCENE.image(0))
    waiting = client.send(box(2, header=Header(stamp=peer.header().stamp)))
    assert peer.change_state(Transition.TRANSITION_DEACTIVATE)
    for goal in (started, waiting):
        status, result = goal.end()
        assert (status, result.reason) == (ABORTED, Result.NODE_STOPPED)
        assert result.text == 'the node was deactivated'
    status, result = client.send(follow(5)).end()
    assert (status, result.reason) == (ABORTED, Result.REFUSED)
    assert result.text == 'the node is inactive: activate it first'
    assert peer.change_state(Transition.TRANSITION_ACTIVATE)
    peer.wait_until_active(SCENE.image(0))
    again = client.send(follow(5))
    assert again.follow(SCENE.image(0)).id == 5
    assert again.cancel()[0] == CANCELLED


def test_a_jump_back_of_the_stamps_that_forgets_all_objects_ends_every_goal(peer, client):
    made = client.send(box(id=5))
    made.follow(SCENE.image(0))
    followed = client.send(follow(5))
    followed.follow(SCENE.image(0))
    assert peer.set_parameter('on_time_jump', 'reset')[0]
    try:
        start = peer.header().stamp.sec - 1000
        for number in range(2):  # the first alone might be an outlier
            peer.send(peer.message(SCENE.image(0), Header(stamp=Time(sec=start + number), frame_id=FRAME_ID)))
        for goal in (made, followed):
            status, result = goal.end()
            assert (status, result.reason) == (ABORTED, Result.TIME_JUMP)
            assert result.text == ('image stamps jumped back, and objects are forgotten then (on_time_jump): object 5 '
                                   'as well')
    finally:
        assert peer.set_parameter('on_time_jump', 'keep')[0]
        peer.wait_for_camera(SCENE.image(0))


def test_shutdown_ends_every_goal_and_a_signal_the_process(tmp_path):
    with running_node(tmp_path, {**PARAMETERS, 'prompt_timeout': PROMPT_TIMEOUT}) as peer:
        client = TrackClient(peer)
        goal = client.send(box())
        goal.follow(SCENE.image(0))
        assert peer.change_state(Transition.TRANSITION_ACTIVE_SHUTDOWN)
        status, result = goal.end()
        assert (status, result.reason) == (ABORTED, Result.NODE_STOPPED)
        assert result.text == 'the node was shut down'
        assert client.send(box()).end()[1].reason == Result.REFUSED
        code, _ = peer.process.stop()
        assert code == 0
        assert 'Traceback' not in peer.process.log and 'Warning' not in peer.process.log, peer.process.log
