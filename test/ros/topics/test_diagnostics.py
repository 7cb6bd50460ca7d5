"""The meter on a simulated clock, the statuses made from it, and /diagnostics of a real lifecycle node."""
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from hypothesis import given
from hypothesis import strategies as st
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode

from sam2_core import load_model
from sam2_ros.msg import Instance
from sam2_ros.perception.frame import TrackedObject
from sam2_ros.perception.load_shedding import Level, LoadShedder
from sam2_ros.perception.meter import MOST, WINDOW, Meter, percentiles
from sam2_ros.runtime.node_parameters import declare_parameters
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.topics.diagnostics import (
    ERROR,
    OK,
    WARN,
    Diagnostics,
    LoadedModel,
    WatchedCamera,
    camera_status,
    gpu_memory,
    model_status,
)

TOPIC = '/front/image'
START = 1000.0


def objects(*states: int) -> list[TrackedObject]:
    return [TrackedObject(number, '', state, 0.9, 0.9, Time()) for number, state in enumerate(states, 1)]


def stream(meter: Meter, seconds: float, rate: float = 10.0, latency: float = 0.05, start: float = START, **more):
    """Process every image of a camera; return the time of the last result."""
    now = start
    for number in range(int(seconds * rate)):
        now = start + (number + 1) / rate
        meter.received(now - latency)
        meter.processed(now, latency, objects(Instance.TRACKED), **more)
    return now


@pytest.fixture
def meter() -> Meter:
    meter = Meter()
    meter.start(START)
    return meter


# --- meter

@given(st.lists(st.floats(-10, 10), min_size=1, max_size=200))
def test_percentiles_are_values_that_so_many_do_not_exceed(values):
    for share, percentile in zip((0.50, 0.95, 0.99), percentiles(values), strict=True):
        assert percentile in values
        assert sum(value <= percentile for value in values) >= share * len(values) - 1e-9
        assert sum(value < percentile for value in values) < share * len(values) + 1e-9


def test_rates_are_those_of_the_camera_and_of_the_results(meter):
    for number in range(300):
        now = START + number / 30
        meter.received(now)
        if number % 3 == 2:
            meter.processed(now, 0.1, [], dropped=2)
    seen = meter.snapshot(now)
    assert seen.input_rate == pytest.approx(30, rel=0.02)
    assert seen.processed_rate == pytest.approx(10, rel=0.02)
    assert seen.dropped == seen.dropped_in_all == 200


def test_only_the_last_seconds_count(meter):
    now = stream(meter, 5, latency=3.0, dropped=1)
    now = stream(meter, 2 * WINDOW, latency=0.05, start=now)
    seen = meter.snapshot(now)
    assert seen.latencies == pytest.approx((0.05, 0.05, 0.05))
    assert (seen.dropped, seen.dropped_in_all) == (0, 50)
    later = meter.snapshot(now + 2 * WINDOW)
    assert (later.input_rate, later.processed_rate, later.latencies) == (0, 0, None)


def test_rates_are_right_soon_after_the_start(meter):
    seen = meter.snapshot(stream(meter, 3, rate=10))
    assert seen.input_rate == pytest.approx(10, rel=0.05)


def test_a_meter_is_bounded_and_still_knows_the_rate(meter):
    for number in range(10 * MOST):
        now = START + number / 1000
        meter.received(now)
        meter.processed(now, 0.001, [], dropped=1)
        meter.depth(now)
    seen = meter.snapshot(now)
    assert seen.depth_matched == MOST
    assert seen.input_rate == pytest.approx(1000, rel=0.01)
    assert seen.processed_rate == pytest.approx(1000, rel=0.01)


def test_the_last_result_tells_the_objects(meter):
    meter.processed(START + 1, 0.1, objects(Instance.TRACKED, Instance.LOST))
    meter.processed(START + 2, 0.1, objects(Instance.TRACKED, Instance.TRACKED, Instance.OCCLUDED, Instance.LOST),
                    memory_bytes=4096, catching_up=1)
    seen = meter.snapshot(START + 2)
    assert (seen.tracked, seen.occluded, seen.lost) == (2, 1, 1)
    assert (seen.memory_bytes, seen.catching_up) == (4096, 1)


def test_a_start_forgets_what_was_before(meter):
    now = stream(meter, 5, dropped=1)
    meter.failed(now, 'CUDA out of memory')
    meter.start(now + 100)
    seen = meter.snapshot(now + 101)
    assert seen.silence == 1
    assert (seen.images, seen.dropped_in_all, seen.failed, seen.latencies) == (0, 0, '', None)


@pytest.mark.parametrize('finish', [
    lambda meter, now: meter.processed(now, 0.1, []), lambda meter, now: meter.skipped(now, 'bad'),
    lambda meter, now: meter.failed(now, 'bad')])
