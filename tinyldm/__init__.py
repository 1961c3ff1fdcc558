"""What the entry scripts of tinyldm share: from images to a trained latent diffusion model to pictures."""

__version__ = "0.1.0"
