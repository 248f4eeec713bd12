"""LeRobot data sets: each episode of each camera is a span whose labels are its tasks; episodes are groups."""

from pathlib import Path

from tubelet.data.lerobot import INFO, is_dataset, read_episodes
from tubelet.io.text import read_bytes
from tubelet.labels.build import build_table, digest_of
from tubelet.labels.formats.annotation_format import AnnotationFormat
from tubelet.labels.records import EPISODES, LabelRow, LabelTable


class LeRobotEpisodes(AnnotationFormat):
    """The tasks of a data set's episodes; the file is its meta/info.json."""

    name = "LeRobot"
    suffixes = (".json",)

    @staticmethod
    def detect(path: Path) -> bool:
        return path.name == "info.json" and path.parent.name == "meta" and is_dataset(str(path.parent.parent))

    @staticmethod
    def read(path: Path) -> LabelTable:
        root = path.parent.parent
        rows = [
            LabelRow(
                line=number,
                path=Path(each.path),
                start_s=each.start_s if each.end_s is not None else None,
                end_s=each.end_s,
                labels=each.tasks,
                group=f"episode {each.episode}",
            )
            for number, each in enumerate(read_episodes(str(root)), 1)
        ]
        files = [root / INFO, root / "meta/episodes.jsonl", *sorted((root / "meta/episodes").rglob("*.parquet"))]
        digest = digest_of(*(read_bytes(file) for file in files if file.is_file()))
        return build_table(path, EPISODES, digest, rows)
