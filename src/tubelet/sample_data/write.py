"""The writer of the sample set: splits, jobs in worker processes, files."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from tubelet.data.process_map import process_map
from tubelet.data.worker_count import available_cores
from tubelet.data.worker_status import WorkerCrashError
from tubelet.errors import ConfigError, DataError, FileError
from tubelet.io.files import atomic_write, directory_lock
from tubelet.io.hidden_files import without_hidden
from tubelet.io.overwrite_checks import check_output
from tubelet.sample_data import truth
from tubelet.sample_data.engine import engine, engines_folder, explain_engine_exits, import_vizdoom, start_level
from tubelet.sample_data.level import all_levels, load_level
from tubelet.sample_data.media import write_video
from tubelet.sample_data.render import TICS_PER_SECOND, FrameScaling, RenderSettings, Shot, record, view_of
from tubelet.sample_data.viewpoints import Anchors, RejectedError

CLIPS_PER_LEVEL = 25  # fewer would spend the time on starting levels, more would show less variety
TRIES_PER_CLIP, TRIES_MORE = 12, 60
AWAKE_FRACTION = 1 / 3  # the last clips of a level, in which monsters notice the player, walk and fire
EMPTY_REJECTED = 0.7  # fraction of the clips without any object that is rejected
JOB_SECONDS = 600  # a level that takes longer hangs
ROUNDS = 4
DATASET, UNFINISHED, SPLITS = "dataset.json", ".unfinished", ("train", "val")
FOLDERS = ("videos", "images", "truth/videos", "truth/images")


@dataclass(frozen=True)
class LevelJob:
    """The clips and images that are recorded in one run through one level.

    Attributes:
        settings: settings of the set.
        split: "train" or "val".
        wad, level: the level.
        seed: seed of this job only, so that the result does not depend on the process that runs it.
        clips: (index, motion) of each clip.
        images: index of each image.
    """

    settings: RenderSettings
    split: str
    wad: str
    level: str
    seed: tuple[int, ...]
    clips: tuple[tuple[int, int], ...]
    images: tuple[int, ...]


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Attributes:
        job: the job.
        missing_clips, missing_images: what could not be recorded, left to another level.
        rejected: number of rejected views by reason.
        with_object: number of clips that show an object.
    """

    job: LevelJob
    missing_clips: tuple[tuple[int, int], ...]
    missing_images: tuple[int, ...]
    rejected: Counter[str]
    with_object: int

    def clips(self) -> set[tuple[int, int]]:
        """(index, motion) of the recorded clips."""
        return set(self.job.clips) - set(self.missing_clips)

    def images(self) -> set[int]:
        """The indices of the recorded images."""
        return set(self.job.images) - set(self.missing_images)


def write_truth(path: Path, shot: Shot) -> None:
    """Write the ground truth of a clip or image for `read_truth`."""
    clip = shot.truth
    small = clip.instances.max(initial=0) < 256
    truth.save_arrays(
        path,
        {
            "depth_codes": shot.codes,
            "depth_steps": shot.steps,
            "classes": clip.classes,
            "instances": clip.instances.astype(np.uint8) if small else clip.instances,
            "pose": clip.pose,
            "motion": np.array(clip.motion, np.int8),
            "tracks": clip.tracks,
            "visible": clip.visible,
            "camera": np.array(clip.camera, np.float64),
            "level": np.array(clip.level),
        },
    )


