"""With which image a recorded prompt is delivered where nothing is ever late."""
from __future__ import annotations

import bisect
from collections import defaultdict

from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import Prompt
from sam2_ros.perception.prompt_plan import NEEDS_IMAGE
from sam2_ros.recordings.recording import RecordedPrompt, Recording


def deliveries(recording: Recording) -> dict[int, list[RecordedPrompt]]:
    """Index of an image -> the prompts to deliver with it, in the order in which they came.

    A prompt goes with the image it was drawn on, what has no image (stamp 0, REMOVE, CLEAR) with the first one that
    came no earlier. Prompts for one object keep their order: what takes it back is not delivered after a SET that came
    later, and a correction not before the prompts it corrects. Beyond the last image: ``len(recording.stamps)``.
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
