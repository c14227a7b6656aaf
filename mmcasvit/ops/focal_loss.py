"""Focal losses of a sigmoid and of a softmax (arXiv 1708.02002)."""

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float32).tiny


def _sigmoid_terms(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities, where the target is, and the factor of each term."""
    positive = target[:, None] == torch.arange(input.shape[1], device=input.device)
    factor = torch.where(positive, -alpha, alpha - 1).to(input)
    if len(weight):  # the background, whose target is the number of classes, has no weight of its own
        factor = factor * torch.cat([weight, weight.new_ones(1)])[target][:, None]
    return input.sigmoid(), positive, factor


def _log(x: Tensor) -> Tensor:
    return x.clamp(min=_TINY).log()


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss of each class into ``output``.

    Args:
        input: Logits, ``(N, C)``.
        target: Classes, ``(N,)``; C is the background.
        weight: Weights of the classes, ``(C,)``, or empty.
        output: ``(N, C)``.
        gamma: Exponent that lowers the loss of easy examples.
        alpha: Weight of the positive class; negative ones have ``1 - alpha``.
    """
    p, positive, factor = _sigmoid_terms(input, target, weight, alpha)
    q = torch.where(positive, p, 1 - p)
    output.copy_(factor * (1 - q) ** gamma * _log(q))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the gradient of :func:`sigmoid_focal_loss_forward` into ``grad_input``."""
    p, positive, factor = _sigmoid_terms(input, target, weight, alpha)
    q = torch.where(positive, p, 1 - p)
    gradient = (1 - q) ** gamma * (1 - q - gamma * q * _log(q))
    grad_input.copy_(torch.where(positive, factor, -factor) * gradient)


def _softmax_terms(softmax: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the probability of each target, and the factor of its term, which is 0 for ignored targets."""
    valid, target = target >= 0, target.clamp(min=0)
    factor = -alpha * valid.to(softmax)
    if len(weight):
        factor = factor * weight[target]
    return softmax.gather(1, target[:, None])[:, 0], factor


def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss of each example into ``output``.

    Args:
        softmax: Probabilities, ``(N, C)``.
        target: Classes, ``(N,)``; negative ones are ignored.
        weight: Weights of the classes, ``(C,)``, or empty.
        output: ``(N,)``.
        gamma: Exponent that lowers the loss of easy examples.
        alpha: Factor of the loss.
    """
    p, factor = _softmax_terms(softmax, target, weight, alpha)
    output.copy_(factor * (1 - p) ** gamma * _log(p))


def softmax_focal_loss_backward(
    softmax: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the gradient of :func:`softmax_focal_loss_forward` for the logits into ``grad_input``."""
    p, factor = _softmax_terms(softmax, target, weight, alpha)
    buff.copy_(factor * ((1 - p) ** gamma - gamma * (1 - p) ** (gamma - 1) * p * _log(p)))
    hot = target[:, None] == torch.arange(softmax.shape[1], device=softmax.device)
    grad_input.copy_(buff[:, None] * (hot.to(softmax) - softmax))