def run_job(job: LevelJob) -> JobResult:
    """Play one level and write its clips and images.

    Raises:
        TubeletError: the engine stopped.
    """
    level = load_level(job.wad, job.level)
    rng = np.random.default_rng(job.seed)
    rejected: Counter[str] = Counter()
    clips, images = list(job.clips), list(job.images)
    if not len(level.things) or not level.solid.any():
        return JobResult(job, job.clips, job.images, rejected, 0)
    anchors, view = Anchors(level), job.settings.view
    with_object, awake = 0, False
    seed = int(rng.integers(1, 2**31))
    with engine(job.wad, job.level, view.width, view.height, seed, job.settings.scratch) as game:
        for attempt in range(TRIES_PER_CLIP * (len(clips) + len(images)) + TRIES_MORE):
            if not clips and not images:
                break
            if game.is_episode_finished():
                game.new_episode()
                start_level(game)
                awake = False
            if not awake and len(clips) <= AWAKE_FRACTION * len(job.clips):
                game.send_game_command("notarget")  # a switch: this turns it off
                awake = True
            # Turns between the two, and from motion to motion: one that this level cannot give must not block the rest.
            for_image = bool(images) and (not clips or attempt % 4 == 3)
            entry_index = attempt % len(images if for_image else clips)
            motion = truth.NO_MOTION if for_image else clips[entry_index][1]
            try:
                shot = record(game, level, anchors, motion, job.settings, rng)
                if not shot.shows_object and rng.random() < EMPTY_REJECTED:
                    raise RejectedError("no object in view")
            except RejectedError as reason:
                rejected[str(reason)] += 1
                continue
            if for_image:
                _write_image(job, images.pop(entry_index), shot)
            else:
                _write_clip(job, clips.pop(entry_index)[0], shot)
                with_object += shot.shows_object
    return JobResult(job, tuple(clips), tuple(images), rejected, with_object)


def _write_image(job: LevelJob, index: int, shot: Shot) -> None:
    folder = job.settings.root / job.split
    Image.fromarray(shot.pixels[0]).save(folder / "images" / f"{index:06d}.png", compress_level=3)
    write_truth(folder / "truth" / "images" / f"{index:06d}.npz", shot)


def _write_clip(job: LevelJob, index: int, shot: Shot) -> None:
    folder = job.settings.root / job.split
    write_video(folder / "videos" / f"{index:06d}.mp4", shot.pixels, Fraction(job.settings.fps))
    write_truth(folder / "truth" / "videos" / f"{index:06d}.npz", shot)


def run_jobs(jobs: list[LevelJob], workers: int, done: Callable[[JobResult], None], scratch: Path) -> list[JobResult]:
    """Run jobs in worker processes; results in the order of the jobs.

    Raises:
        TubeletError: a level hangs, or the engine crashed.
    """
    results: dict[LevelJob, JobResult] = {}

    def collect(job: LevelJob, result: JobResult) -> None:
        results[job] = result
        done(result)

    try:
        timeout_s = JOB_SECONDS * ceil(len(jobs) / workers)
        process_map(run_job, jobs, workers, collect, "run the same command to start again", timeout_s, isolated=True)
    except WorkerCrashError as error:
        if cause := explain_engine_exits(scratch):
            raise DataError(f"{cause}; {error}") from error
        raise
    except TimeoutError:
        left = ", ".join(job.level for job in jobs if job not in results)
        raise DataError(f"rendering hangs; unfinished levels: {left}; try another seed") from None
    return [results[job] for job in jobs]


def split_levels(seed: int, validation_share: float) -> dict[str, list[tuple[str, str]]]:
    """The levels of each split, in the order in which they are used: no level is in both."""
    levels = all_levels()
    order = np.random.default_rng([seed, 0]).permutation(len(levels))
    count = min(max(round(len(levels) * validation_share), 1 if validation_share > 0 else 0), len(levels) - 1)
    shuffled = [levels[k] for k in order]
    return {"train": shuffled[count:], "val": shuffled[:count]}


def plan_jobs(
    settings: RenderSettings,
    split: str,
    levels: list[tuple[str, str]],
    clips: list[tuple[int, int]],
    images: list[int],
    round_: int,
) -> list[LevelJob]:
    """Distribute clips and images to as many levels as they need; a later round starts further down the list."""
    used = min(len(levels), max(1, ceil(len(clips) / CLIPS_PER_LEVEL), ceil(len(images) / CLIPS_PER_LEVEL)))
    jobs = []
    for k in range(used):
        index = (k + round_ * used) % len(levels)
        seed = (settings.seed, 1 if split == "train" else 2, round_, index)
        jobs.append(LevelJob(settings, split, *levels[index], seed, tuple(clips[k::used]), tuple(images[k::used])))
    return [job for job in jobs if job.clips or job.images]


