"""All samples of one modality, wherever they lie: files of their own, and members of shards."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tubelet.config import DataConfig
from tubelet.data.containers import Media
from tubelet.data.shards import ShardFolder
from tubelet.data.sources import MediaList
from tubelet.errors import TubeletError
from tubelet.grid import Modality


@dataclass(frozen=True)
class Pool:
    """Samples numbered 0 to M - 1: first the files, then the members of each folder of shards.

    Attributes:
        files: paths.
        folders: each with the places (P,) of its members of this modality.
    """

    files: Sequence[str]
    folders: list[tuple[ShardFolder, np.ndarray]]

    def __len__(self) -> int:
        return len(self.files) + sum(len(places) for _, places in self.folders)

    def group(self) -> np.ndarray:
        """(M,) which samples lie together: a shard's members, or a file alone. Made anew: nobody keeps it."""
        groups, first = [np.arange(len(self.files))], len(self.files)
        for folder, places in self.folders:
            used, group = np.unique(folder.members["shard"][places], return_inverse=True)
            groups.append(first + group)
            first += len(used)
        return np.concatenate(groups)

    def name(self, sample: int) -> str:
        """What errors and lists of bad files call a sample."""
        if sample < len(self.files):
            return self.files[sample]
        folder, place = self._member(sample)
        return folder.title(place)

    def read(self, sample: int) -> tuple[Media, float | None]:
        """A sample's file or bytes; of a member, also how many seconds it shows.

        Raises:
            DecodeError: a member's bytes are damaged.
            StorageError: its shard cannot be reached.
        """
        if sample < len(self.files):
            return self.files[sample], None
        folder, place = self._member(sample)
        return folder.read(place), float(folder.members["duration_s"][place])

    def member(self, sample: int) -> tuple[ShardFolder, int] | None:
        """The shards that hold a sample and its place among their members; None for a file of its own."""
        return None if sample < len(self.files) else self._member(sample)

    def _member(self, sample: int) -> tuple[ShardFolder, int]:
        sample -= len(self.files)
        for folder, places in self.folders:
            if sample < len(places):
                return folder, int(places[sample])
            sample -= len(places)
        raise IndexError(f"no sample {sample}")


def pool_of(media: MediaList, modality: Modality) -> Pool:
    """The samples of a modality in all sources."""
    image = modality is Modality.IMAGE
    files = media.images if image else media.videos
    folders = [(folder, np.flatnonzero(folder.members["image"] == image)) for folder in media.shards]
    return Pool(files, folders)


def check_recipes(media: MediaList, data: DataConfig) -> None:
    """Refuse shards that do not hold what a run asks for.

    Raises:
        TubeletError: names the shards, what is asked for, what they hold and what to do.
    """
    span_s = data.frames / data.fps
    for folder in media.shards:
        recipe, videos = folder.recipe, not folder.members["image"].all() and data.frames > 1
        held = ""
        if videos and data.fps > recipe.fps:
            held = f"--fps {data.fps:g} is more than the {recipe.fps:g} frames per second that these shards hold: "
            held += f"lower it, or shard the sources again with --fps {data.fps:g}"
        elif videos and span_s > recipe.segment_s:
            held = f"--frames {data.frames} at --fps {data.fps:g} last {span_s:g} s, longer than the "
            held += f"{recipe.segment_s:g} s segments of these shards: shard the sources again with "
            held += f"--segment-s {span_s:g}"
        elif data.image_size > recipe.size:
            held = f"--image-size {data.image_size} is more than the {recipe.size} pixels of these shards: lower it, "
            held += f"or shard the sources again with --size {data.image_size}"
        if held:
            raise TubeletError(f"{folder.root}: {held}")
