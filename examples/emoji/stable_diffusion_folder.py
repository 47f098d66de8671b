"""A small Stable Diffusion folder for the emoji, whose U-Net and text encoder are untrained.

    python -m diffjax.main --config=examples/emoji/autoencoder.py:kl-tiny
    python -m diffjax.main --config=examples/emoji/autoencoder.py:kl-tiny --mode=export \
        --format=diffusers --out=runs/emoji-sd/vae
    python examples/emoji/stable_diffusion_folder.py --vae=runs/emoji-sd/vae \
        --out=runs/emoji-sd/folder
    python -m diffjax.main --config=experiments/stable_diffusion.py --workdir=runs/emoji-sd/run \
        --config.model.folder=runs/emoji-sd/folder --config.data.name=folder:data/emoji \
        --config.train.learning_rate=1e-3 --config.train.batch_size=64 --config.train.steps=9600 \
        --config.train.ema_decay=0.998

The tokens are learned from the captions of the training set. The text encoder stays as it is: its
states tell the words and their order apart, which is what the U-Net's attention needs.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from diffjax.errors import UserError
from diffjax.stable_diffusion.create import SCHEDULER, create, tokenizer_of

UNET = {
    "sample_size": 16, "block_out_channels": [32, 64, 128], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 192, "attention_head_dim": 4,
}  # fmt: skip
TEXT = {
    "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 32,
}  # fmt: skip
# What a text asks for is drawn at high noise, which the loss of v weighs more than that of eps.
OF_V = {
    **SCHEDULER, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}  # fmt: skip


def main() -> int:
    """Writes the folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vae", type=Path, required=True, help="of a trained autoencoder")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="made by fetch.py")
    given = parser.parse_args()
    captions = given.data / "train" / "metadata.jsonl"
    try:
        if not captions.is_file():
            raise UserError(f"found no {captions}: make it with python examples/emoji/fetch.py")
        texts = [json.loads(line)["text"] for line in captions.read_text().splitlines()]
        with tempfile.TemporaryDirectory() as tokens:
            size = tokenizer_of(texts, tokens, size=2048)
            ends = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
            create(
                given.out, unet_config=UNET, text_config={**TEXT, "vocab_size": size, **ends},
                vae=given.vae, tokenizer=tokens, scheduler=OF_V,
            )  # fmt: skip
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
