"""Configuration of a SAM 2 model, and the table of all known models.

The values follow "SAM 2: Segment Anything in Images and Videos" (arXiv 2408.00714, section 4 and appendix D)
and the configuration files published with the checkpoints.
"""
from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sam2Config:
    """Sizes of all layers of a model, and the rules of its memory. The defaults are those of SAM 2.1 tiny."""

    # image encoder: Hiera trunk (arXiv 2306.00989) and feature pyramid
    embed_dim: int = 96
    num_heads: int = 1
    stages: tuple[int, int, int, int] = (1, 2, 7, 2)
    global_attention_blocks: tuple[int, ...] = (5, 7, 9)
    window_sizes: tuple[int, int, int, int] = (8, 4, 14, 7)
    position_grid: int = 7  # side of the learned background position embedding
    d_model: int = 256

    # memory attention
    memory_attention_layers: int = 4
    memory_attention_feedforward: int = 2048
    rope_theta: float = 10000.0

    # memory encoder
    memory_dim: int = 64
    mask_channels: int = 256  # of the mask downsampler, before its last 1x1 convolution
    fuser_layers: int = 2

    # prompt encoder and mask decoder
    mask_prompt_channels: int = 16
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_feedforward: int = 2048
    iou_head_hidden: int = 256
    stability_delta: float = 0.05
    stability_threshold: float = 0.98

    # memory bank
    memory_frames: int = 7  # time slots: one for conditioning frames, the others for recent frames
    object_pointers: int = 16  # frames that pointers reach back, the present frame included
    max_pointer_distance: int = 300  # frames, upper limit of a conditioning pointer's age

    # additions of SAM 2.1
    no_object_embedding: bool = True  # added to the memory of an absent object
    pointer_time_codes: bool = True  # added to pointers by their age

    image_size: int = 1024
    masks_alone: bool = True  # whether a single image may be prompted by a mask without points or a box

    def __post_init__(self) -> None:
        check_image_size(self.image_size)

    @property
    def blocks(self) -> int:
        """Number of trunk blocks."""
        return sum(self.stages)

    @property
    def grid(self) -> int:
        """Side of the stride-16 feature map; a memory frame has ``grid ** 2`` tokens."""
        return self.image_size // 16


def check_image_size(image_size: int) -> None:
    """Raise ValueError unless ``image_size`` is a positive multiple of 32, as the trunk's windows require."""
    if not isinstance(image_size, int) or image_size <= 0 or image_size % 32:
        raise ValueError(f'image_size {image_size!r}: must be a positive multiple of 32, for example 256, 512 or 1024')


_TINY = Sam2Config()
_SMALL = replace(_TINY, stages=(1, 2, 11, 2), global_attention_blocks=(7, 10, 13))
_BASE_PLUS = replace(_TINY, embed_dim=112, num_heads=2, stages=(2, 3, 16, 3),
                     global_attention_blocks=(12, 16, 20), position_grid=14)
_LARGE = replace(_TINY, embed_dim=144, num_heads=2, stages=(2, 6, 36, 4),
                 global_attention_blocks=(23, 33, 43), window_sizes=(8, 4, 16, 8))
_SIZES = {'tiny': _TINY, 'small': _SMALL, 'base_plus': _BASE_PLUS, 'large': _LARGE}

VARIANTS: dict[str, Sam2Config] = {
    'nano': Sam2Config(
        embed_dim=32, stages=(1, 2, 4, 1), global_attention_blocks=(4, 6), window_sizes=(8, 4, 8, 8), position_grid=8,
        d_model=96, memory_attention_layers=2, memory_attention_feedforward=256, memory_dim=32,
        decoder_heads=4, decoder_feedforward=256, iou_head_hidden=128, max_pointer_distance=32, image_size=256,
        masks_alone=False),
    **{f'sam2_hiera_{size}': replace(config, no_object_embedding=False, pointer_time_codes=False)
       for size, config in _SIZES.items()},
    **{f'sam2.1_hiera_{size}': config for size, config in _SIZES.items()},
}
"""Configuration of every known model, by name."""


def variant(name: str) -> Sam2Config:
    """Return the configuration called ``name``; raise ValueError for an unknown name."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise ValueError(f'model {name!r} is not known: choose one of {", ".join(VARIANTS)}') from None
