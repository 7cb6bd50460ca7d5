"""Delivery of recorded prompts in lock-step: each with the image it was drawn on."""
from __future__ import annotations

import bisect
from collections import defaultdict

from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import Prompt
from sam2_ros.perception.prompt_plan import NEEDS_IMAGE
from sam2_ros.recordings.recording import RecordedPrompt, Recording


def deliveries(recording: Recording) -> dict[int, list[RecordedPrompt]]:
    """Return the prompts to deliver with each image, by its index, in the order of their arrival.

    A prompt is delivered with the image it was drawn on. A prompt without an image (stamp 0, REMOVE, CLEAR) is
    delivered with the first image that arrived at the same time or later. Prompts for one object keep their order: a
    REMOVE or CLEAR is delivered no later than a SET that arrived after it, and a correction no earlier than the prompts
    it corrects. The index ``len(recording.stamps)`` has the prompts for images after the last one.
    """
    prompts = sorted(recording.prompts, key=lambda prompt: prompt.arrival)
    places = [_place(recording, prompt) for prompt in prompts]
    for later, prompt in enumerate(prompts):
        for earlier in range(later):
            before = prompts[earlier].message
            if not _same_object(before, prompt.message):
                continue
            if prompt.message.action == Prompt.REFINE:
                places[later] = max(places[later], places[earlier])
            elif prompt.message.action == Prompt.SET and before.action not in NEEDS_IMAGE:
                places[earlier] = min(places[earlier], places[later])
    result = defaultdict(list)
    for place, prompt in zip(places, prompts, strict=True):
        result[place].append(prompt)
    return dict(result)


def _place(recording: Recording, prompt: RecordedPrompt) -> int:
    stamp = to_nanoseconds(prompt.message.header.stamp)
    if stamp and prompt.message.action in NEEDS_IMAGE:
        return bisect.bisect_left(recording.stamps, stamp)
    return next((index for index, arrival in enumerate(recording.arrivals) if arrival >= prompt.arrival),
                len(recording.arrivals))


def _same_object(a: Prompt, b: Prompt) -> bool:
    return a.action == Prompt.CLEAR or a.id == b.id != 0