def check_parameters(clips: int, images: int, frames: int, fps: int, validation_share: float) -> None:
    """Refuse what cannot be made.

    Raises:
        TubeletError: names the parameter and what it may be.
    """
    if fps < 1 or TICS_PER_SECOND % fps:
        raise ConfigError(f"fps {fps}: must divide the engine's {TICS_PER_SECOND} tics per second: 1, 5, 7 or 35")
    if clips < 0 or images < 0 or clips + images == 0:
        raise ConfigError(f"clips {clips}, images {images}: must not be negative, and not both 0")
    if frames < 2:
        raise ConfigError(f"frames {frames}: a clip has at least 2")
    if not 0 <= validation_share < 1:
        raise ConfigError(f"validation_share {validation_share}: must be at least 0 and below 1")


def write_sample_data(
    out: str | Path,
    clips: int = 1000,
    seed: int = 0,
    size: int = 128,
    frames: int = 16,
    fps: int = 7,
    images: int | None = None,
    validation_share: float = 0.2,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Render a data set of first-person clips and images with ground truth.

    The same parameters give the same bytes with any number of workers; an existing set of the same is left as it is.

    Args:
        out: directory to make; it may exist if it is empty.
        clips: number of clips of both splits together.
        seed: chooses levels, viewpoints and motions.
        size: pixels of the square frames.
        frames: per clip.
        fps: frames per second; must divide 35.
        images: number of single frames, a quarter of the clips by default.
        validation_share: of levels, clips and images.
        workers: processes, as many as cores by default.
        progress: called with files made and files to make.

    Returns:
        The content of dataset.json and "reused", whether the set was there before.

    Raises:
        TubeletError: impossible parameters, `out` holds something else, ViZDoom is missing or fails.
    """
    out = Path(out)
    images = clips // 4 if images is None else images
    check_parameters(clips, images, frames, fps, validation_share)
    check_output(out, "sample set")
    view = view_of(size)
    parameters = {
        "clips": clips,
        "images": images,
        "seed": seed,
        "size": size,
        "frames": frames,
        "fps": fps,
        "validation_share": validation_share,
    }
    if out.exists() and not out.is_dir():
        raise FileError(f"{out}: is a file; name a new folder for the sample set")
    if (out / DATASET).exists():  # perhaps in a read-only folder
        return _found(out, parameters)
    import_vizdoom()
    levels = split_levels(seed, validation_share)
    with directory_lock(out, remedy="name another folder"):
        if (out / DATASET).exists():  # written since the check above
            return _found(out, parameters)
        settings = RenderSettings(out / UNFINISHED, seed, frames, fps, view)
        description = _write_set(out, settings, levels, parameters, workers or available_cores(), progress)
    return {**description, "reused": False}


def _write_set(
    out: Path,
    settings: RenderSettings,
    levels: dict[str, list[tuple[str, str]]],
    parameters: dict,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict:
    """Render a set in a folder that no other process writes to; returns the content of dataset.json."""
    _clear(out, settings.root)
    try:
        with engines_folder() as scratch:
            description = _render_set(replace(settings, scratch=scratch), levels, parameters, workers, progress)
    except BaseException:
        shutil.rmtree(settings.root, ignore_errors=True)
        raise
    for split in SPLITS:
        (settings.root / split).rename(out / split)
    with atomic_write(out / DATASET) as file:
        file.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    settings.root.rmdir()
    return description


def _clear(out: Path, partial: Path) -> None:
    """Remove what a killed command left in the folder, and make a new one for unfinished files.

    Raises:
        TubeletError: the folder has other files.
    """
    # Complete splits are moved up at the end; a command that was killed then has left both.
    names = {*SPLITS} if partial.exists() else set()
    if {entry.name for entry in without_hidden(out.iterdir())} - names:
        raise FileError(f"{out}: contains other files; name a new folder for the sample set")
    for name in {UNFINISHED, *names}:
        shutil.rmtree(out / name, ignore_errors=True)
    partial.mkdir()


def _found(out: Path, parameters: dict) -> dict:
    """The description of an existing set, if it has the requested parameters."""
    description = truth.read_description(out)
    if description["parameters"] != parameters:
        raise ConfigError(f"{out}: is a sample set of other parameters; delete it or name another folder")
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # empty, of a command that was killed after its work
    return {**description, "reused": True}


def _render_set(
    settings: RenderSettings,
    levels: dict[str, list[tuple[str, str]]],
    parameters: dict,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict:
    """Render all files; returns the content of dataset.json."""
    total, done = parameters["clips"] + parameters["images"], 0
    todo = _plan_files(parameters)
    for folder in (settings.root / split / kind for split in SPLITS for kind in FOLDERS):
        folder.mkdir(parents=True)

    def count(result: JobResult) -> None:
        nonlocal done
        done += len(result.clips()) + len(result.images())
        if progress is not None:
            progress(done, total)

    results: list[JobResult] = []
    for round_ in range(ROUNDS):
        jobs = [job for split, left in todo.items() for job in plan_jobs(settings, split, levels[split], *left, round_)]
        if not jobs:
            break
        made = run_jobs(jobs, workers, count, settings.scratch)
        results += made
        todo = {split: ([], []) for split in todo}
        for result in made:
            todo[result.job.split][0].extend(result.missing_clips)
            todo[result.job.split][1].extend(result.missing_images)
    rejected = sum((result.rejected for result in results), Counter())
    if missing := sum(len(clips) + len(images) for clips, images in todo.values()):
        raise DataError(f"{missing} of {total} files could not be recorded ({dict(rejected)}); try another seed")
    return _describe(parameters, settings.view, results, rejected)


def _plan_files(parameters: dict) -> dict[str, tuple[list[tuple[int, int]], list[int]]]:
    """The (index, motion) of the clips and the indices of the images of each split."""
    share, total = parameters["validation_share"], (parameters["clips"], parameters["images"])
    val = [round(count * share) for count in total]
    counts = {"train": [count - val_count for count, val_count in zip(total, val, strict=True)], "val": val}
    # Motions in turn, shifted once per round through the levels, so that each level has all of them.
    return {
        split: ([(k, (k + k // 7) % len(truth.MOTIONS)) for k in range(clips)], list(range(images)))
        for split, (clips, images) in counts.items()
    }


def _describe(parameters: dict, view: FrameScaling, results: list[JobResult], rejected: Counter[str]) -> dict:
    """The content of dataset.json."""
    files: dict[str, dict[str, list[dict]]] = {split: {"videos": [], "images": []} for split in SPLITS}
    for result in results:
        level, split_files = result.job.level, files[result.job.split]
        for index, motion in result.clips():
            split_files["videos"].append({"file": f"{index:06d}.mp4", "level": level, "motion": truth.MOTIONS[motion]})
        split_files["images"] += [{"file": f"{index:06d}.png", "level": level} for index in result.images()]
    for entries in (entries for by_kind in files.values() for entries in by_kind.values()):
        entries.sort(key=lambda entry: entry["file"])
    camera = view.camera
    return {
        "name": truth.NAME,
        "format": truth.FORMAT,
        "parameters": parameters,
        "classes": list(truth.CLASSES),
        "motions": list(truth.MOTIONS),
        "camera": camera._asdict(),
        "field_of_view_degrees": {
            "horizontal": round(view.degrees, 3),
            "vertical": round(float(2 * np.degrees(np.arctan(camera.cy / camera.fy))), 3),
        },
        "counts": {split: {kind: len(entries) for kind, entries in files[split].items()} for split in files},
        "levels": {
            split: sorted({entry["level"] for entries in files[split].values() for entry in entries}) for split in files
        },
        "clips_with_object": sum(result.with_object for result in results),
        "dropped": dict(sorted(rejected.items())),
        "files": files,
    }
