"""Ways into a camera's pipeline that has no topics."""
from __future__ import annotations

import time

import numpy as np
from std_msgs.msg import Header

from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Prompt
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.frame import Frame
from sam2_ros.perception.prompt_plan import PromptAnswer, PromptRequest


def send(pipeline: CameraPipeline, *prompts: Prompt, age: float = 0.0) -> None:
    """Put prompts into the inbox, received ``age`` seconds ago."""
    for prompt in prompts:
        assert pipeline.inbox.put_prompt(PromptRequest(prompt, time.monotonic() - age))


def work(pipeline: CameraPipeline) -> tuple[Frame | None, list[PromptAnswer]]:
    """Process what has arrived, as the worker does."""
    pipeline.take()
    return pipeline.work()


def show(pipeline: CameraPipeline, pixels: np.ndarray, header: Header,
         *prompts: Prompt) -> tuple[Frame | None, list[PromptAnswer]]:
    """Let prompts and an image arrive; return the frame and the answers."""
    send(pipeline, *prompts)
    pipeline.put_image(from_pixels(pixels, 'rgb8', header))
    return work(pipeline)


def work_aside(pipeline: CameraPipeline) -> list[PromptAnswer]:
    """Work on all slices of late prompts and queries; return the answers to prompts."""
    answers = []
    while pipeline.has_work_aside():
        answers += pipeline.work_aside()
    return answers
