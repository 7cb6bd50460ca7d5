"""Data sets in their published layouts, written byte by byte for the tests of their readers."""
import json
import struct
import zlib

import cv2
import numpy as np

HEIGHT, WIDTH = 96, 128


def scene(frame: int, height: int = HEIGHT, width: int = WIDTH):
    """Return an image and its labels: a bright disc (id 1) that moves right, and a dark square (id 3) at rest."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([100 + 40 * np.sin(columns / 9), 110 + 0 * rows, 90 + 30 * np.cos(rows / 7)], -1).astype(np.uint8)
    labels = np.zeros((height, width), np.uint8)
    disc = (columns - 24 - 4 * frame) ** 2 + (rows - 30) ** 2 <= 14 ** 2
    square = (abs(columns - 90) < 12) & (abs(rows - 70) < 12)
    for number, where, colour in ((1, disc, (230, 60, 50)), (3, square, (20, 30, 120))):
        labels[where] = number
        image[where] = colour
    return image, labels


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def indexed_png(indices: np.ndarray, depth: int = 8) -> bytes:
    """Return a palette PNG with ``depth`` bits per pixel, random colours, and one transparent colour."""
    height, width = indices.shape
    palette = np.random.default_rng(5).integers(0, 256, (1 << depth, 3), np.uint8)
    lines = []
    for row in indices:
        bits = ((row[:, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8).reshape(-1)
        lines.append(b'\0' + np.packbits(bits).tobytes())
    return b''.join([b'\x89PNG\r\n\x1a\n', chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, 3, 0, 0, 0)),
                     chunk(b'PLTE', palette.tobytes()), chunk(b'tRNS', b'\0'),
                     chunk(b'IDAT', zlib.compress(b''.join(lines))), chunk(b'IEND', b'')])


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def davis_clip(folder, name: str, frames: int = 10, make=scene):
    """Write a clip in the layout of DAVIS, its labels as indexed PNGs."""
    images, labels = folder / 'JPEGImages' / name, folder / 'Annotations' / name
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for frame in range(frames):
        image, ids = make(frame)
        (images / f'{frame:05}.jpg').write_bytes(jpeg(image))
        (labels / f'{frame:05}.png').write_bytes(indexed_png(ids))


def runs(mask: np.ndarray) -> list[int]:
    """Return the lengths of the runs of a mask, column by column, the first one of zeros."""
    counts, value = [0], False
    for pixel in mask.T.reshape(-1):
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def compressed(counts: list[int]) -> str:
    """Return run lengths as COCO's compressed text."""
    text = ''
    for i, count in enumerate(counts):
        number = count - (counts[i - 2] if i > 2 else 0)
        while True:
            group, number = number & 31, number >> 5
            more = number != (-1 if group & 16 else 0)
            text += chr(48 + group + 32 * more)
            if not more:
                break
    return text


def sav_video(folder, number: int, annotated: int = 6, kind: str = 'manual', frames: int = 0, claimed: int = 0):
    """Write a video of 24 frames/s with every fourth frame labelled; frame numbers of ``scene`` are those of the video.

    frames: number of frames of the video; claimed: number that the JSON states.
    """
    frames = frames or 4 * (annotated - 1) + 1
    name = f'sav_{number:06}'
    folder.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(folder / f'{name}.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 24, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for frame in range(frames):
        writer.write(cv2.cvtColor(scene(frame)[0], cv2.COLOR_RGB2BGR))
    writer.release()
    masklet = [[{'size': [HEIGHT, WIDTH], 'counts': compressed(runs(scene(4 * i)[1] == number))} for number in (1, 3)]
               for i in range(annotated)]
    (folder / f'{name}_{kind}.json').write_text(json.dumps({
        'video_id': name, 'video_frame_count': float(claimed or frames), 'video_height': float(HEIGHT),
        'video_width': float(WIDTH), 'masklet': masklet, 'masklet_id': [0, 1], 'masklet_num': 2}))


def polygon(mask: np.ndarray) -> list[float]:
    """Return the outline of a mask as corners in COCO's coordinates."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    corners = contours[0][:, 0].astype(float)
    centre = corners.mean(axis=0)
    return (corners + 0.5 + 0.5 * np.sign(corners - centre)).reshape(-1).tolist()


def coco_folder(folder, images: int = 4):
    """Write images whose objects are a polygon, run lengths, compressed run lengths, and a crowd."""
    (folder / 'train').mkdir(parents=True)
    (folder / 'annotations').mkdir()
    entries, annotations = [], []
    for i in range(images):
        image, labels = scene(3 * i)
        (folder / 'train' / f'{i}.jpg').write_bytes(jpeg(image))
        entries.append({'id': i, 'file_name': f'{i}.jpg', 'height': HEIGHT, 'width': WIDTH})
        disc, square = labels == 1, labels == 3
        size = [HEIGHT, WIDTH]
        square_runs = runs(square)
        for segmentation, crowd in (
                ([polygon(disc)], 0), ({'size': size, 'counts': square_runs if i % 2 else compressed(square_runs)}, 0),
                ({'size': size, 'counts': runs(labels == 0)}, 1)):
            annotations.append({'id': len(annotations), 'image_id': i, 'category_id': 1, 'iscrowd': crowd,
                                'segmentation': segmentation})
    (folder / 'annotations' / 'instances_train.json').write_text(json.dumps(
        {'images': entries, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'thing'}]}))
