"""Inbox between the receiving thread and the worker."""
import threading
import time

from sensor_msgs.msg import Image

from sam2_ros.msg import Prompt
from sam2_ros.perception.inbox import Inbox
from sam2_ros.perception.prompt_plan import PromptRequest
from sam2_ros.perception.single_image import MAX_QUERIES


def request(message: Prompt | None = None, age: float = 0.0) -> PromptRequest:
    return PromptRequest(message or Prompt(), time.monotonic() - age)


def test_the_newest_image_wins_and_the_others_are_counted():
    inbox = Inbox(threading.Condition())
    images = [Image(height=number) for number in range(4)]
    for image in images:
        inbox.put_image(image)
    assert inbox.take_image() is images[-1]
    assert inbox.take_image() is None
    assert inbox.take_dropped() == 3
    assert inbox.take_dropped() == 0


def test_every_image_is_either_taken_or_counted_whatever_the_timing():
    inbox, taken = Inbox(changed := threading.Condition()), []
    sent = 5000

    def send():
        for number in range(sent):
            inbox.put_image(Image(height=number))
        inbox.put_prompt(request())  # the end

    sender = threading.Thread(target=send)
    sender.start()
    while True:
        with changed:
            assert changed.wait_for(lambda: inbox.waiting_since() is not None, timeout=20)
        if (image := inbox.take_image()) is not None:
            taken.append(image.height)
        elif inbox.look()[0]:
            break
    sender.join()
    assert taken == sorted(taken) and taken[-1] == sent - 1
    assert len(taken) + inbox.take_dropped() == sent


def test_prompts_keep_their_order_and_those_that_stay_come_first():
    inbox = Inbox(threading.Condition())
    first, second, third = (request() for _ in range(3))
    inbox.put_prompt(first)
    inbox.put_prompt(second)
    assert inbox.waiting_since() is not None
    assert inbox.look()[0] == [first, second]
    inbox.put_prompt(third)
    inbox.remove([first])
    assert inbox.look()[0] == [second, third]


def test_a_prompt_that_stays_is_no_news():
    inbox = Inbox(threading.Condition())
    inbox.put_prompt(request())
    inbox.look()
    assert not inbox.waiting_since() is not None


def test_the_queue_of_prompts_is_bounded():
    inbox = Inbox(threading.Condition())
    assert all(inbox.put_prompt(request()) for _ in range(Inbox.PROMPT_LIMIT))
    assert not inbox.put_prompt(request())
    assert len(inbox.look()[0]) == Inbox.PROMPT_LIMIT


def test_what_waits_counts_from_the_first_arrival():
    inbox = Inbox(threading.Condition())
    assert inbox.waiting_since() is None
    before = time.monotonic()
    inbox.put_image(Image())
    since = inbox.waiting_since()
    assert before <= since <= time.monotonic()
    inbox.put_image(Image())
    inbox.put_prompt(request())
    assert inbox.waiting_since() == since, 'a newer image does not push a camera back in the queue'
    inbox.take_image()
    inbox.look()
    assert inbox.waiting_since() is None


def test_a_prompt_that_comes_while_the_image_is_taken_is_news():
    inbox = Inbox(threading.Condition())
    inbox.put_image(Image())
    inbox.put_prompt(request())
    inbox.take_image()
    assert inbox.waiting_since() is not None


def test_the_queue_of_queries_is_bounded():
    inbox, queries = Inbox(threading.Condition()), [object() for _ in range(MAX_QUERIES)]
    assert all(map(inbox.put_query, queries))
    assert not inbox.put_query(object())
    assert inbox.waiting_since() is not None
    assert inbox.look() == ([], queries)


def test_an_image_is_no_older_than_itself_after_prompts_that_have_been_looked_at():
    inbox = Inbox(threading.Condition())
    inbox.put_prompt(request())
    inbox.take_image()
    inbox.look()
    before = time.monotonic()
    inbox.put_image(Image())
    assert inbox.waiting_since() >= before
