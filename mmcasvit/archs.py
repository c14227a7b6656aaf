"""The archs of CAS-ViT: number of blocks and of channels in each stage."""

ARCHS = {
    'xs': dict(depths=(2, 2, 4, 2), channels=(48, 56, 112, 220)),
    's': dict(depths=(3, 3, 6, 3), channels=(48, 64, 128, 256)),
    'm': dict(depths=(3, 3, 6, 3), channels=(64, 96, 192, 384)),
    't': dict(depths=(3, 3, 6, 3), channels=(96, 128, 256, 512)),
    'l': dict(depths=(4, 4, 8, 4), channels=(96, 128, 256, 512)),
}
# Strides of the four stages relative to the input, in pixels.
STRIDES = (4, 8, 16, 32)


def parse_arch(arch: str | dict) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the depths and channels of the four stages.

    Args:
        arch: A name from ``ARCHS``, or a dict with the same two fields.

    Raises:
        ValueError: The name is unknown, or the dict is malformed.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'unknown arch {arch!r}. Valid: {", ".join(ARCHS)}, or a dict with depths and channels.')
        arch = ARCHS[arch]
    if not isinstance(arch, dict) or set(arch) != {'depths', 'channels'}:
        raise ValueError(f'an arch dict must have exactly the fields depths and channels, got {arch!r}.')
    for field, values in arch.items():
        if len(values) != 4 or not all(isinstance(value, int) for value in values) or min(values) < 1:
            raise ValueError(f'{field} of an arch must be four positive integers, got {values!r}.')
    if arch['channels'][0] % 2:
        raise ValueError(
            f'the first of channels must be even, since the stem starts with half of it, got {arch["channels"][0]}.'
        )
    return tuple(arch['depths']), tuple(arch['channels'])


def arch_name(depths: tuple[int, ...], channels: tuple[int, ...]) -> str | None:
    """Return the name of the arch with these depths and channels, or None if it has none."""
    return next((name for name, fields in ARCHS.items() if fields == dict(depths=depths, channels=channels)), None)
