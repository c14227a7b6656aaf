"""A seeded split of images into training and validation, with the classes in the same shares."""

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path

from mmcasvit.utils.errors import UsageError


def family(path: Path) -> Hashable:
    """Return what images that belong together share: their bytes, or their original, whose copies Roboflow numbers."""
    if found := re.match(r'(.+)\.rf\.[0-9A-Za-z]{8,}$', path.stem):
        return found.group(1)
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:  # the check of the data says why
        return str(path)


def choose_validation(
    classes: Sequence[Collection[Hashable]], families: Sequence[Hashable], share: float = 0.2, seed: int = 0
) -> list[bool]:
    """Choose the images for validation by iterative stratification (Sechidis et al., 2011).

    The rarest class is shared out first, each image to the side that lacks more of it.

    Args:
        classes: Classes in each image.
        families: Images of one family stay on one side.
        share: Share of the images for validation.
        seed: Seed of the choice between equals.

    Returns:
        Whether each image is for validation.

    Raises:
        UsageError: If there is only one family.
    """
    members = defaultdict(list)
    for number, name in enumerate(families):
        members[name].append(number)
    if len(members) < 2:
        raise UsageError('there is only one image to learn from. A split into training and validation needs two.')
    groups = sorted(members.values())
    random.Random(seed).shuffle(groups)
    contents = [Counter(name for number in group for name in set(classes[number]) or {None}) for group in groups]
    totals = sum(contents, Counter())
    lacking = {
        side: {name: count * part for name, count in totals.items()} for side, part in ((1, share), (0, 1 - share))
    }
    room = {1: len(families) * share, 0: len(families) * (1 - share)}
    chosen: dict[int, int] = {}
    for rarest in sorted(totals, key=lambda name: (totals[name], str(name))):
        for place, content in enumerate(contents):
            if place in chosen or rarest not in content:
                continue
            better = lacking[1][rarest] > lacking[0][rarest] + 1e-6
            side = int(better and room[1] >= len(groups[place]) / 2)
            chosen[place] = side
            room[side] -= len(groups[place])
            for name, count in content.items():
                lacking[side][name] -= count
    if len(set(chosen.values())) < 2:  # few images: the smallest family goes to the other side
        smallest = min(range(len(groups)), key=lambda place: len(groups[place]))
        chosen[smallest] = 1 - chosen[smallest]
    result = [False] * len(families)
    for place, side in chosen.items():
        for number in groups[place]:
            result[number] = bool(side)
    return result
