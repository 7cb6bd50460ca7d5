"""Demo camera over real topics, and the recording that is made of received messages."""
import time

import cv2
import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from sam2_ros.demo.camera import DemoCamera, SettingError, VideoSource
from sam2_ros.demo.pictures import contact_sheet, longest_absence, moments, write_video
from sam2_ros.demo.recording import PICTURE_WIDTH, DemoRecording, scores, to_labels
from sam2_ros.messages.conversions import from_pixels, to_nanoseconds, to_rgb
from sam2_ros.msg import Instance, InstanceArray
from sam2_ros.perception.instance_messages import instance_mask
from sam2_ros.tabletop.depth_noise import worsen
from sam2_ros.tabletop.scene import TabletopScene
from testing.waiting import PATIENCE


@pytest.fixture
def clip(tmp_path):
    """Return a video of twelve images of 64 x 48 pixels at 20 per second, each brighter than the one before."""
    path = tmp_path / 'clip.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 20, (64, 48))
    for number in range(12):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
    writer.release()
    return str(path)


# --- camera

class Listener:
    """A camera and a node that subscribes to it, both in this process."""

    def __init__(self, domain, kind=Image, topic='image', **parameters):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        overrides = [Parameter(name, value=value) for name, value in {'subscribers': 1, **parameters}.items()]
        self.camera = DemoCamera(context=self.context, parameter_overrides=overrides)
        self.node = rclpy.create_node('listener', context=self.context)
        self.images, self.truths = [], []
        self.node.create_subscription(Image, '/camera/truth', self.truths.append, 50)
        self.node.create_subscription(kind, topic, self.images.append, qos_profile_sensor_data)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.camera)
        self.executor.add_node(self.node)

    def wait_for(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            self.executor.spin_once(timeout_sec=0.05)

    def run_to_the_end(self):
        deadline = time.monotonic() + PATIENCE
        with pytest.raises(ExternalShutdownException):
            while time.monotonic() < deadline:
                self.executor.spin_once(timeout_sec=0.05)

    def close(self):
        self.executor.shutdown()
        self.camera.destroy_node()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def listen(ros_domain):
    listeners = []

    def start(*arguments, **parameters):
        listeners.append(Listener(ros_domain, *arguments, **parameters))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


def test_the_tabletop_comes_with_its_truth_under_the_same_stamp(listen):
    listener = listen(width=160, height=120, seed=3, rate=30.0)
    listener.wait_for(lambda: len(listener.images) >= 5 and len(listener.truths) >= 5)
    scene = TabletopScene(3, 160, 120, 30.0)
    truths = {to_nanoseconds(message.header.stamp): to_labels(message) for message in listener.truths}
    known = [scene.render(number) for number in range(40)]
    for message in listener.images[:4]:
        rgb, labels = to_rgb(message), truths[to_nanoseconds(message.header.stamp)]
        assert any(np.array_equal(rgb, image) and np.array_equal(labels, truth) for image, truth in known)


def test_a_clip_is_streamed_to_its_end_at_its_own_rate(listen, clip):
    listener = listen(clip=clip)
    listener.run_to_the_end()
    assert len(listener.images) == 12 == listener.camera.sent
    levels = [to_rgb(message).mean() for message in listener.images]
    assert levels == sorted(levels) and levels[-1] - levels[0] > 180
    stamps = [to_nanoseconds(message.header.stamp) for message in listener.images]
    assert stamps == sorted(stamps) and len(set(stamps)) == 12
    assert VideoSource(clip).rate == pytest.approx(20)
    assert not listener.truths


def test_a_clip_has_no_depth_to_give(ros_domain, clip):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    try:
        with pytest.raises(SettingError, match="depth '16UC1' with a clip: a video has no depth; set only one"):
            DemoCamera(context=context, parameter_overrides=[Parameter('clip', value=clip),
                                                             Parameter('depth', value='16UC1')])
    finally:
        rclpy.shutdown(context=context)


def test_a_clip_can_be_cut_short_or_looped(listen, clip):
    listener = listen(clip=clip, seconds=0.25, rate=40.0)
    listener.run_to_the_end()
    assert listener.camera.sent == 10
    source = VideoSource(clip, loop=True)
    levels = [source.read().rgb.mean() for _ in range(25)]
    assert levels[0] == levels[12] == levels[24] < levels[11]


def test_the_first_image_is_held_until_the_camera_is_started(listen, clip):
    listener = listen(clip=clip, hold=True, rate=40.0)
    listener.wait_for(lambda: len(listener.images) >= 20)
    assert len({to_rgb(message).mean() for message in listener.images}) == 1
    assert len({to_nanoseconds(message.header.stamp) for message in listener.images}) == len(listener.images)
    client = listener.node.create_client(Trigger, '/camera/start')
    listener.wait_for(client.service_is_ready)
    future = client.call_async(Trigger.Request())
    listener.wait_for(future.done)
    assert future.result().success
    listener.run_to_the_end()
    assert len({round(to_rgb(message).mean()) for message in listener.images}) == 12


def test_compressed_images(listen):
    listener = listen(CompressedImage, 'image/compressed', width=160, height=120, image_transport='compressed')
    listener.wait_for(lambda: listener.images)
    expected = TabletopScene(0, 160, 120).render(0)[0]
    difference = np.abs(to_rgb(listener.images[0]).astype(int) - expected)
    assert difference.mean() < 8, 'what JPEG loses'


@pytest.mark.parametrize(('encoding', 'dtype', 'metre'), [('16UC1', np.uint16, 1000), ('32FC1', np.float32, 1)])
def test_depth_and_calibration_come_under_the_stamp_of_the_image(listen, encoding, dtype, metre):
    listener = listen(width=160, height=120, seed=3, rate=30.0, depth=encoding, distance=1.1)
    depths, infos = [], []
    listener.node.create_subscription(Image, 'depth', depths.append, qos_profile_sensor_data)
    listener.node.create_subscription(CameraInfo, 'camera_info', infos.append, qos_profile_sensor_data)
    listener.wait_for(lambda: len(depths) >= 3 and len(infos) >= 3)
    stamps = {to_nanoseconds(message.header.stamp) for message in listener.images}
    scene = TabletopScene(3, 160, 120, 30.0, distance=1.1)
    known = [scene.render_depth(number)[2] for number in range(40)]
    for message in depths[:3]:
        assert to_nanoseconds(message.header.stamp) in stamps and message.encoding == encoding
        metres = np.frombuffer(message.data, dtype).reshape(120, 160) / metre
        assert any(np.abs(metres - depth).max() < 0.0006 for depth in known), 'exact, but for the millimetre'
    assert {to_nanoseconds(info.header.stamp) for info in infos} & stamps
    np.testing.assert_allclose(np.reshape(infos[0].k, (3, 3)), scene.intrinsics)
    assert (infos[0].width, infos[0].height, infos[0].header.frame_id) == (160, 120, listener.images[0].header.frame_id)


def test_depth_is_offered_only_when_asked_for(listen):
    listener = listen(width=160, height=120)
    listener.wait_for(lambda: len(listener.images) >= 2)
    assert not {'depth', 'camera_info'} & {name.strip('/') for name, _ in
                                           listener.camera.get_publisher_names_and_types_by_node('camera', '/')}


def test_a_real_cameras_depth_is_noisy_with_the_square_of_distance_and_flies_at_edges():
    random = np.random.default_rng(0)
    for metres, sigma in ((0.4, 0.0012), (1.4, 0.0031)):
        flat = worsen(np.full((240, 320), metres, np.float32), random)
        assert (flat[flat > 0] - metres).std() == pytest.approx(sigma, rel=0.05)
        assert 0 < (flat == 0).mean() < 0.01, 'a few holes'
    step = np.full((240, 320), 1.0, np.float32)
    step[:, 160:] = 2.0
    worse = worsen(step, random)
    between = (worse > 1.1) & (worse < 1.9)
    assert between[:, 159:161].mean() == pytest.approx(0.4, abs=0.1)
    assert not between[:, :158].any() and not between[:, 162:].any()
    assert (worse[:, 159:161] == 0).mean() == pytest.approx(0.2, abs=0.1)


@pytest.mark.parametrize(('parameters', 'message'), [
    ({'depth': '8UC1'}, "depth '8UC1': must be 16UC1, 32FC1 or empty"),
    ({'distance': -1.0}, 'distance -1.0: must be positive'),
    ({'clip': 'missing.mp4'}, "'missing.mp4': there is no such file"),
    ({'image_transport': 'theora'}, "'theora': must be raw or compressed"),
    ({'width': 10}, 'each side must be at least 64'),
    ({'rate': -1.0}, 'rate -1.0')])
def test_a_wrong_setting_is_refused_by_name(ros_domain, parameters, message):
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    try:
        with pytest.raises(SettingError, match=message):
            DemoCamera(context=context,
                       parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()])
    finally:
        rclpy.shutdown(context=context)


