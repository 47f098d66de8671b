"""The fields of `config.model` for each network of diffjax."""

from collections.abc import Mapping

from diffjax.experiment.rules import (
    EXPONENTS,
    LEVEL,
    LONG_PROMPTS,
    NOT_NEGATIVE,
    PREDICTION,
    PROMPT_WEIGHTS,
    SHARE,
    SIZES,
    SPEC,
    SWITCH,
    TEXT,
    WHOLES,
    Key,
    whole,
)

NETWORK_FIELDS: Mapping[str, Mapping[str, Key]] = {
    "unet": {
        "model.channels": Key(whole(1), 96, "channels of the first level"),
        "model.multipliers": Key(SIZES, (1, 2, 2), "channels of each level / model.channels"),
        "model.blocks": Key(whole(1), 2, "residual blocks per level"),
        "model.attention_resolutions": Key(WHOLES, (14, 7), "heights of maps with attention"),
        "model.transformer_depth": Key(whole(1), 1, "transformer blocks in a row, with text"),
        "model.head_channels": Key(whole(1), 32, "channels per attention head"),
        "model.dropout": Key(SHARE, 0.1, "rate in the residual blocks"),
        "model.fourier": Key(EXPONENTS, (), "n of input features sin(2^n pi x), cos(2^n pi x)"),
        "model.patch": Key(whole(1), 1, "side of patches folded into channels"),
        "model.block": Key(SPEC, "resnet", "resnet or convnext"),
        "model.scale_shift": Key(
            SWITCH, True, "whether the time embedding scales and shifts (ADM) or is added"
        ),
        "model.resample": Key(
            SPEC, "conv", "change of resolution: conv, average (pooling), adm (in residual blocks)"
        ),
        "model.resample_first": Key(
            SWITCH,
            False,
            "downsample before a level's blocks, upsample after them (Imagen's Efficient U-Net)",
        ),
        "model.scale_skips": Key(SWITCH, False, "skip connections times 1 / sqrt(2)"),
        "model.time_features": Key(
            SPEC, "sinusoidal", "features of the time: sinusoidal, fourier(scale=0.016)"
        ),
        "model.attention": Key(SPEC, "softmax", "softmax, softmax(implementation='cudnn'), linear"),
        "model.dtype": Key(SPEC, "bfloat16", "compute type: float32 or bfloat16"),
        "model.kernels": Key(SPEC, "auto", "backend of convolutions: auto, onednn, xla"),
        "model.remat": Key(SPEC, "none", "rematerialisation: none, dots, layers, full"),
    },
    "dit": {
        "model.width": Key(whole(1), 384, "channels of a token"),
        "model.depth": Key(whole(1), 12, "number of blocks"),
        "model.head_channels": Key(whole(1), 64, "channels per attention head"),
        "model.patch": Key(whole(1), 2, "side of a patch"),
        "model.mlp": Key(SPEC, "swiglu", "swiglu or gelu"),
        "model.norm": Key(SPEC, "rms", "rms or layer (without scale and shift, DiT's)"),
        "model.qk_norm": Key(SWITCH, True, "whether queries and keys are normalised"),
        "model.rotary": Key(SWITCH, True, "whether they are turned by their position (RoPE)"),
        "model.sincos": Key(SWITCH, True, "whether features of positions are added to tokens"),
        "model.bottleneck": Key(whole(0), 0, "channels in between when patches are embedded (JiT)"),
        "model.kernels": Key(SPEC, "auto", "backend of its products: auto, onednn, xla"),
        "model.unroll": Key(
            SWITCH, False, "whether the loop over blocks is unrolled: faster, longer to compile"
        ),
        "model.class_tokens": Key(whole(0), 0, "tokens of the class (JiT)"),
        "model.class_tokens_from": Key(whole(0), 4, "block before which they join"),
        "model.dropout": Key(SHARE, 0.0, "rate after attention and MLP"),
        "model.dropout_middle": Key(SWITCH, False, "dropout in the middle half of the blocks only"),
        "model.time_features": Key(
            SPEC, "sinusoidal", "features of the time: sinusoidal, fourier(scale=0.016)"
        ),
        "model.attention": Key(SPEC, "softmax", "softmax, softmax(implementation='cudnn'), linear"),
        "model.dtype": Key(SPEC, "bfloat16", "compute type: float32 or bfloat16"),
        "model.remat": Key(SPEC, "none", "rematerialisation: none, dots, layers, full"),
    },
    "edm2": {
        "model.channels": Key(whole(1), 64, "channels of the first level"),
        "model.multipliers": Key(SIZES, (1, 2, 3), "channels of each level / model.channels"),
        "model.blocks": Key(whole(1), 2, "residual blocks per level"),
        "model.attention_resolutions": Key(WHOLES, (14, 7), "heights of maps with attention"),
        "model.head_channels": Key(whole(1), 64, "channels per attention head"),
        "model.patch": Key(whole(1), 1, "side of patches folded into channels"),
        "model.bandwidth": Key(
            NOT_NEGATIVE,
            0.0,
            "standard deviation of the time features' frequencies; 0: by diffusion.time_input",
        ),
        "model.dropout": Key(SHARE, 0.0, "rate in the residual blocks"),
        "model.residual_balance": Key(LEVEL, 0.3, "share of what a residual block adds"),
        "model.attention_balance": Key(LEVEL, 0.3, "share of what attention adds"),
        "model.concat_balance": Key(LEVEL, 0.5, "share of skip connections"),
        "model.label_balance": Key(LEVEL, 0.5, "share of the class in the embedding"),
        "model.attention": Key(SPEC, "softmax", "softmax, softmax(implementation='cudnn'), linear"),
        "model.dtype": Key(SPEC, "bfloat16", "compute type: float32 or bfloat16"),
        "model.kernels": Key(SPEC, "auto", "backend of convolutions: auto, onednn, xla"),
        "model.remat": Key(SPEC, "none", "rematerialisation: none, dots, layers, full"),
    },
    "prior": {
        "model.width": Key(whole(1), 256, "channels of a token"),
        "model.layers": Key(whole(1), 6, "transformer layers"),
        "model.head_channels": Key(whole(1), 32, "channels per attention head"),
        "model.dropout": Key(SHARE, 0.1, "rate after attention and MLP"),
        "model.dtype": Key(SPEC, "bfloat16", "compute type: float32 or bfloat16"),
        "model.remat": Key(SPEC, "none", "rematerialisation: none, dots, layers, full"),
    },
    "stable_diffusion": {
        "model.folder": Key(
            TEXT, "", "Stable Diffusion: a folder of diffusers, or a file of the original layout"
        ),
        "model.tokenizer": Key(TEXT, "", "of a file: folder with CLIP's vocab.json, merges.txt"),
        "model.prediction": Key(
            PREDICTION, "", "of a file: what it predicts; empty: that of its family"
        ),
        "model.kernels": Key(SPEC, "auto", "backend of convolutions: auto, onednn, xla"),
        "model.lora": Key(
            SPEC, "none", "adapters that are trained in the place of all parameters: none, lora"
        ),
        "model.inversion": Key(
            SPEC, "none", "new token that is trained alone: inversion(token='<toy>', word='toy')"
        ),
        "model.attention": Key(SPEC, "softmax", "softmax, softmax(implementation='cudnn')"),
        "model.dtype": Key(SPEC, "bfloat16", "compute type: float32 or bfloat16"),
        "model.remat": Key(SPEC, "none", "rematerialisation: none, dots, layers, full"),
        "sample.lora": Key(
            TEXT, "", "LoRA files that are merged for sampling: FILE or FILE@scale, separated by |"
        ),
        "sample.tokens": Key(TEXT, "", "files of learned tokens, separated by |"),
        "sample.control": Key(
            TEXT, "", "folders of ControlNets: FOLDER or FOLDER@scale, separated by |"
        ),
        "sample.control_images": Key(
            TEXT, "", "for each ControlNet an image file, or a folder of them, separated by |"
        ),
        "sample.image_adapter": Key(TEXT, "", "file of an IP-Adapter: FILE or FILE@scale"),
        "sample.image_encoder": Key(TEXT, "", "folder of its image encoder, a CLIP"),
        "sample.image_prompts": Key(TEXT, "", "image file that it is given, or a folder of them"),
        "sample.long_prompts": Key(
            LONG_PROMPTS, "cut", "prompts of over 77 tokens: cut, refuse, or chunks of 75"
        ),
        "sample.prompt_weights": Key(
            PROMPT_WEIGHTS, "none", "of '(word:1.2)': none, scale, or scale_keep_mean"
        ),
    },
}
