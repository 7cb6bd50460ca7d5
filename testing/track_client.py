"""Client of the action ``~/track`` in system tests."""
from __future__ import annotations

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient

from sam2_ros.action import Track
from sam2_ros.msg import Instance, Prompt
from testing.peer import Peer

SUCCEEDED, ABORTED, CANCELLED = (GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_ABORTED, GoalStatus.STATUS_CANCELED)


class TrackClient:
    """Action client of a peer's node."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.client = ActionClient(peer.node, Track, f'{peer.private}/track')
        peer.wait_for(self.client.server_is_ready, 'the action track')

    def send(self, prompt: Prompt, lost_timeout: float = 0.0) -> SentGoal:
        """Send a goal; return it as soon as the node has accepted it."""
        goal = SentGoal(self, Track.Goal(prompt=prompt, lost_timeout=lost_timeout))
        goal.begin()
        return goal


class SentGoal:
    """A goal of this client, and what came back for it."""

    def __init__(self, client: TrackClient, goal: Track.Goal) -> None:
        self._peer = client.peer
        self.feedback: list[Track.Feedback] = []
        self._sent = client.client.send_goal_async(goal, lambda message: self.feedback.append(message.feedback))
        self._ended = None

    def begin(self) -> None:
        """Wait until the goal has been accepted, and ask for its result."""
        self._peer.wait_for(self._sent.done, 'the answer to a goal')
        self.handle = self._sent.result()
        assert self.handle.accepted
        self._ended = self.handle.get_result_async()

    def done(self) -> bool:
        """Return whether the result has arrived."""
        return self._ended.done()

    def end(self, image=None) -> tuple[int, Track.Result]:
        """Show the image until the goal has ended, None: no image; return its status and its result."""
        if image is None:
            self._peer.wait_for(self.done, 'the result of a goal')
        else:
            self._peer.show_until(self.done, image)
        return self._ended.result().status, self._ended.result().result

    def cancel(self, image=None) -> tuple[int, Track.Result]:
        """Cancel the goal; return its status and its result."""
        answer = self.handle.cancel_goal_async()
        self._peer.wait_for(answer.done, 'the answer to a cancellation')
        assert len(answer.result().goals_canceling) == 1
        return self.end(image)

    def follow(self, image) -> Instance:
        """Show the image until the first feedback has come; return its instance."""
        self._peer.show_until(lambda: self.feedback or self.done(), image)
        assert self.feedback, self._ended.result().result.text
        return self.feedback[0].instance