def test_a_file_that_is_no_video_is_refused(tmp_path):
    path = tmp_path / 'text.mp4'
    path.write_text('not a video')
    with pytest.raises(SettingError, match='cannot read it as a video'):
        VideoSource(str(path))


# --- recorder

HEIGHT, WIDTH = 40, 60


def instance(object_id, box=None, state=Instance.TRACKED):
    """Return an instance that fills its box (x0, y0, x1, y1) except for the top row."""
    item = Instance(id=object_id, label=f'thing {object_id}', state=state)
    if box:
        x0, y0, x1, y1 = box
        mask = np.full((y1 - y0, x1 - x0), 255, np.uint8)
        mask[0] = 0
        item.roi = RegionOfInterest(x_offset=x0, y_offset=y0, width=x1 - x0, height=y1 - y0)
        item.mask = from_pixels(mask, 'mono8', Header())
    return item


def array(stamp, *instances, dropped=0):
    seconds, nanoseconds = divmod(stamp, 10**9)
    header = Header(stamp=Time(sec=seconds, nanosec=nanoseconds))
    return InstanceArray(header=header, height=HEIGHT, width=WIDTH, instances=list(instances), dropped=dropped)


def test_a_mask_is_put_at_its_place():
    mask = instance_mask(instance(1, (10, 5, 20, 15)), HEIGHT, WIDTH)
    rows, columns = np.nonzero(mask)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (10, 6, 19, 14)
    assert not instance_mask(instance(1), HEIGHT, WIDTH).any()


