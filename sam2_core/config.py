"""Configuration of a SAM 2 model, and the table of all known models.

The values follow "SAM 2: Segment Anything in Images and Videos" (arXiv 2408.00714, section 4 and appendix D)
and the configuration files published with the checkpoints.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class HieraConfig:
    """Sizes of a Hiera trunk (arXiv 2306.00989). The defaults are those of tiny."""

    embed_dim: int = 96
    num_heads: int = 1
    stages: tuple[int, int, int, int] = (1, 2, 7, 2)  # blocks
    global_attention_blocks: tuple[int, ...] = (5, 7, 9)
    window_sizes: tuple[int, int, int, int] = (8, 4, 14, 7)
    position_grid: int = 7  # side of the learned background position embedding

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return sum(self.stages)


@dataclass(frozen=True)
class RepVitConfig:
    """Sizes of a RepViT trunk (arXiv 2307.09283). The defaults are those of RepViT-M1."""

    channels: tuple[int, int, int, int] = (48, 96, 192, 384)
    stages: tuple[int, int, int, int] = (2, 2, 14, 2)  # blocks


@dataclass(frozen=True)
class PerceiverConfig:
    """Sizes of a spatial perceiver, which compresses memory frames (EdgeTAM, arXiv 2501.07256, section 3.2)."""

    global_latents: int = 256
    grid_side: int = 16  # of the grid of 2-D latents
    layers: int = 2
    feedforward: int = 4  # hidden channels, as a multiple of the memory's

    @property
    def tokens(self) -> int:
        """Number of tokens of a memory frame: global latents, then 2-D latents."""
        return self.global_latents + self.grid_side ** 2


@dataclass(frozen=True)
class Sam2Config:
    """Sizes of all layers of a model, and the rules of its memory. The defaults are those of SAM 2.1 tiny."""

    # image encoder: trunk and feature pyramid
    trunk: HieraConfig | RepVitConfig = field(default_factory=HieraConfig)
    d_model: int = 256

    # memory attention
    memory_attention_layers: int = 4
    memory_attention_feedforward: int = 2048
    rope_theta: float = 10000.0

    # memory encoder
    memory_dim: int = 64
    mask_channels: int = 256  # of the mask downsampler, before its last 1x1 convolution
    fuser_layers: int = 2
    perceiver: PerceiverConfig | None = None  # None: a memory frame has one token for each cell of the image's grid

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
        if self.perceiver is not None and self.grid % self.perceiver.grid_side:
            step = 16 * self.perceiver.grid_side
            raise ValueError(f'image_size {self.image_size}: must be a multiple of {step} for a model with a spatial '
                             f'perceiver, for example {step}, {2 * step} or {4 * step}')

    @property
    def grid(self) -> int:
        """Side of the stride-16 feature map."""
        return self.image_size // 16

    @property
    def memory_tokens(self) -> int:
        """Number of tokens of a memory frame."""
        return self.grid ** 2 if self.perceiver is None else self.perceiver.tokens


def check_image_size(image_size: int) -> None:
    """Raise ValueError unless ``image_size`` is a positive multiple of 32, as the trunk's windows require."""
    if not isinstance(image_size, int) or image_size <= 0 or image_size % 32:
        raise ValueError(f'image_size {image_size!r}: must be a positive multiple of 32, for example 256, 512 or 1024')


_HIERA = {
    'tiny': HieraConfig(),
    'small': HieraConfig(stages=(1, 2, 11, 2), global_attention_blocks=(7, 10, 13)),
    'base_plus': HieraConfig(embed_dim=112, num_heads=2, stages=(2, 3, 16, 3), global_attention_blocks=(12, 16, 20),
                             position_grid=14),
    'large': HieraConfig(embed_dim=144, num_heads=2, stages=(2, 6, 36, 4), global_attention_blocks=(23, 33, 43),
                         window_sizes=(8, 4, 16, 8)),
}
_SAM_2_1 = {f'sam2.1_hiera_{size}': Sam2Config(trunk) for size, trunk in _HIERA.items()}
_SAM_2 = {f'sam2_hiera_{size}': Sam2Config(trunk, no_object_embedding=False, pointer_time_codes=False)
          for size, trunk in _HIERA.items()}

VARIANTS: dict[str, Sam2Config] = {
    'nano': Sam2Config(
        HieraConfig(embed_dim=32, stages=(1, 2, 4, 1), global_attention_blocks=(4, 6), window_sizes=(8, 4, 8, 8),
                    position_grid=8),
        d_model=96, memory_attention_layers=2, memory_attention_feedforward=256, memory_dim=32,
        decoder_heads=4, decoder_feedforward=256, iou_head_hidden=128, max_pointer_distance=32, image_size=256,
        masks_alone=False),
    'edgetam': Sam2Config(RepVitConfig(), memory_attention_layers=2, perceiver=PerceiverConfig(),
                          no_object_embedding=False, pointer_time_codes=False),
    **_SAM_2,
    **_SAM_2_1,
}
"""Configuration of every known model, by name."""


def variant(name: str, image_size: int | None = None) -> Sam2Config:
    """Return the configuration called ``name``, for images of another size if one is given.

    Raise ValueError for an unknown name, and for a size that the model does not take.
    """
    try:
        config = VARIANTS[name]
    except KeyError:
        raise ValueError(f'model {name!r} is not known: choose one of {", ".join(VARIANTS)}') from None
    return config if image_size is None else replace(config, image_size=image_size)