def test_an_image_waits_until_something_is_said_about_it(meter, finish):
    meter.received(START + 1)
    meter.received(START + 2)
    assert meter.snapshot(START + 31).stalled == 30
    finish(meter, START + 32)
    assert meter.snapshot(START + 90).stalled == 0


# --- statuses

def watched(meter: Meter, **more) -> WatchedCamera:
    return WatchedCamera(**{'name': 'front', 'topic': TOPIC, 'meter': meter, 'shedder': LoadShedder(),
                            'history': lambda: (30, 27648000, 2.0)} | more)


def status_of(camera: WatchedCamera, now: float, state: str = 'active', **parameters) -> DiagnosticStatus:
    return camera_status('/robot1/sam2', 'cuda:0', state, camera, replace(Parameters(), **parameters), now)


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {item.key: item.value for item in status.values}


def test_a_camera_that_does_well_is_ok_with_its_figures(meter):
    now = stream(meter, 20, memory_bytes=123, catching_up=2)
    for _ in range(4):
        meter.depth(now)
    status = status_of(watched(meter), now)
    assert (status.level, status.name, status.hardware_id) == (OK, 'robot1/sam2: camera front', 'cuda:0')
    assert status.message == '10.0 of 10.0 images/s, 1 objects'
    found = values(status)
    assert found['latency p95 (ms)'] == '50.0'
    assert found['history (images)'] == '30' and found['history (s)'] == '2.00'
    assert found['tracker memory (bytes)'] == '123'
    assert found['late prompts catching up'] == '2'
    assert (found['depth matched'], found['depth missing']) == ('4', '0')


def test_a_camera_that_never_came_is_named_with_what_to_look_at(meter):
    status = status_of(watched(meter), START + 3.4)
    assert status.level == WARN
    assert status.message.startswith('no image on /front/image for 3.4 s: is the camera running? QoS?')


def test_objects_that_cannot_be_kept_are_named_with_the_file(meter):
    now = stream(meter, 20)
    kept = SimpleNamespace(problem='', path='/var/objects.safetensors', saved=now - 2.5)
    status = status_of(watched(meter, kept=kept), now)
    assert status.level == OK
    assert values(status)['objects kept in'] == '/var/objects.safetensors'
    assert values(status)['objects saved (s ago)'] == '2.5'
    kept.problem = 'objects are not kept: No space left on device'
    status = status_of(watched(meter, kept=kept), now)
    assert (status.level, status.message) == (WARN, kept.problem)
    assert 'objects kept in' not in values(status_of(watched(meter), now))


def test_a_camera_that_stopped_is_named(meter):
    now = stream(meter, 5)
    assert status_of(watched(meter), now + 1).level == OK
    status = status_of(watched(meter), now + 4)
    assert status.level == WARN and 'has the camera stopped?' in status.message


@pytest.mark.parametrize('state', ['inactive', 'activating'])
def test_silence_is_right_while_the_node_does_not_listen(meter, state):
    status = status_of(watched(meter), START + 100, state)
    assert (status.level, status.message) == (OK, state)


def test_the_model_that_fails_on_images_comes_before_everything_else(meter):
    now = stream(meter, 5)
    meter.skipped(now, "encoding 'nv24': not supported")
    meter.failed(now, 'OutOfMemoryError: CUDA out of memory')
    status = status_of(watched(meter), now)
    assert status.level == ERROR
    assert status.message == ('the model fails on images: OutOfMemoryError: CUDA out of memory; images on '
                              "/front/image cannot be used: encoding 'nv24': not supported")
    assert status_of(watched(meter), stream(meter, WINDOW, start=now)).level == OK  # it has passed


def test_images_that_nobody_finishes_are_named(meter):
    for second in range(20):
        meter.received(START + second)
    status = status_of(watched(meter), START + 19)
    assert status.level == WARN
    assert 'none has been finished for 19 s' in status.message


def test_depth_that_arrives_and_does_not_match_is_named_with_the_last_reason(meter):
    now = stream(meter, 5)
    meter.depth(now)
    meter.depth(now, 'its stamp is 0.050 s away')
    status = status_of(watched(meter), now)
    assert status.level == WARN
    assert status.message == '1 of 2 images have no depth: its stamp is 0.050 s away'
    assert values(status)['depth missing because'] == 'its stamp is 0.050 s away'


def test_depth_that_may_be_wrong_is_named(meter):
    now = stream(meter, 5)
    meter.depth_doubt(now, 'the matrix is of another resolution')
    meter.depth_doubt(now, '')
    status = status_of(watched(meter), now)
    assert status.level == WARN and status.message == 'the matrix is of another resolution'
    assert values(status)['depth doubtful because'] == 'the matrix is of another resolution'
    assert status_of(watched(meter), now + WINDOW).message != 'the matrix is of another resolution'


