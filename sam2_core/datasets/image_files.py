"""Image files and label PNGs for training. Files that are damaged or ambiguous are refused."""
from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from sam2_core.datasets.exif import UPRIGHT, orientation, upright
from sam2_core.datasets.recordings import VISIBLE_PIXELS, BrokenSample
from sam2_core.image_headers import (
    COLOUR,
    COLOUR_ALPHA,
    GREY_ALPHA,
    PALETTE,
    PNG_SIGNATURE,
    DamagedImage,
    ImageHeader,
    read_image_header,
)

_TIFF = (b'II*\0', b'MM\0*')
_NO_LABELS = {COLOUR: 'a colour PNG', GREY_ALPHA: 'a grey PNG with transparency',
              COLOUR_ALPHA: 'a colour PNG with transparency'}
VOID = 255  # index of pixels that are not annotated, as in DAVIS
_VOID_COLOUR = bytes((224, 224, 192))  # of index 255 in the palette of PASCAL VOC and DAVIS
_FEW_IDS = 8  # a grey image with more values, most of few pixels, holds no ids
_REMOVE = 'rotate the pixels (exiftran -ai, mogrify -auto-orient), which removes the tag'
_SCALE = ('scale all images by one range and save them with 8 bits, as the node needs them: '
          'np.clip((x - low) * (255 / (high - low)), 0, 255).astype(np.uint8)')


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return an image file as uint8 RGB (H, W, 3), in the orientation in which it was annotated.

    size: height and width of the annotation, None if unknown. A photo with an EXIF orientation is rotated if the size
    fits only then. Raises BrokenSample if the orientation remains ambiguous, if the file cannot be read, and for images
    that ``decode_image`` refuses.
    """
    data = _bytes(path)
    return _oriented(decode_image(data, path), orientation(data), size, path)


def check_orientation(path: Path, size: tuple[int, int]) -> None:
    """Raise BrokenSample unless an annotation of this height and width fits an image file as it is stored."""
    data = _bytes(path)
    if (value := orientation(data)) != UPRIGHT:
        image = decode_image(data, path)
        if _oriented(image, value, size, path) is not image:
            raise BrokenSample(path, f'EXIF orientation {value}: the annotation fits the rotated image only, and '
                                     f'images are used as they are stored: {_REMOVE}')


def _oriented(image: np.ndarray, value: int, size: tuple[int, int] | None, name: Path | str) -> np.ndarray:
    """Return an image with the orientation ``value`` as an annotation of this size shows it. Raises BrokenSample."""
    stored = image.shape[:2]
    shown = stored if value < 5 else stored[::-1]
    if value == UPRIGHT or size is not None and size != shown:
        return image
    if size is None or size == stored:
        raise BrokenSample(name, f'EXIF orientation {value}: whether the annotation was drawn on the rotated image, '
                                 f'as viewers show it, cannot be known from its size: {_REMOVE}, and check the labels')
    return upright(image, value)


def decode_image(data: bytes, name: Path | str) -> np.ndarray:
    """Decode the bytes of an image file to uint8 RGB (H, W, 3), as stored: the EXIF orientation is ignored.

    Raises BrokenSample for damaged files, files of another kind, more than 8 bits, transparency and CMYK.
    """
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    header = _header(data, name)
    if header is not None:
        _refuse_deep(header.bits, name)
        if header.kind == 'JPEG' and header.channels == 4:
            raise BrokenSample(name, 'a JPEG for printing (CMYK): save it as RGB')
        if header.colour_type not in (GREY_ALPHA, COLOUR_ALPHA) and all(kind != b'tRNS' for kind, _ in header.chunks):
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    elif data[4:8] == b'ftyp':
        raise BrokenSample(name, 'HEIF or AVIF: save it as JPEG or PNG')
    elif data.startswith(_TIFF) and (value := orientation(data)) != UPRIGHT:
        raise BrokenSample(name, f'TIFF with orientation {value}: save it as PNG, the right way up')
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise BrokenSample(name, 'not an image that can be decoded')
    if image.dtype != np.uint8:
        _refuse_deep(8 * image.itemsize, name)
        raise BrokenSample(name, f'pixels of type {image.dtype}, must have 8 bits')
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    if image.shape[2] == 4 and (image[..., 3] != 255).any():
        raise BrokenSample(name, 'transparent pixels: save it without transparency, on a background')
    return cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_BGR2RGB)


def _refuse_deep(bits: int, name: Path | str) -> None:
    if bits > 8:
        raise BrokenSample(name, f'an image of {bits} bits per channel, which would be cut to 8: {_SCALE}')


def read_labels(path: Path) -> np.ndarray:
    """Return a label PNG as integer ids (H, W), 0 for none: the indices of a palette, or grey values of 1 to 16 bits.

    Index 255 of a palette is void, as in DAVIS; in a grey image 255 is an id (binary masks of 0 and 255). Raises
    BrokenSample for other files, if 255 is ambiguous, and for masks with soft edges.
    """
    data = _bytes(path)
    header = _header(data, path) if data.startswith(PNG_SIGNATURE) else None
    if header is None:
        raise BrokenSample(path, 'not a PNG; labels are indexed or grey PNGs')
    colour_type = header.colour_type
    if colour_type in _NO_LABELS:
        raise BrokenSample(path, f'{_NO_LABELS[colour_type]}; labels are ids: save it as an indexed (palette) or grey '
                                 f'PNG')
    plain = np.frombuffer(_plain(data, header), np.uint8)
    labels = cv2.imdecode(plain, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if labels is None:
        raise BrokenSample(path, 'PNG cannot be decoded')
    if colour_type == PALETTE:
        return _without_void(labels if labels.ndim == 2 else labels[..., 0], data, header, path)
    if labels.dtype == np.uint8:
        _refuse_soft_edges(labels, path)
    return labels


def _without_void(labels: np.ndarray, data: bytes, header: ImageHeader, path: Path) -> np.ndarray:
    void = labels == VOID
    if void.any() and not (labels[~void] > 0).any():
        palette = next((data[place] for kind, place in header.chunks if kind == b'PLTE'), b'')
        if palette[3 * VOID:] != _VOID_COLOUR:
            raise BrokenSample(path, f'an indexed PNG with no index but {VOID}, which may be an object or void: save '
                                     f'the object as index 1, or the file as a grey PNG')
    return np.where(void, 0, labels)


def _refuse_soft_edges(labels: np.ndarray, path: Path) -> None:
    pixels = np.bincount(labels.ravel(), minlength=2)[1:]
    pixels = pixels[pixels > 0]
    if len(pixels) > _FEW_IDS and np.count_nonzero(pixels < VISIBLE_PIXELS) > len(pixels) / 2:
        raise BrokenSample(path, f'{len(pixels)} ids, most of less than {VISIBLE_PIXELS} pixels: a mask with soft '
                                 f'edges or from a JPEG? Save labels as ids, without values in between')


def jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """Encode uint8 RGB (H, W, 3); ``quality``: 0 to 100. Raises OSError if OpenCV cannot."""
    return _encoded('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])


def mask_png(mask: np.ndarray) -> bytes:
    """Encode a bool mask (H, W) as a PNG of 0 and 255. Raises OSError if OpenCV cannot."""
    return _encoded('.png', mask.astype(np.uint8) * 255)


def _encoded(suffix: str, pixels: np.ndarray, settings: Sequence[int] = ()) -> bytes:
    ok, data = cv2.imencode(suffix, pixels, list(settings))
    if not ok:
        raise OSError(f'image of {pixels.shape[1]} x {pixels.shape[0]} pixels: OpenCV cannot encode it as {suffix}')
    return data.tobytes()


def label_png(labels: np.ndarray, deep: bool = False) -> bytes:
    """Encode ids (H, W), 0 for none, as a PNG that ``read_labels`` and the tools of DAVIS read.

    Ids up to 254 are stored as indices of a palette (255 is void). If an id is larger, or if ``deep``, for the other
    frames of its clip, all are stored as 16-bit grey values.
    """
    if deep or labels.max(initial=0) >= VOID:
        return _encoded('.png', labels.astype(np.uint16))
    height, width = labels.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each line begins with its filter, 0 for none
    lines[:, 1:] = labels
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, PALETTE, 0, 0, 0)), (b'PLTE', _palette()),
              (b'IDAT', zlib.compress(lines.tobytes())), (b'IEND', b'')]
    return PNG_SIGNATURE + b''.join(_chunk(kind, body) for kind, body in chunks)


def _palette() -> bytes:
    """Return the palette of PASCAL VOC and DAVIS: bits of the index in threes, the low ones first."""
    colours = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for bit in range(8):
        colours |= (((index[:, None] >> (3 * bit + np.arange(3))) & 1) << (7 - bit)).astype(np.uint8)
    return colours.tobytes()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, 'big') + kind + body + zlib.crc32(kind + body).to_bytes(4, 'big')


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BrokenSample(path, error.strerror or type(error).__name__) from error


def _header(data: bytes, name: Path | str) -> ImageHeader | None:
    """Return the header of a JPEG or PNG, None for data of another kind. Raises BrokenSample unless it is whole."""
    try:
        return read_image_header(data)
    except DamagedImage as error:
        raise BrokenSample(name, str(error)) from None


def _plain(data: bytes, header: ImageHeader) -> bytes:
    """Return a PNG without the chunks that change its values; colour i of a palette becomes the grey i.

    OpenCV decodes colours, not indices, and adds transparency to grey values.
    """
    parts = [PNG_SIGNATURE]
    for kind, place in header.chunks:
        if kind == b'PLTE' and header.colour_type == PALETTE:
            parts.append(_chunk(kind, bytes(i for i in range(1 << header.bits) for _ in range(3))))
        elif kind in (b'IHDR', b'IDAT', b'IEND'):
            parts.append(_chunk(kind, data[place]))
    return b''.join(parts)
