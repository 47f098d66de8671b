"""The families of files of the original layout: what a folder of diffusers has in its JSON files.

A file has weights alone. Its family follows from the shapes of two of its tensors, and these are
the configs of the published models.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffjax.conditioning.clip import END
from diffjax.conditioning.model_folder import Tensors
from diffjax.errors import UserError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
STEM = f"{UNET}input_blocks.0.0.weight"
# Of a U-Net's first attention to the text.
KEYS = ".transformer_blocks.0.attn2.to_k.weight"

Config = Mapping[str, Any]


class Encoder(NamedTuple):
    """A text encoder in a file.

    Attributes:
      config: as in a folder's config.json.
      prefix: of its tensors' names.
      is_open_clip: whether it has OpenCLIP's names instead of those of transformers.
      padding: token of texts that are shorter than the longest.
    """

    config: Config
    prefix: str
    is_open_clip: bool
    padding: str


class Family(NamedTuple):
    """Models of the same networks.

    Attributes:
      name: for messages.
      unet, vae, scheduler: as in a folder's JSON files.
      texts: the text encoders.
      predicts: what the U-Net predicts, as in a scheduler's prediction_type; None if models of the
        family differ in that.
      sides: those of the latents, by what is predicted, where they differ from the U-Net's
        sample_size.
    """

    name: str
    unet: Config
    vae: Config
    scheduler: Config
    texts: tuple[Encoder, ...]
    predicts: str | None = "epsilon"
    sides: Mapping[str, int] = {}

    def configs(self, channels: int) -> dict[str, Config]:
        """The JSON files of a folder of diffusers by their paths.

        Args:
          channels: that the U-Net takes: 4, or 9 for inpainting.
        """
        names = ("text_encoder", "text_encoder_2")[: len(self.texts)]
        index = {"_class_name": f"StableDiffusion{'XL' if len(names) == 2 else ''}Pipeline"}
        parts = ("unet", "vae", "scheduler", *names, *(n.replace("text_encoder", "tokenizer")
                                                        for n in names))  # fmt: skip
        return {
            "model_index.json": index | {part: ["diffjax", part] for part in parts},
            "unet/config.json": {**self.unet, "in_channels": channels},
            "vae/config.json": self.vae,
            "scheduler/scheduler_config.json": self.scheduler,
            **{
                f"{name}/config.json": encoder.config
                for name, encoder in zip(names, self.texts, strict=True)
            },
        }


def _autoencoder(scaling: float) -> Config:
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "scaling_factor": scaling,
    }


def _schedule(kind: str, **others: Any) -> Config:
    return {
        "_class_name": kind,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "clip_sample": False,
        **others,
    }


def _clip(width: int, layers: int, heads: int, **others: Any) -> Config:
    return {
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        **others,
    }


_CLIP_L = _clip(768, 12, 12, hidden_act="quick_gelu")
_BIG_G = _clip(1280, 32, 20, projection_dim=1280, architectures=["CLIPTextModelWithProjection"])

SD1 = Family(
    name="Stable Diffusion 1",
    unet={
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    vae=_autoencoder(0.18215),
    scheduler=_schedule("PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False),
    texts=(Encoder(_CLIP_L, "cond_stage_model.transformer.", False, END),),
)
SD2 = Family(
    name="Stable Diffusion 2",
    unet={
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
    },
    vae=_autoencoder(0.18215),
    scheduler=_schedule("DDIMScheduler", set_alpha_to_one=False),
    texts=(Encoder(_clip(1024, 23, 16), "cond_stage_model.model.", True, "!"),),
    predicts=None,
    sides={"v_prediction": 96},
)
XL = Family(
    name="Stable Diffusion XL",
    unet={
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae=_autoencoder(0.13025),
    scheduler=_schedule("EulerDiscreteScheduler", timestep_spacing="leading"),
    texts=(
        Encoder(_CLIP_L, "conditioner.embedders.0.transformer.", False, END),
        Encoder(_BIG_G, "conditioner.embedders.1.model.", True, "!"),
    ),
)
# By channels of the first convolution and features of a token of the text.
FAMILIES: dict[tuple[int, int], Family] = {(320, 768): SD1, (320, 1024): SD2, (320, 2048): XL}


def recognise(tensors: Tensors, path: Path) -> tuple[Family, int]:
    """The family of a file, and the channels that its U-Net takes.

    Raises:
      UserError: another layout or family.
    """
    if STEM not in tensors.files:
        raise UserError(
            f"found no {STEM} in {path}, but {_known(tensors)}; expected a checkpoint of the "
            "original layout of Stable Diffusion; of other layouts, load the folder as diffusers "
            "writes it"
        )
    width, channels = tensors.shape(STEM)[:2]
    texts = {tensors.shape(name)[-1] for name in tensors.files
             if name.startswith(UNET) and name.endswith(KEYS)}  # fmt: skip
    family = FAMILIES.get((width, min(texts, default=0)))
    if family is None or channels not in (4, 9) or len(texts) != 1:
        raise UserError(
            f"found a U-Net of {channels} channels inside, {width} after its first convolution and "
            f"{' or '.join(map(str, sorted(texts))) or 'no'} features of a token in {path}; "
            "expected those of Stable Diffusion 1, 2 or XL; others are not supported, choose "
            "another model"
        )
    return family, channels


def _known(tensors: Tensors) -> str:
    """What a file of another layout seems to be."""
    names = tensors.files
    if any("lora" in name for name in names):
        return "names of a LoRA, which lora=FILE adds to a model,"
    return f"such names as {min(names)}" if names else "nothing"
