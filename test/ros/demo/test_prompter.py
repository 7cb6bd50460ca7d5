"""Prompter of the demo: the place of its click, and waiting for the node."""
import subprocess
import sys
import time

import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from sam2_ros.demo.prompter import Prompter, correction
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import ImagePoint, InstanceArray, Prompt, PromptStatus
from testing.waiting import PATIENCE

HEIGHT, WIDTH = 40, 60


def test_the_correcting_click_lies_inside_the_largest_error():
    truth = np.zeros((HEIGHT, WIDTH), bool)
    truth[10:30, 10:30] = True
    missing = truth.copy()
    missing[10:30, 10:20] = False
    x, y, label = correction(missing, truth)
    assert 10 <= x < 20 and 10 <= y < 30 and label == ImagePoint.FOREGROUND
    spilled = truth.copy()
    spilled[5:35, 30:50] = True
    spilled[10, 10] = False  # a smaller error
    x, y, label = correction(spilled, truth)
    assert 35 <= x < 45 and 10 <= y < 30 and label == ImagePoint.BACKGROUND
    x, y, label = correction(truth, truth)
    assert truth[int(y), int(x)] and label == ImagePoint.FOREGROUND


def test_only_the_node_loads_pytorch():
    """Four processes start at once, and PyTorch would delay each by a second or two."""
    subprocess.run([sys.executable, '-c', 'import sam2_ros.demo.camera, sam2_ros.demo.__main__, sys, '
                    'sam2_ros.demo.prompter, sam2_ros.demo.recorder; assert "torch" not in sys.modules'], check=True)


@pytest.mark.system
def test_nothing_is_drawn_on_images_that_the_node_does_not_see_yet(ros_domain):
    """The node may discover the image topic later than the prompter discovers the truth."""
    rclpy.init()
    try:
        prompter, beside = Prompter(), rclpy.create_node('beside')
        executor = SingleThreadedExecutor()
        for node in (prompter, beside):
            executor.add_node(node)
        prompts = []
        beside.create_subscription(Prompt, '/sam2/prompt', prompts.append, 10)
        beside.create_service(Trigger, '/camera/start', lambda _, response: response)
        beside.create_publisher(PromptStatus, '/sam2/prompt_status', 10)
        instances = beside.create_publisher(InstanceArray, '/sam2/instances', 10)
        truth = beside.create_publisher(Image, '/camera/truth', 10)
        images = beside.create_publisher(Image, 'image', qos_profile_sensor_data)

        def show_until(there, more=0):
            """Publish the truth until a condition holds, and ``more`` times after that."""
            deadline = time.monotonic() + PATIENCE
            while not there() or more > 0:
                more -= bool(there())
                assert time.monotonic() < deadline
                labels = np.zeros((48, 64), np.uint16)
                labels[10:20, 30:50] = 2
                truth.publish(from_pixels(labels, 'mono16', Header(stamp=beside.get_clock().now().to_msg())))
                executor.spin_once(0.02)

        show_until(lambda: images.get_subscription_count() and truth.get_subscription_count(), more=30)
        assert prompts == []
        instances.publish(InstanceArray(header=Header(stamp=beside.get_clock().now().to_msg())))
        show_until(lambda: prompts)
        assert prompts[0].id == 2 and prompts[0].box.x_offset == 30
    finally:
        rclpy.shutdown()
