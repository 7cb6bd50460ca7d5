"""Masks are resized to the image a few at a time, which bounds memory and changes no pixel."""
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from sam2_core import ImageSegmenter, Prompt, StreamTracker
from sam2_core.resizing import CHUNK_BYTES, at_image_size


class LargestFloat(TorchFunctionMode):
    """Record the size in bytes of the largest float tensor that any function returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(made, torch.Tensor) and made.is_floating_point():
                self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(('count', 'side', 'height', 'width'), [
    (1, 64, 480, 640), (40, 64, 480, 640), (7, 256, 1080, 1920), (3, 64, 2400, 3200), (70, 64, 37, 41), (0, 64, 9, 9)])
def test_masks_are_those_of_scaling_all_at_once_bit_for_bit(count, side, height, width):
    logits = torch.randn(count, side, side, generator=torch.Generator().manual_seed(count))
    with torch.inference_mode(), LargestFloat() as largest:
        masks = at_image_size(logits, height, width)
    expected = F.interpolate(logits[:, None], size=(height, width), mode='bilinear')[:, 0] > 0 if count else masks
    assert masks.shape == (count, height, width) and torch.equal(masks, expected)
    assert largest.bytes <= max(CHUNK_BYTES, height * width * 4)


def test_a_frame_with_many_objects_needs_no_more_floats_than_its_image(nano, scene):
    height, width = 1080, 1920
    image = torch.from_numpy(scene.image(0)).repeat(5, 6, 1)[:height, :width].contiguous()
    boxes = [(60 + 200 * i, 60, 200 + 200 * i, 300) for i in range(6)]
    tracker, segmenter = StreamTracker(nano), ImageSegmenter(nano)
    with LargestFloat() as largest:
        result = tracker.step(image, [Prompt(i, box=box) for i, box in enumerate(boxes, 1)])
        tracker.step(image)
        segmenter.segment(segmenter.encode(image), Prompt(points=[(100, 100)], labels=[1]), multimask=True)
        segmenter.segment_all(image, points_per_side=2)
    assert len(result.objects) == 6
    assert largest.bytes == height * width * 3 * 4 < 6 * height * width * 4
