"""Fixtures of the tests with a camera's pipeline."""
import threading

import pytest
import rclpy
import rclpy.logging

from sam2_core import Sam2Model, StreamTracker, load_model
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.runtime.parameters import Parameters
from testing.waiting import PROMPT_TIMEOUT


@pytest.fixture
def context(ros_domain):
    """Return an rclpy context in a domain of its own."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    yield context
    rclpy.try_shutdown(context=context)


@pytest.fixture(scope='session')
def model() -> Sam2Model:
    return load_model('nano', device='cpu')


@pytest.fixture
def make(model):
    """Return a function that creates a pipeline for images of the topic /camera/image_raw."""
    def pipeline(tracker: StreamTracker | None = None, **parameters) -> CameraPipeline:
        parameters = {'prompt_timeout': PROMPT_TIMEOUT, **parameters}
        chosen = Parameters(**parameters)
        return CameraPipeline(tracker or StreamTracker(model, memory_policy=chosen.memory_policy), chosen,
                              threading.Condition(), '/camera/image_raw', rclpy.logging.get_logger('test'))
    return pipeline