@pytest.mark.parametrize(('latency', 'text'), [
    (-0.3, '0.300 s ahead of the clock'), (86400.0, '86400 s behind the clock'), (0.0, 'images carry no stamp')])
def test_clocks_that_differ_are_named(meter, latency, text):
    meter.received(START + 1)
    meter.processed(START + 1, latency, [])
    status = status_of(watched(meter), START + 1)
    assert status.level == WARN and text in status.message


def test_a_latency_target_that_is_not_held_is_said_with_what_is_left_out(meter):
    camera = watched(meter)
    now = START
    for _ in range(300):
        now = stream(meter, 0.1, latency=0.4, start=now)
        camera.shedder.update(0.4, now, 0.1, True)
    status = status_of(camera, now, latency_target=0.1)
    assert status.level == WARN
    assert 'latency_target 0.1 s is not held (p95 0.400 s)' in status.message
    assert f'load shedding level 3: {Level.IMAGES.description}' in status.message
    assert values(status)['load shedding level'] == '3'
    assert status_of(camera, now).level == OK  # there is no target


NANO = LoadedModel('nano', 'cpu', 'float32', 512)


@pytest.mark.parametrize(('state', 'model', 'failure', 'alive', 'level', 'message'), [
    ('active', NANO, '', True, OK, 'active: nano on cpu'),
    ('inactive', NANO, '', None, OK, 'inactive: ros2 lifecycle set /sam2 activate'),
    ('unconfigured', None, '', None, OK, 'unconfigured: ros2 lifecycle set /sam2 configure'),
    ('unconfigured', None, 'checkpoint /no/such.pt: no such file', None, ERROR,
     'unconfigured, the model cannot be loaded: checkpoint /no/such.pt: no such file'),
    ('active', NANO, '', False, ERROR, 'the worker has died, see the log: deactivate and activate the node'),
])
def test_the_model_says_its_state_and_what_to_do(state, model, failure, alive, level, message):
    status = model_status('/sam2', state, model, failure, alive)
    assert (status.level, status.message, status.name) == (level, message, 'sam2: model')
    found = values(status)
    assert found['state'] == state
    assert found.get('model') == (None if model is None else 'nano')


def test_gpu_memory_is_told_where_there_is_a_gpu():
    torch = pytest.importorskip('torch')
    assert gpu_memory('cpu') == {}
    if not torch.cuda.is_available():
        pytest.skip('no GPU')
    held = torch.zeros(2**20, device='cuda')
    assert gpu_memory('cuda')['GPU memory allocated (bytes)'] >= held.nbytes


# --- the publisher

@pytest.fixture
def listening(ros_domain):
    """Yield a lifecycle node, its diagnostics, and a function that waits for the next array."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    node = LifecycleNode('sam2', context=context, namespace='robot1')
    declare_parameters(node)
    diagnostics = Diagnostics(node)
    arrived: list[DiagnosticArray] = []
    node.create_subscription(DiagnosticArray, '/diagnostics', arrived.append, 10)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def next_one() -> DiagnosticArray:
        arrived.clear()
        for _ in range(300):
            executor.spin_once(timeout_sec=0.1)
            if arrived:
                return arrived[0]
        raise AssertionError('no /diagnostics')

    yield node, diagnostics, next_one
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_diagnostics_come_in_every_state(listening):
    node, diagnostics, next_one = listening
    assert next_one().status[0].message == 'unconfigured: ros2 lifecycle set /robot1/sam2 configure'
    diagnostics.not_loaded('checkpoint /no/such.pt: no such file')
    assert 'no such file' in next_one().status[0].message
    model = load_model('nano', device='cpu')
    diagnostics.loaded(model, 'float32', [watched(Meter()), watched(Meter(), name='')])
    node.trigger_configure()
    before = int(time.time())
    array = next_one()
    assert before <= array.header.stamp.sec <= time.time()
    assert [status.name for status in array.status] == [
        'robot1/sam2: model', 'robot1/sam2: camera front', 'robot1/sam2: camera']
    assert {status.hardware_id for status in array.status} == {'cpu'}
    assert values(array.status[0])['image size'] == str(model.image_size)
    diagnostics.freed()
    status, = next_one().status
    assert status.level == OK and 'model' not in values(status)


def test_diagnostics_go_on_while_simulated_time_stands_still(listening):
    node, _, next_one = listening
    node.set_parameters([rclpy.parameter.Parameter('use_sim_time', value=True)])
    assert next_one().header.stamp == Time()  # without /clock the time is 0
    assert next_one()
