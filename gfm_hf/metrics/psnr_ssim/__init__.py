"""PSNR and SSIM of restored images, per image and on average."""

from .functions import compute, merge, new_state, psnr, ssim, update


__all__ = ["compute", "merge", "new_state", "psnr", "ssim", "update"]