def test_scores_tell_hidden_from_missed():
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    labels[6:15, 10:20] = 1  # exactly the mask of the instance below
    labels[20:30, 30:40] = 3
    found = {score.object_id: score for score in scores(array(0, instance(1, (10, 5, 20, 15)),
                                                              instance(2, state=Instance.OCCLUDED),
                                                              instance(3, state=Instance.LOST)), labels)}
    assert (found[1].hidden, found[1].called_visible, found[1].iou) == (False, True, 1.0)
    assert (found[2].hidden, found[2].called_visible) == (True, False)
    assert (found[3].hidden, found[3].called_visible, found[3].iou) == (False, False, 0.0)


def test_images_truth_and_instances_are_paired_by_stamp_whatever_their_order():
    recording = DemoRecording()
    picture, labels = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint16)
    labels[5:15, 10:20] = 1
    recording.add_image(100, picture)
    recording.add_instances(array(100, instance(1, (10, 5, 20, 15))), received=100 + 50_000_000)
    recording.add_truth(100, labels)
    recording.add_truth(10**9, labels)
    recording.add_image(5 * 10**8, picture)  # not processed
    recording.add_instances(array(10**9, instance(1, state=Instance.OCCLUDED), dropped=1), received=10**9 + 70_000_000)
    assert len(recording.frames) == 1
    recording.add_image(10**9, picture)
    figures = recording.figures()
    assert (figures['images'], figures['processed'], figures['dropped']) == (3, 2, 1)
    assert figures['latency_received']['p50'] == pytest.approx(0.060)
    assert figures['frames_per_second'] == pytest.approx(1.0)
    assert figures['iou'] == pytest.approx((0.9 + 0) / 2), 'nine rows of ten, then missed'
    assert figures['visible_called_visible'] == 0.5
    assert recording.tracked


