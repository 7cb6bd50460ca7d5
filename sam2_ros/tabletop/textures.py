"""What the demo's table and the things on it are painted with."""
import cv2
import numpy as np

TABLE_PIXELS = 2048       # side of the square table texture

# of one thing: its colour, a lighter shade for patterns, its print; none near the wood of the table
PALETTES = np.array([
    [(190, 40, 45), (228, 98, 90), (250, 240, 230)],
    [(40, 85, 185), (92, 142, 228), (240, 240, 250)],
    [(35, 125, 75), (98, 178, 112), (240, 245, 230)],
    [(195, 60, 150), (228, 125, 195), (250, 240, 250)],
    [(222, 224, 230), (182, 188, 205), (60, 70, 110)],
])


def _cloud(random, rows, columns, coarse_rows, coarse_columns, octaves=4):
    """Fractal noise 0..1, (rows, columns) float32; the coarsest cells are rows / coarse_rows pixels tall."""
    total = np.zeros((rows, columns), np.float32)
    for octave in range(octaves):
        cells = random.random((min(coarse_rows << octave, rows), min(coarse_columns << octave, columns)), np.float32)
        total += cv2.resize(cells, (columns, rows), interpolation=cv2.INTER_CUBIC) / 2 ** octave
    total -= total.min()
    return total / total.max()


def _grain(random, image, amount=0.25):
    """Wear: multiplies a painted texture (uint8 RGB) with fractal noise."""
    noise = _cloud(random, *image.shape[:2], 8, 8)
    return np.clip(image * (1 - amount / 2 + amount * (noise - 0.5))[..., None], 0, 255).astype(np.uint8)


def wood(random):
    side = TABLE_PIXELS
    fibres = _cloud(random, side, side, 128, 6)
    blotches = _cloud(random, side, side, 6, 6)
    board = np.arange(side) * 14 // side
    tone = 0.85 + 0.15 * random.random(14, np.float32)[board][:, None]
    colour = np.array([176, 146, 112], np.float32) * (tone * (0.8 + 0.22 * fibres + 0.14 * blotches))[..., None]
    colour[np.convolve(np.diff(board, prepend=0) > 0, np.ones(5), 'same') > 0] *= 0.75
    return np.clip(colour, 0, 255).astype(np.uint8)


def _canvas(colour, rows=256, columns=512):
    return np.full((rows, columns, 3), colour, np.uint8)


def _write(image, text, colour, scale, origin):
    cv2.putText(image, text, origin, cv2.FONT_HERSHEY_DUPLEX, scale, colour.tolist(), int(scale * 4), cv2.LINE_AA)


def beach_ball(random, colours):
    image = _canvas(colours[0])
    image[:, (np.arange(512) * 6 // 512) % 2 == 1] = colours[1]
    return _grain(random, image)


def can(random, colours, text):
    image = _canvas(colours[0])
    image[32:60] = image[228:] = colours[1]
    for x in (20, 276):
        _write(image, text, colours[2], 1.8, (x + 25, 165))
    image[:26] = colours[1]
    image[20:26] = colours[0]
    return _grain(random, image)


def dotted_box(random, colours, text):
    image = _canvas(colours[0], 256, 256)
    for row in range(5):
        for column in range(5):
            cv2.circle(image, (26 + column * 51, 26 + row * 51), 13, colours[1].tolist(), -1, cv2.LINE_AA)
    _write(image, text, colours[2], 1.8, (75, 150))
    return _grain(random, image)


def zigzag_cup(random, colours):
    image = _canvas(colours[0])
    x = np.arange(0, 513, 32)
    for offset in (100, 165):
        points = np.stack([x, offset + 28 * (np.arange(len(x)) % 2)], 1).astype(np.int32)
        cv2.polylines(image, [points], False, colours[1].tolist(), 22, cv2.LINE_AA)
    image[:22] = colours[0] // 2
    return _grain(random, image)


def striped_box(random, colours, text):
    image = _canvas(colours[0], 320, 256)
    for x in range(-320, 256, 64):
        cv2.line(image, (x, 320), (x + 320, 0), colours[1].tolist(), 18, cv2.LINE_AA)
    _write(image, text, colours[2], 2.2, (40, 120))
    return _grain(random, image)
