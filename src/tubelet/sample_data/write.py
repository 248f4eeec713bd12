"""Making the sample set: splits, jobs over processes, the files."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from tubelet.data.process_map import WorkerCrashError, process_map
from tubelet.errors import TubeletError
from tubelet.io.files import atomic_write, directory_lock
from tubelet.io.hidden import without_hidden
from tubelet.io.overwrite import check_output
from tubelet.sample_data import truth
from tubelet.sample_data.engine import engine, engines_folder, how_engines_ended, import_vizdoom, start_level
from tubelet.sample_data.level import all_levels, load_level
from tubelet.sample_data.media import write_video
from tubelet.sample_data.plan import Anchors, RejectedError
from tubelet.sample_data.render import TICS_PER_SECOND, Shot, View, record, view_of

CLIPS_PER_LEVEL = 25  # fewer would spend the time on starting levels, more would show less variety
TRIES_PER_CLIP, TRIES_MORE = 12, 60
AWAKE_SHARE = 1 / 3  # the last clips of a level, in which monsters notice the player, walk and fire
UNSEEN_REFUSED = 0.7  # share of the clips without any object that is thrown away
JOB_SECONDS = 600  # a level that takes longer hangs
ROUNDS = 4
DATASET, UNFINISHED, SPLITS = "dataset.json", ".unfinished", ("train", "val")


@dataclass(frozen=True)
class Job:
    """The clips and images that one run through one level makes.

    Attributes:
        folder: of the split, where the files go.
        split: "train" or "val".
        wad, level: the level.
        seed: of this job alone, so that the result does not depend on who runs it.
        clips: (index, motion) of each.
        images: index of each.
        frames: per clip.
        tics: of the engine, per frame.
        fps: frames per second of the files.
        view: how it is rendered.
        scratch: where engines work.
    """

    folder: Path
    split: str
    wad: str
    level: str
    seed: tuple[int, ...]
    clips: tuple[tuple[int, int], ...]
    images: tuple[int, ...]
    frames: int
    tics: int
    fps: int
    view: View
    scratch: Path


@dataclass(frozen=True)
class JobResult:
    """What a job made and what it could not.

    Attributes:
        job: the job.
        missing_clips, missing_images: what another level must give.
        dropped: reason -> number of candidates.
        with_object: clips that show an object.
    """

    job: Job
    missing_clips: tuple[tuple[int, int], ...]
    missing_images: tuple[int, ...]
    dropped: Counter[str]
    with_object: int


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


def run_job(job: Job) -> JobResult:
    """Play one level and write its clips and images.

    Raises:
        TubeletError: the engine stopped.
    """
    level = load_level(job.wad, job.level)
    rng = np.random.default_rng(job.seed)
    dropped: Counter[str] = Counter()
    clips, images = list(job.clips), list(job.images)
    with_object = 0
    tries = TRIES_PER_CLIP * (len(clips) + len(images)) + TRIES_MORE
    if not len(level.things) or not level.solid.any():
        return JobResult(job, job.clips, job.images, dropped, 0)
    anchors, awake = Anchors(level), False
    seed = int(rng.integers(1, 2**31))
    with engine(job.wad, job.level, job.view.width, job.view.height, seed, job.scratch) as game:
        for attempt in range(tries):
            if not clips and not images:
                break
            if game.is_episode_finished():
                game.new_episode()
                start_level(game)
                awake = False
            if not awake and len(clips) <= AWAKE_SHARE * len(job.clips):
                game.send_game_command("notarget")  # a switch: this turns it off
                awake = True
            # Turns between the two, and from motion to motion: one that this level cannot give must not block the rest.
            for_image = bool(images) and (not clips or attempt % 4 == 3)
            place = attempt % len(images if for_image else clips)
            motion = truth.NO_MOTION if for_image else clips[place][1]
            try:
                shot = record(game, level, anchors, motion, 1 if for_image else job.frames, job.tics, job.view, rng)
                if not shot.shows_object and rng.random() < UNSEEN_REFUSED:
                    raise RejectedError("no object in view")
            except RejectedError as reason:
                dropped[str(reason)] += 1
                continue
            if for_image:
                index = images.pop(place)
                Image.fromarray(shot.pixels[0]).save(job.folder / "images" / f"{index:06d}.png", compress_level=3)
                write_truth(job.folder / "truth" / "images" / f"{index:06d}.npz", shot)
            else:
                index, _ = clips.pop(place)
                write_video(job.folder / "videos" / f"{index:06d}.mp4", shot.pixels, Fraction(job.fps))
                write_truth(job.folder / "truth" / "videos" / f"{index:06d}.npz", shot)
                with_object += shot.shows_object
    return JobResult(job, tuple(clips), tuple(images), dropped, with_object)


def run_jobs(jobs: list[Job], workers: int, done: Callable[[JobResult], None], scratch: Path) -> list[JobResult]:
    """Run jobs over processes; results in the order of the jobs.

    Raises:
        TubeletError: a level hangs or the engine takes a process down.
    """
    found: dict[Job, JobResult] = {}

    def take(job: Job, result: JobResult) -> None:
        found[job] = result
        done(result)

    try:
        timeout_s = JOB_SECONDS * ceil(len(jobs) / workers)
        process_map(run_job, jobs, workers, take, "the same command begins anew", timeout_s, isolated=True)
    except WorkerCrashError as error:
        if words := how_engines_ended(scratch):
            raise TubeletError(f"{words}; {error}") from error
        raise
    except TimeoutError:
        left = ", ".join(job.level for job in jobs if job not in found)
        raise TubeletError(f"rendering hangs; unfinished levels: {left}; try another seed") from None
    return [found[job] for job in jobs]


def split_levels(seed: int, validation_share: float) -> dict[str, list[tuple[str, str]]]:
    """The levels of each split, in the order in which they are used: no level is in both."""
    levels = all_levels()
    order = np.random.default_rng([seed, 0]).permutation(len(levels))
    held = min(max(round(len(levels) * validation_share), 1 if validation_share > 0 else 0), len(levels) - 1)
    shuffled = [levels[k] for k in order]
    return {"train": shuffled[held:], "val": shuffled[:held]}


def plan_jobs(
    root: Path,
    split: str,
    levels: list[tuple[str, str]],
    clips: list[tuple[int, int]],
    images: list[int],
    round_: int,
    seed: int,
    frames: int,
    fps: int,
    view: View,
    scratch: Path,
) -> list[Job]:
    """Deal clips and images out to as many levels as they need; a later round starts further down the list."""
    used = min(len(levels), max(1, ceil(len(clips) / CLIPS_PER_LEVEL), ceil(len(images) / CLIPS_PER_LEVEL)))
    jobs = []
    for k in range(used):
        place = (k + round_ * used) % len(levels)
        wad, level = levels[place]
        jobs.append(
            Job(
                folder=root / split,
                split=split,
                wad=wad,
                level=level,
                seed=(seed, 1 if split == "train" else 2, round_, place),
                clips=tuple(clips[k::used]),
                images=tuple(images[k::used]),
                frames=frames,
                tics=TICS_PER_SECOND // fps,
                fps=fps,
                view=view,
                scratch=scratch,
            )
        )
    return [job for job in jobs if job.clips or job.images]


def check_parameters(clips: int, images: int, frames: int, fps: int, validation_share: float) -> None:
    """Refuse what cannot be made.

    Raises:
        TubeletError: names the parameter and what it may be.
    """
    if fps < 1 or TICS_PER_SECOND % fps:
        raise TubeletError(f"fps {fps}: must divide the engine's {TICS_PER_SECOND} tics per second: 1, 5, 7 or 35")
    if clips < 0 or images < 0 or clips + images == 0:
        raise TubeletError(f"clips {clips}, images {images}: must not be negative, and not both 0")
    if frames < 2:
        raise TubeletError(f"frames {frames}: a clip has at least 2")
    if not 0 <= validation_share < 1:
        raise TubeletError(f"validation_share {validation_share}: must be at least 0 and below 1")


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

    The same parameters give the same bytes, whatever the number of workers. A set that is already there with the same
    parameters is left as it is.

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
        raise TubeletError(f"{out}: is a file; name a new folder for the sample set")
    if (out / DATASET).exists():  # it may be where nothing can be written
        return _found(out, parameters)
    import_vizdoom()
    levels = split_levels(seed, validation_share)
    with directory_lock(out, remedy="name another folder"):
        if (out / DATASET).exists():  # since just now
            return _found(out, parameters)
        partial = out / UNFINISHED
        # What is finished is moved up at the end; a command that was killed then has left both.
        own = {*SPLITS} if partial.exists() else set()
        if {entry.name for entry in without_hidden(out.iterdir())} - own:
            raise TubeletError(f"{out}: holds other files; name a new folder for the sample set")
        for name in {UNFINISHED, *own}:
            shutil.rmtree(out / name, ignore_errors=True)
        partial.mkdir()
        try:
            with engines_folder() as scratch:
                workers = workers or os.cpu_count() or 1
                description = _render_set(partial, levels, parameters, view, workers, progress, scratch)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for split in SPLITS:
            (partial / split).rename(out / split)
        with atomic_write(out / DATASET) as file:
            file.write_text(json.dumps(description, indent=1) + "\n")
        partial.rmdir()
    return {**description, "reused": False}


def _found(out: Path, parameters: dict) -> dict:
    """The description of a set that is there, if it is the one that was asked for."""
    description = truth.read_description(out)
    if description["parameters"] != parameters:
        raise TubeletError(f"{out}: holds a sample set made with other parameters; delete it or name another folder")
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # empty, of a command that was killed after its work
    return {**description, "reused": True}


def _render_set(
    root: Path,
    levels: dict[str, list[tuple[str, str]]],
    parameters: dict,
    view: View,
    workers: int,
    progress: Callable[[int, int], None] | None,
    scratch: Path,
) -> dict:
    """Render all files below `root`; returns the content of dataset.json."""
    share = parameters["validation_share"]
    clips, images = parameters["clips"], parameters["images"]
    counts = {"val": (round(clips * share), round(images * share))}
    counts["train"] = (clips - counts["val"][0], images - counts["val"][1])
    todo: dict[str, tuple[list[tuple[int, int]], list[int]]] = {}
    files: dict[str, dict[str, list[dict]]] = {}
    for split in SPLITS:
        for kind in ("videos", "images"):
            (root / split / kind).mkdir(parents=True)
            (root / split / "truth" / kind).mkdir(parents=True)
        n_clips, n_images = counts[split]
        # Motions in turn, shifted once per round through the levels, so that each level has all of them.
        todo[split] = ([(k, (k + k // 7) % len(truth.MOTIONS)) for k in range(n_clips)], list(range(n_images)))
        files[split] = {"videos": [], "images": []}

    dropped: Counter[str] = Counter()
    made, with_object, total = 0, 0, clips + images

    def count(result: JobResult) -> None:
        nonlocal made
        job = result.job
        made += len(job.clips) + len(job.images) - len(result.missing_clips) - len(result.missing_images)
        if progress is not None:
            progress(made, total)

    for round_ in range(ROUNDS):
        jobs = []
        for split, (left_clips, left_images) in todo.items():
            if left_clips or left_images:
                jobs += plan_jobs(
                    root,
                    split,
                    levels[split],
                    left_clips,
                    left_images,
                    round_,
                    parameters["seed"],
                    parameters["frames"],
                    parameters["fps"],
                    view,
                    scratch,
                )
        if not jobs:
            break
        results = run_jobs(jobs, workers, count, scratch)
        todo = {split: ([], []) for split in todo}
        for result in results:
            job = result.job
            dropped.update(result.dropped)
            with_object += result.with_object
            todo[job.split][0].extend(result.missing_clips)
            todo[job.split][1].extend(result.missing_images)
            for index, motion in set(job.clips) - set(result.missing_clips):
                entry = {"file": f"{index:06d}.mp4", "level": job.level, "motion": truth.MOTIONS[motion]}
                files[job.split]["videos"].append(entry)
            for index in set(job.images) - set(result.missing_images):
                files[job.split]["images"].append({"file": f"{index:06d}.png", "level": job.level})
    missing = sum(len(left[0]) + len(left[1]) for left in todo.values())
    if missing:
        raise TubeletError(f"{missing} of {total} files could not be recorded ({dict(dropped)}); try another seed")
    for by_kind in files.values():
        for entries in by_kind.values():
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
        "clips_with_object": with_object,
        "dropped": dict(sorted(dropped.items())),
        "files": files,
    }
