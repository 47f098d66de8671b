"""From a denoiser to samples: samplers, guidance, thresholding, editing, inverse problems."""
