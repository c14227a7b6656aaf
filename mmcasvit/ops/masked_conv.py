"""Convolutions that are computed at chosen positions only."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the values that the kernel sees at each chosen position into ``col``.

    Args:
        im: ``(1, C, H, W)``.
        mask_h_idx: Rows of the positions, ``(N,)``.
        mask_w_idx: Columns of the positions.
        col: ``(C * kernel_h * kernel_w, N)``.
        kernel_h: Height of the kernel.
        kernel_w: Width of the kernel.
        pad_h: Padding of the height, on each side.
        pad_w: Padding of the width.
    """
    # A position at the far border needs the kernel, whatever the padding.
    padded = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    row = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    column = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, row, column].reshape(col.shape))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write columns to their positions in an image.

    Args:
        col: ``(channels, N)``.
        mask_h_idx: Rows of the positions, ``(N,)``.
        mask_w_idx: Columns of the positions.
        im: ``(1, channels, height, width)``.
        height: Height of the image.
        width: Width of the image.
        channels: Number of channels.
    """
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im)
