"""Prompt requests that the worker has read and not yet answered."""
from __future__ import annotations

import time
from collections.abc import Container, Iterable, Sequence

from sam2_ros.perception.inbox import Inbox
from sam2_ros.perception.late_prompts import LatePrompts
from sam2_ros.perception.prompt_plan import PromptAnswer, PromptRequest, refuse
from sam2_ros.runtime.failures import Failures


class OpenRequests:
    """Record that has each prompt request of one camera answered exactly once, whatever fails on its way.

    A request stays in the inbox until it is due. From then on it is answered with its image, or by the late prompts
    that took it over; a request that neither holds any more has been lost in a failure and is refused.
    """

    def __init__(self, inbox: Inbox, late: LatePrompts, failures: Failures) -> None:
        self._inbox = inbox
        self._late = late
        self._failures = failures
        self._open: dict[PromptRequest, None] = {}
        self._unrouted: Sequence[PromptRequest] = ()

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, requests: Sequence[PromptRequest]) -> None:
        """Note requests that the worker has read from the inbox, where they still are."""
        self._open.update(dict.fromkeys(requests))
        self._unrouted = requests

    def routed(self, waiting: Container[PromptRequest]) -> None:
        """Take the requests just read out of the inbox, except those that wait for a later image."""
        self._inbox.remove([request for request in self._unrouted if request not in waiting])
        self._unrouted = ()

    def settle(self, answers: Iterable[PromptAnswer], reason: str = '') -> list[PromptAnswer]:
        """Return the first answer of each open request, and refusals of lost requests.

        reason: Failure that cost the lost requests their answer; empty takes the most recent failure.
        """
        self._failures.run('prompts', self.routed, ())  # changes nothing unless routing has failed
        settled = []
        for answer in answers:
            if answer.request in self._open:
                del self._open[answer.request]
                settled.append(answer)
        held = {*self._inbox.prompts, *self._late.requests}
        for request in [request for request in self._open if request not in held]:
            del self._open[request]
            settled.append(refuse(request, f'the node failed before the prompt was applied, see the log: '
                                           f'{reason or next(iter(self._failures.recent(time.monotonic())), "")}'))
        return settled

    def refuse_all(self, reason: str) -> list[PromptAnswer]:
        """Refuse every open request, also those that wait for an image."""
        return self.settle([refuse(request, reason) for request in self._open])