def test_objects_whose_score_stays_low_are_listed_by_their_id():
    recording = DemoRecording()
    for number in range(40):
        low, fine, hidden = instance(4, (0, 0, 9, 9)), instance(5, (9, 9, 20, 20)), instance(6, state=Instance.LOST)
        low.score, fine.score = (0.9 if number < 10 else 0.2), 0.8
        recording.add_image(number, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        recording.add_instances(array(number, low, fine, hidden), received=number)
    (found,) = recording.low_scores()
    # of 20 scores, the mean of k 0.2 and the others 0.9 is below 0.45 from k = 13 on
    assert (found['object_id'], found['frame']) == (4, 10 + 13 - 1)
    assert found['mean'] == pytest.approx((7 * 0.9 + 13 * 0.2) / 20)


def test_without_anything_tracked_the_recording_says_so():
    recording = DemoRecording()
    assert recording.figures()['iou'] is None and not recording.tracked
    recording.add_image(0, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    recording.add_instances(array(0, instance(1, state=Instance.LOST)), received=1)
    assert len(recording.frames) == 1 and not recording.tracked


# --- pictures

@pytest.fixture
def frames():
    """Return twenty frames; object 1 is not visible in frames 8 to 11."""
    recording = DemoRecording()
    for number in range(20):
        stamp = number * 10**8
        hidden = 8 <= number <= 11
        recording.add_image(stamp, np.full((HEIGHT * 2, WIDTH * 2, 3), 10 * number, np.uint8))
        recording.add_instances(array(stamp, instance(1, state=Instance.OCCLUDED) if hidden
                                      else instance(1, (10, 5, 20, 15))), received=stamp)
    return recording.frames


def test_the_contact_sheet_shows_before_during_and_after_the_absence(frames):
    assert longest_absence(frames) == (8, 11)
    chosen = moments(frames)
    assert len(chosen) == 6 and chosen == sorted(chosen)
    assert chosen[0] == 0 and chosen[-1] == 19
    assert {7, 9, 12} <= set(chosen)
    sheet = contact_sheet(frames, 0)
    assert sheet.dtype == np.uint8 and sheet.shape[0] > 2 * 2 * HEIGHT and sheet.shape[1] > 3 * 2 * WIDTH


def test_the_object_is_coloured_in_the_contact_sheet_only_where_it_was_tracked(frames):
    tracked, hidden = (np.ptp(contact_sheet([frame], 0)[8:8 + HEIGHT, 8:8 + 2 * WIDTH].astype(int), axis=-1).max()
                       for frame in (frames[5], frames[9]))
    assert tracked > 50 and hidden == 0, 'a grey image is coloured by the overlay alone'


def test_the_video_lasts_as_long_as_what_it_shows(frames, tmp_path):
    done = []
    kept = [frame for number, frame in enumerate(frames) if number % 3 == 0]  # two of three images were dropped
    write_video(tmp_path / 'video.mp4', kept, 0, 10.0, lambda *progress: done.append(progress))
    video = cv2.VideoCapture(str(tmp_path / 'video.mp4'))
    levels = []
    while (frame := video.read())[0]:
        levels.append(frame[1][60:70, 100:110].mean())
    assert len(levels) == 19 == done[-1][0] == done[-1][1]
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    # frame 4 shows what was processed last before it, image 3
    assert levels[4] == pytest.approx(30, abs=4) and levels[6] == pytest.approx(60, abs=4)


def test_large_images_are_kept_small():
    recording = DemoRecording()
    recording.add_image(0, np.zeros((720, 1280, 3), np.uint8))
    message = array(0, instance(1, (100, 100, 300, 300)))
    message.height, message.width = 720, 1280
    recording.add_instances(message, received=0)
    assert cv2.imdecode(recording.frames[0].jpeg, cv2.IMREAD_COLOR).shape == (360, PICTURE_WIDTH, 3)
    contact_sheet(recording.frames, 0)
