"""Annotations of tracked objects in the format of COCO, one place for all commands that write them."""
from __future__ import annotations

from typing import Any

NO_LABEL = 'object'  # category of objects without a label


def annotation(number: int, image: int, category: int, size: tuple[int, int], counts: str,
               box: tuple[int, int, int, int], area: int, track: int, score: float) -> dict[str, Any]:
    """Return the annotation of one mask.

    Args:
        number: Id of the annotation.
        image: Id of the image.
        category: Id of the category.
        size: Height and width of the image.
        counts: Run lengths of the mask, COCO's compressed text.
        box: Box (x0, y0, x1, y1) of the mask, x1 and y1 exclusive.
        area: Pixels of the mask.
        track: Id of the object, equal in all images.
        score: Expected IoU, 0..1.
    """
    x0, y0, x1, y1 = box
    return {'id': number, 'image_id': image, 'category_id': category, 'iscrowd': 0,
            'segmentation': {'size': list(size), 'counts': counts}, 'area': area,
            'bbox': [x0, y0, x1 - x0, y1 - y0], 'track_id': track, 'score': round(score, 4)}
