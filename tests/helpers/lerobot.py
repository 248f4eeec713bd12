"""LeRobot data sets of tiny videos, in versions 2.1 and 3.0."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.media import write_video

CAMERAS = ("observation.images.top", "observation.images.wrist")
TASKS = ("push the block", "lift the block", "push the block")
PATHS = {
    "v2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "v3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


def make_dataset(root, version, tasks=TASKS):
    """Episodes of a second of two cameras; in version 3 each file has two of them."""
    features = {camera: {"dtype": "video", "shape": [64, 64, 3]} for camera in CAMERAS}
    features["action"] = {"dtype": "float32", "shape": [2]}
    info = {
        "codebase_version": version,
        "fps": 12,
        "chunks_size": 2,
        "video_path": PATHS[version],
        "features": features,
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    rows = [{"episode_index": i, "tasks": [task], "length": 12} for i, task in enumerate(tasks)]
    for camera in CAMERAS:
        for row in rows:
            chunk, second = divmod(row["episode_index"], 2)
            place = {"episode_chunk": chunk, "episode_index": row["episode_index"], "chunk_index": chunk}
            path = root / PATHS[version].format(video_key=camera, file_index=0, **place)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_video(path, frames=12 * min(2, len(tasks) - 2 * chunk) if version == "v3.0" else 12)
            values = {
                "chunk_index": chunk,
                "file_index": 0,
                "from_timestamp": float(second),
                "to_timestamp": second + 1.0,
            }
            row |= {f"videos/{camera}/{name}": value for name, value in values.items()}
    if version == "v3.0":
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    else:
        lines = [json.dumps({key: row[key] for key in ("episode_index", "tasks", "length")}) for row in rows]
        (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    return root.resolve()
