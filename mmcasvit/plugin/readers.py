"""Readers: the fields of necks and heads that name the channels of backbone maps."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.config import ConfigDict
from mmengine.registry import Registry

from mmcasvit.utils.errors import PlugError

from .probe import FeatureMap, lacks_operator, neck_outputs
from .source import NO_READERS, is_integer, nodes, type_name


@dataclass
class Reader:
    """Field of a config that names the channels of one or more maps.

    Attributes:
        where: Path of the field's dict in the config.
        node: That dict, in the new config.
        name: Name of the field.
        maps: Indices of the maps in the order of the field, or one index if the field is a number.
    """

    where: str
    node: ConfigDict
    name: str
    maps: int | tuple[int, ...]

    @property
    def indices(self) -> tuple[int, ...]:
        return (self.maps,) if isinstance(self.maps, int) else self.maps

    def write(self, new_maps: Sequence[FeatureMap], new_indices: dict[int, int], notes: list[str]) -> None:
        """Set the field, and ``in_index`` next to it, to the maps that replace the old ones.

        Args:
            new_maps: All new maps.
            new_indices: The index of the new map for the index of each old one.
        """
        indices = [new_indices[i] for i in self.indices]
        self._set(self.name, [new_maps[i].channels for i in indices], notes)
        if self.name == 'in_channels' and self.node.get('in_index') is not None:
            self._set('in_index', indices, notes)

    def _set(self, name: str, new: list[int], notes: list[str]) -> None:
        old = self.node[name]
        value = new[0] if isinstance(self.maps, int) else type(old)(new)
        if value != old:
            notes.append(f'{self.where}.{name}: {old} -> {value}')
            self.node[name] = value


def _match(channels: Sequence[int], maps: Sequence[FeatureMap]) -> tuple[int, ...] | None:
    """Return the indices of the maps that a list of channels stands for, or None if that is ambiguous."""
    given = [m.channels for m in maps]
    channels, last = list(channels), len(given)
    if channels == given:
        return tuple(range(last))
    if channels == given[::-1]:
        return tuple(range(last))[::-1]
    if channels and all(given.count(c) == 1 for c in channels):
        return tuple(given.index(c) for c in channels)
    if channels == given[last - len(channels) :]:
        return tuple(range(last - len(channels), last))
    return None


def neck_reader(neck: ConfigDict, where: str, maps: Sequence[FeatureMap]) -> Reader:
    """Return the reader of a neck that gets these maps.

    Raises:
        PlugError: Its ``in_channels`` do not tell which maps it reads.
    """
    given = [m.channels for m in maps]
    channels = neck.get('in_channels')
    indices: int | tuple[int, ...] | None
    if is_integer(channels):
        found = [i for i, c in enumerate(given) if c == channels][-1:]
        indices = found[0] if found else None
    else:
        indices = _match(channels, maps) if isinstance(channels, (list, tuple)) else None
    if indices is None:
        raise PlugError(
            f'{where} ({type_name(neck)}) reads maps of {given} channels and has in_channels={channels}, which does '
            'not tell which map is which. Use a neck that lists the channels of each map, such as FPN'
        )
    return Reader(where, neck, 'in_channels', indices)


def trim_neck(reader: Reader, new_maps: Sequence[FeatureMap], models: Registry, notes: list[str]) -> None:
    """Drop the maps below a neck's ``start_level``, so that every parameter gets a gradient.

    Args:
        reader: The reader of the neck.
        new_maps: The maps that it would read, in the order of its field.
    """
    neck = reader.node
    neck_type = models.get(neck.type) if isinstance(neck.type, str) else neck.type
    parameter = inspect.signature(neck_type).parameters.get('start_level')
    start = neck.get('start_level', getattr(parameter, 'default', 0))
    if not is_integer(start) or isinstance(reader.maps, int) or not 0 < start < len(reader.maps):
        return
    trimmed = dict(start_level=0)
    if neck.get('end_level', -1) > 0:
        trimmed['end_level'] = neck.end_level - start
    kept = new_maps[start:]
    try:
        neck_outputs(models, {**neck, **trimmed, 'in_channels': [m.channels for m in kept]}, kept)
    except Exception as error:
        if not lacks_operator(error):
            return  # it counts its inputs in a way of its own
    neck.update(trimmed)
    reader.maps = reader.maps[start:]
    notes.append(f'{reader.where}.start_level: {start} -> 0, and in_channels from there on')


def update_passed_channels(reader: Reader, old_channels: Sequence[int], notes: list[str]) -> None:
    """Update ``out_channels`` of a neck that returns its inputs followed by maps of its own."""
    neck, count = reader.node, len(old_channels)
    out = neck.get('out_channels')
    if isinstance(out, (list, tuple)) and len(out) > count and list(out[:count]) == list(old_channels):
        neck.out_channels = type(out)([*neck.in_channels, *out[count:]])
        notes.append(f'{reader.where}.out_channels: {out} -> {neck.out_channels}')


def parts_of(node, where: str) -> list[tuple[str, dict]]:
    """Return the path and config of each part of a chain or cascade, or of a single part."""
    if isinstance(node, dict):
        return [(where, node)]
    return [(f'{where}[{i}]', part) for i, part in enumerate(node or ())]


def head_readers(model: ConfigDict, maps: Sequence[FeatureMap], framework: str) -> list[Reader]:
    """Return the readers of all heads of a model whose heads get these maps.

    Raises:
        PlugError: A segmentation head does not fit these maps.
    """
    find = _segmentor_readers if framework == 'mmseg' else _detector_readers
    return [
        reader
        for key, head in model.items()
        if key not in NO_READERS and not key.startswith('teacher') and isinstance(head, (dict, list, tuple))
        for where, part in parts_of(head, f'model.{key}')
        if isinstance(part, dict)
        for reader in find(part, where, maps)
    ]


def _segmentor_readers(head: ConfigDict, where: str, maps: Sequence[FeatureMap]) -> list[Reader]:
    """Return the readers of a decode head, which selects maps by ``in_index`` and reads the last one by default."""
    readers = []
    given = [m.channels for m in maps]
    for path, node in nodes(head, where):
        channels, index = node.get('in_channels'), node.get('in_index')
        if channels is None or (index is None and node is not head):
            continue  # an inner layer, which reads what the head computes
        if index is None:
            index = -1 if is_integer(channels) else _match(channels, maps)
        several = isinstance(index, (list, tuple))
        found = [channels] if is_integer(channels) else list(channels)
        wanted = list(index) if several else [index]
        if (
            several == is_integer(channels)
            or not all(is_integer(i) and -len(maps) <= i < len(maps) for i in wanted)
            or found != [given[i] for i in wanted]
        ):
            raise PlugError(
                f'{path} ({type_name(node)}) reads maps {node.get("in_index", "by default")} of {given} channels, and '
                f'has in_channels={channels}, which does not fit the old backbone either'
            )
        positions = tuple(i % len(maps) for i in wanted)
        readers.append(Reader(path, node, 'in_channels', positions if several else positions[0]))
    # Some heads read a second, finer map, such as DeepLabV3+ with c1_in_channels.
    for name, value in head.items():
        fitting = [i for i, c in enumerate(given) if c == value]
        if name.endswith('_in_channels') and is_integer(value) and len(fitting) == 1:
            readers.append(Reader(where, head, name, fitting[0]))
    return readers


def _detector_readers(head: ConfigDict, where: str, maps: Sequence[FeatureMap]) -> list[Reader]:
    """Return the readers of a detection head, whose fields are recognized only by the channels of the maps."""
    readers, by_value = [], []
    for path, node in nodes(head, where):
        channels = node.get('in_channels')
        if isinstance(channels, (list, tuple)) and (indices := _match(channels, maps)) is not None:
            readers.append(Reader(path, node, 'in_channels', indices))
        fields = ['in_channels', *(['out_channels'] if type_name(node).endswith('RoIExtractor') else [])]
        for name in fields:
            fitting = [i for i, m in enumerate(maps) if m.channels == node.get(name)]
            if is_integer(node.get(name)) and fitting:
                by_value.append(Reader(path, node, name, fitting[-1]))
    # Next to a list that names the maps, a number equal to one of its entries is the width of an inner layer.
    return readers or by_value
