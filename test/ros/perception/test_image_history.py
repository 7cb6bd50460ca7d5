"""Ring buffer of recent images: what it stores, what it finds, and the reasons if it finds nothing."""
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import Image

from sam2_ros.perception.image_history import ImageHistory, NotStored
from testing.camera_images import header

SECOND = 10**9


def image(stamp: int, size: int = 10) -> Image:
    message = Image(header=header(nanoseconds=stamp))
    message.data.frombytes(bytes(size))
    return message


def history_of(*stamps: float, seconds: float = 2.0, max_bytes: int = 10**6, size: int = 10) -> ImageHistory:
    history = ImageHistory()
    for stamp in stamps:
        history.put(image(round(stamp * SECOND), size), seconds, max_bytes)
    return history


def stamps(history: ImageHistory) -> list[float]:
    return [past.stamp / SECOND for past in history.between(-1, 10**15)]


def test_images_are_found_by_their_stamp():
    history = history_of(10, 10.5, 11)
    assert history.at(round(10.5 * SECOND)).stamp == 10.5 * SECOND
    assert stamps(history) == [10, 10.5, 11]
    assert [past.stamp / SECOND for past in history.between(10 * SECOND, 11 * SECOND)] == [10.5, 11]


def test_what_is_older_than_history_seconds_goes():
    assert stamps(history_of(10, 10.5, 11, 11.9, 12.1)) == [10.5, 11, 11.9, 12.1]


def test_a_history_of_no_seconds_keeps_nothing():
    assert stamps(history_of(10, 11, seconds=0.0)) == []


def test_the_oldest_go_when_there_are_too_many_bytes():
    history = history_of(10, 10.1, 10.2, 10.3, size=100, max_bytes=250)
    assert stamps(history) == [10.2, 10.3]
    assert history.extent() == (2, 200, pytest.approx(0.1))


@given(st.lists(st.tuples(st.integers(1, 60 * SECOND), st.integers(0, 500)), max_size=30),
       st.floats(0, 10), st.integers(0, 2000))
def test_it_is_bounded_whatever_arrives(arrivals, seconds, max_bytes):
    history = ImageHistory()
    for stamp, size in arrivals:
        history.put(image(stamp, size), seconds, max_bytes)
        kept = [past.stamp for past in history.between(-1, 10**15)]
        _, size, length = history.extent()
        assert size <= max_bytes and length <= seconds
        assert kept == sorted(kept)
        assert size == sum(len(past.message.data) for past in history.between(-1, 10**15))


def test_images_out_of_order_are_put_in_order():
    assert stamps(history_of(10, 10.4, 10.2)) == [10, 10.2, 10.4]


def test_of_images_with_one_stamp_the_newer_is_kept():
    history = history_of(10, 10, 10, 10.5)
    assert stamps(history) == [10, 10.5] and history.extent()[:2] == (2, 20)


def test_a_jump_back_empties_it():
    assert stamps(history_of(10, 11, 5)) == [5]


def test_an_image_without_a_stamp_cannot_be_named_and_is_not_kept():
    assert stamps(history_of(0)) == []


def test_the_nearest_stands_in_for_an_image_that_was_lost():
    history = history_of(10, 10.066, 10.2)
    assert history.at(round(10.1 * SECOND)).stamp == round(10.066 * SECOND)
    assert history.at(round(10.19 * SECOND)).stamp == round(10.2 * SECOND)


@pytest.mark.parametrize(('stamp', 'words'), [
    (8.0, 'its image is 3.50 s older than the newest; the history has 2 images and covers 1.00 s: send the prompt '
          'sooner, or raise history_seconds'),
    (11.0, 'no image has its stamp; the nearest is 0.50 s away: copy the header of the image')])
def test_a_stamp_that_is_not_there_is_refused_with_what_is(stamp, words):
    with pytest.raises(NotStored) as refusal:
        history_of(10.5, 11.5).at(round(stamp * SECOND))
    assert str(refusal.value).startswith(words)


def test_an_empty_history_says_so():
    with pytest.raises(NotStored, match='no image is stored .* send the prompt with stamp 0'):
        ImageHistory().at(5)


def test_depth_takes_the_bytes_that_images_leave_and_goes_with_them():
    history = ImageHistory()
    for number in range(1, 6):
        history.put_depth(number * SECOND // 10, 30, f'depth {number}')
        history.put(image(number * SECOND // 10, 100), 10.0, 560)
    assert stamps(history) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert history.extent()[1] == 560 and history.depth_at(3 * SECOND // 10) == 'depth 4', 'the first three went'
    history.put(image(60 * SECOND // 100, 100), 10.0, 560)
    assert len(stamps(history)) == 5 and history.depth_at(0) is None, 'images come first'
    history.put_depth(70 * SECOND // 100, 30, 'new')
    history.put(image(70 * SECOND // 100, 100), 10.0, 1000)
    history.clear()
    assert history.depth_at(0) is None and history.extent()[:2] == (0, 0)


def test_depth_without_an_image_of_its_time_is_not_kept():
    history = ImageHistory()
    history.put_depth(5 * SECOND, 30, 'lonely')
    history.put(image(20 * SECOND), 2.0, 10**6)
    assert history.depth_at(5 * SECOND) is None and history.extent()[1] == 10
