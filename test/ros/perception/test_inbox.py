"""What the receiving thread leaves for the worker."""
import threading
import time

from sensor_msgs.msg import Image

from sam2_ros.msg import Prompt
from sam2_ros.perception.inbox import Mailbox
from sam2_ros.perception.prompt_plan import PromptRequest
from sam2_ros.perception.single_image import MAX_QUESTIONS


def request(message: Prompt | None = None, age: float = 0.0) -> PromptRequest:
    return PromptRequest(message or Prompt(), time.monotonic() - age)


def test_the_newest_image_wins_and_the_others_are_counted():
    mailbox = Mailbox(threading.Condition())
    images = [Image(height=number) for number in range(4)]
    for image in images:
        mailbox.put_image(image)
    assert mailbox.take_image() is images[-1]
    assert mailbox.take_image() is None
    assert mailbox.take_dropped() == 3
    assert mailbox.take_dropped() == 0


def test_every_image_is_either_taken_or_counted_whatever_the_timing():
    mailbox, taken = Mailbox(changed := threading.Condition()), []
    sent = 5000

    def send():
        for number in range(sent):
            mailbox.put_image(Image(height=number))
        mailbox.put_prompt(request())  # the end

    sender = threading.Thread(target=send)
    sender.start()
    while True:
        with changed:
            assert changed.wait_for(lambda: mailbox.waiting_since() is not None, timeout=20)
        if (image := mailbox.take_image()) is not None:
            taken.append(image.height)
        elif mailbox.take_requests()[0]:
            break
    sender.join()
    assert taken == sorted(taken) and taken[-1] == sent - 1
    assert len(taken) + mailbox.take_dropped() == sent


def test_prompts_keep_their_order_and_those_put_back_come_first():
    mailbox = Mailbox(threading.Condition())
    first, second, third = (request() for _ in range(3))
    mailbox.put_prompt(first)
    mailbox.put_prompt(second)
    assert mailbox.waiting_since() is not None
    assert mailbox.take_requests()[0] == [first, second]
    mailbox.put_prompt(third)
    mailbox.return_prompts([second])
    assert mailbox.take_requests()[0] == [second, third]


def test_a_prompt_put_back_is_no_news():
    mailbox = Mailbox(threading.Condition())
    mailbox.put_prompt(request())
    mailbox.return_prompts(mailbox.take_requests()[0])
    assert not mailbox.waiting_since() is not None


def test_the_queue_of_prompts_is_bounded():
    mailbox = Mailbox(threading.Condition())
    assert all(mailbox.put_prompt(request()) for _ in range(Mailbox.PROMPT_LIMIT))
    assert not mailbox.put_prompt(request())
    assert len(mailbox.take_requests()[0]) == Mailbox.PROMPT_LIMIT


def test_what_waits_counts_from_the_first_arrival():
    mailbox = Mailbox(threading.Condition())
    assert mailbox.waiting_since() is None
    before = time.monotonic()
    mailbox.put_image(Image())
    since = mailbox.waiting_since()
    assert before <= since <= time.monotonic()
    mailbox.put_image(Image())
    mailbox.put_prompt(request())
    assert mailbox.waiting_since() == since, 'a newer image does not push a camera back in the queue'
    mailbox.take_image()
    mailbox.take_requests()
    assert mailbox.waiting_since() is None


def test_a_prompt_that_comes_while_the_image_is_taken_is_news():
    mailbox = Mailbox(threading.Condition())
    mailbox.put_image(Image())
    mailbox.put_prompt(request())
    mailbox.take_image()
    assert mailbox.waiting_since() is not None


def test_the_queue_of_questions_is_bounded():
    mailbox, questions = Mailbox(threading.Condition()), [object() for _ in range(MAX_QUESTIONS)]
    assert all(map(mailbox.put_one_shot, questions))
    assert not mailbox.put_one_shot(object())
    assert mailbox.waiting_since() is not None
    assert mailbox.take_requests() == ([], questions)


def test_an_image_is_no_older_than_itself_after_prompts_that_have_been_looked_at():
    mailbox = Mailbox(threading.Condition())
    mailbox.put_prompt(request())
    mailbox.take_image()
    mailbox.take_requests()
    before = time.monotonic()
    mailbox.put_image(Image())
    assert mailbox.waiting_since() >= before
