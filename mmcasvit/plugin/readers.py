"""The parts of a model that read the maps of its backbone."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.config import ConfigDict

from mmcasvit.utils.errors import PlugError

from .probe import FeatureMap, lacks_operator, neck_outputs
from .source import NO_READERS, is_channels, nodes, type_name


@dataclass
class Reader:
    """A field of the config that names the channels of one or more maps.

    Attributes:
        where: the path of the field's dict in the config.
        node: that dict, of the new config.
        name: the field.
        maps: which of the maps, in the order of the field; one number where the field is a number.
    """

    where: str
    node: ConfigDict
    name: str
    maps: int | tuple[int, ...]

    @property
    def indices(self) -> tuple[int, ...]:
        return (self.maps,) if isinstance(self.maps, int) else self.maps

    def write(self, new_maps: Sequence[FeatureMap], new_indices: dict[int, int], notes: list[str]) -> None:
        """Sets the field, and ``in_index`` beside it, to the maps that take the places of the old ones.

        Args:
            new_maps: all of them.
            new_indices: from the index of an old map to that of the new one.
            notes: gets a line on what changed.
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
    """Which maps a list of channels means, or None where that is not clear."""
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
    given = [m.channels for m in maps]
    channels = neck.get('in_channels')
    if is_channels(channels):
        found = [i for i, c in enumerate(given) if c == channels][-1:]
        indices = found[0] if found else None
    else:
        indices = _match(channels, maps) if isinstance(channels, (list, tuple)) else None
    if indices is None:
        raise PlugError(
            f'{where} ({type_name(neck)}) reads maps of {given} channels and has in_channels={channels}: '
            'it is not clear which map is which. Replace the neck by one with a channel for each map, '
            'such as FPN'
        )
    return Reader(where, neck, 'in_channels', indices)


def trim_neck(reader: Reader, new_maps: Sequence[FeatureMap], models, notes: list[str]) -> None:
    """Leaves out the first maps where the neck starts behind them, so that no parameter stays without a gradient.

    Args:
        reader: that of the neck.
        new_maps: those it would read, in the order of its field.
        models: the framework's registry.
        notes: gets a line on what changed.
    """
    neck = reader.node
    neck_type = models.get(neck.type) if isinstance(neck.type, str) else neck.type
    parameter = inspect.signature(neck_type).parameters.get('start_level')
    start = neck.get('start_level', getattr(parameter, 'default', 0))
    if not is_channels(start) or isinstance(reader.maps, int) or not 0 < start < len(reader.maps):
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


def pass_through(reader: Reader, old_channels: Sequence[int], notes: list[str]) -> None:
    """A neck that hands its inputs on, and adds maps behind them, names their channels a second time."""
    neck, count = reader.node, len(old_channels)
    out = neck.get('out_channels')
    if isinstance(out, (list, tuple)) and len(out) > count and list(out[:count]) == list(old_channels):
        neck.out_channels = type(out)([*neck.in_channels, *out[count:]])
        notes.append(f'{reader.where}.out_channels: {out} -> {neck.out_channels}')


def head_readers(model: ConfigDict, maps: Sequence[FeatureMap], framework: str) -> list[Reader]:
    heads = {
        key: value
        for key, value in model.items()
        if key not in NO_READERS and not key.startswith('teacher') and isinstance(value, (dict, list, tuple))
    }
    find = _segmentor_readers if framework == 'mmseg' else _detector_readers
    readers = []
    for key, head in heads.items():
        parts = (
            [(f'model.{key}', head)]
            if isinstance(head, dict)
            else [(f'model.{key}[{i}]', part) for i, part in enumerate(head)]
        )
        for where, part in parts:
            if isinstance(part, dict):
                readers += find(part, where, maps)
    return readers


def _segmentor_readers(head: ConfigDict, where: str, maps: Sequence[FeatureMap]) -> list[Reader]:
    """Decode heads say which maps they read by ``in_index``, the last one without it."""
    readers = []
    for path, node in nodes(head, where):
        channels, index = node.get('in_channels'), node.get('in_index')
        if channels is None or (index is None and node is not head):
            continue  # a layer inside a head that reads what the head has made
        if index is None:
            index = -1 if is_channels(channels) else _match(channels, maps)
        several = isinstance(index, (list, tuple))
        found = [channels] if is_channels(channels) else list(channels)
        wanted = list(index) if several else [index]
        given = [m.channels for m in maps]
        if (
            several == is_channels(channels)
            or not all(is_channels(i) and -len(maps) <= i < len(maps) for i in wanted)
            or found != [given[i] for i in wanted]
        ):
            raise PlugError(
                f'{path} ({type_name(node)}) reads maps {node.get("in_index", "by default")} of {given} '
                f'channels, and has in_channels={channels}: that does not fit the old backbone either'
            )
        wanted = tuple(i % len(maps) for i in wanted)
        readers.append(Reader(path, node, 'in_channels', wanted if several else wanted[0]))
    # Some heads read a second, finer map, such as DeepLabV3+'s c1_in_channels.
    for name, value in head.items():
        fitting = [i for i, m in enumerate(maps) if m.channels == value]
        if name.endswith('_in_channels') and is_channels(value) and len(fitting) == 1:
            readers.append(Reader(where, head, name, fitting[0]))
    return readers


def _detector_readers(head: ConfigDict, where: str, maps: Sequence[FeatureMap]) -> list[Reader]:
    """Detectors' heads read every map, or the only one; channels alone tell which fields mean them."""
    readers, by_value = [], []
    for path, node in nodes(head, where):
        channels = node.get('in_channels')
        if isinstance(channels, (list, tuple)) and (indices := _match(channels, maps)) is not None:
            readers.append(Reader(path, node, 'in_channels', indices))
        fields = ['in_channels', *(['out_channels'] if type_name(node).endswith('RoIExtractor') else [])]
        for name in fields:
            fitting = [i for i, m in enumerate(maps) if m.channels == node.get(name)]
            if is_channels(node.get(name)) and fitting:
                by_value.append(Reader(path, node, name, fitting[-1]))
    # Beside a list that names the maps, a number that equals one of theirs is the width of an inner layer.
    return readers or by_value
