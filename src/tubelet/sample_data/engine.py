"""The game engine: one process for each level, with its own folder, which ends with the process that plays it.

The library starts the engine, and may crash its process when the engine ends unexpectedly. So games are played in
worker processes, and their parent reads the output and the exit code of an engine.
"""

import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from tubelet.data.process_map import on_parent_exit
from tubelet.data.worker_status import describe_exit
from tubelet.errors import FileError, MissingPackageError, TubeletError
from tubelet.io.files import temporary_directory
from tubelet.sample_data import supervisor
from tubelet.sample_data.level import wad_root

# The player is invulnerable and monsters ignore it (their fire would end every third clip), the camera does not bob,
# there is no text over the image, monsters do not flicker; and light fades less with distance, since codecs turn dark
# areas into noise.
SETTINGS = (
    "god",
    "notarget",
    "movebob 0",
    "cl_showsecretmessage 0",
    "con_midtime 0",
    "r_visibility 24",
    "r_drawfuzz 0",
)
SUPERVISOR_GRACE_S = 10.0  # time for a supervisor to end after its engine was killed
ORPHAN_S = 30.0  # time in which an engine opens its shared memory


def import_vizdoom() -> Any:
    """Import the library.

    Raises:
        MissingPackageError: it is missing, or built for another platform.
    """
    try:
        import vizdoom
    except ImportError as error:
        raise MissingPackageError(
            f"the sample data set is rendered by ViZDoom: pip install vizdoom ({error})"
        ) from error
    return vizdoom


@contextmanager
def engines_folder() -> Iterator[Path]:
    """A folder for engines; at the end all have ended, and nothing of them is left."""
    start_time = time.time()
    # Engines that cannot be seen from here (a container that shares memory) need the names no longer once they are old.
    _sweep_unmapped(0.0, start_time - ORPHAN_S)
    with temporary_directory("engine", _sweep) as (folder, _):
        try:
            yield folder
        finally:
            _wait_for_supervisors(_places(folder))
            _sweep(folder)
            if any(not (directory / supervisor.INSTANCE).is_file() for directory in _places(folder)):
                _sweep_unmapped(start_time - 1, time.time() + 1)  # file systems' clocks tick more coarsely


def _sweep_unmapped(start: float, end: float) -> None:
    """Remove shared memory of engines whose player was killed before anybody knew its name: no process has it mapped.

    Args:
        start: seconds since the epoch; older files are kept.
        end: newer files are kept.
    """
    if sys.platform != "linux":
        return
    candidates = []
    for file in supervisor.SHARED_MEMORY.glob("ViZDoom*"):
        with suppress(OSError):
            status = file.stat()
            if status.st_uid == os.getuid() and start <= status.st_mtime <= end:
                candidates.append(file)
    mapped = {name for maps in Path("/proc").glob("[0-9]*/maps") for name in _mapped(maps)} if candidates else set()
    for file in candidates:
        if file.name not in mapped:
            file.unlink(missing_ok=True)


def _mapped(maps: Path) -> list[str]:
    """Names of the shared memory of engines that a process has mapped, itself the engine or its player."""
    try:
        with maps.open(errors="replace") as lines:
            return [line.rstrip("\n").rpartition("/")[2] for line in lines if "/ViZDoom" in line]
    except OSError:
        return []


def _remove_own_shared_memory() -> None:
    """Remove what this process, whose parent has ended, has mapped: its engine may have no supervisor yet."""
    for name in _mapped(Path("/proc/self/maps")):
        (supervisor.SHARED_MEMORY / name).unlink(missing_ok=True)


def explain_engine_exits(folder: Path) -> str:
    """What is known of engines that ended before the processes that played them; "" if none did."""
    _wait_for_supervisors(_places(folder))
    causes = (_explain_engine_exit(directory) for directory in _places(folder))
    return "; ".join(cause for cause in causes if cause)


def _places(folder: Path) -> list[Path]:
    return sorted(directory for directory in folder.iterdir() if directory.is_dir())


def _wait_for_supervisors(directories: Iterable[Path]) -> None:
    deadline, directories = time.monotonic() + SUPERVISOR_GRACE_S, list(directories)
    while any(map(supervisor.works_in, directories)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _sweep(folder: Path) -> None:
    """Remove the shared memory of engines that were killed before they or their supervisors could."""
    for directory in _places(folder):
        if (file := directory / supervisor.INSTANCE).is_file():
            supervisor.remove_shared_memory(file.read_text(errors="replace", encoding="utf-8").strip())


def _explain_engine_exit(directory: Path) -> str:
    """How the engine that worked in a folder ended, and what it printed last."""
    exit_file, printed = directory / supervisor.EXIT_CODE, directory / supervisor.OUTPUT
    if not (directory / supervisor.IN_USE).is_file():  # no supervisor came so far
        return ""
    code = exit_file.read_text(encoding="utf-8") if exit_file.is_file() else None
    if code == supervisor.ORPHANED:
        return ""
    output = printed.read_text(errors="replace", encoding="utf-8") if printed.is_file() else ""
    lines = [line.strip() for line in output.split("\n") if line.strip()]
    causes = ["the engine's supervisor was killed" if code is None else f"the engine: {describe_exit(int(code))}"]
    if lines:
        causes.append(f"its last output: {' / '.join(lines[-3:])[-500:]}")
    return ", ".join(causes)


@contextmanager
def engine(wad: str, level: str, width: int, height: int, seed: int, folder: Path) -> Iterator[Any]:
    """A running game without window and sound, without anything drawn over the world, on one level.

    Args:
        wad: file of levels.
        level: its name.
        width: pixels of a frame across.
        height: and down.
        seed: of the engine's own chances.
        folder: from `engines_folder`.

    Raises:
        TubeletError: ViZDoom is missing, or cannot start the level.
    """
    vizdoom = import_vizdoom()
    game = _configured_game(vizdoom, wad, level, width, height, seed)
    directory = Path(tempfile.mkdtemp(dir=folder))
    game.set_doom_config_path(str(directory / "engine.ini"))
    on_parent_exit(_remove_own_shared_memory)
    with _supervised(game, directory, vizdoom) if os.name == "posix" else nullcontext():
        try:
            game.init()
            start_level(game)
            yield game
        except _errors_of(vizdoom) as error:
            game.close()
            _wait_for_supervisors([directory])
            cause = _explain_engine_exit(directory)
            raise TubeletError(
                f"level {level} of {wad}: the engine stopped ({error}{'; ' * bool(cause)}{cause}); try another seed"
            ) from error
        finally:
            game.close()
    shutil.rmtree(directory, ignore_errors=True)


def _configured_game(vizdoom: Any, wad: str, level: str, width: int, height: int, seed: int) -> Any:
    """A game that is not started yet, see `engine`."""
    game = vizdoom.DoomGame()
    game.set_doom_game_path(str(wad_root() / wad))
    game.set_doom_map(level)
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{width}X{height}"))
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_depth_buffer_enabled(True)
    game.set_labels_buffer_enabled(True)
    for hidden in [
        "hud",
        "weapon",
        "crosshair",
        "messages",
        "screen_flashes",
        "decals",
        "particles",
        "effects_sprites",
    ]:
        getattr(game, f"set_render_{hidden}")(False)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    button, variable = vizdoom.Button, vizdoom.GameVariable
    game.set_available_buttons(
        [button.MOVE_FORWARD_BACKWARD_DELTA, button.MOVE_LEFT_RIGHT_DELTA, button.TURN_LEFT_RIGHT_DELTA]
    )
    game.set_available_game_variables(
        [getattr(variable, f"CAMERA_{name}") for name in ("POSITION_X", "POSITION_Y", "POSITION_Z", "ANGLE")]
    )
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_seed(seed)
    return game


def _errors_of(vizdoom: Any) -> tuple[type[Exception], ...]:
    names = ("ViZDoomError", "ViZDoomUnexpectedExit", "MessageQueue", "SharedMemory", "FileDoesNotExist")
    return tuple(getattr(vizdoom, f"{name}Exception") for name in names)


@contextmanager
def _supervised(game: Any, directory: Path, vizdoom: Any) -> Iterator[None]:
    """Have a game start `supervisor` in place of its engine.

    Raises:
        TubeletError: no program may be run from the temporary folder.
    """
    read_end, write_end = os.pipe()  # `write_end` is in this process only, which is what the supervisor goes by
    opened = [read_end, write_end]
    try:
        os.set_inheritable(read_end, True)
        engine = Path(vizdoom.__file__).with_name("vizdoom")
        command = [sys.executable, "-I", "-S", supervisor.__file__, str(read_end), str(directory), str(engine)]
        program = directory / "engine"
        script = f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'
        program.write_text(script, encoding="utf-8")
        program.chmod(0o700)
        if not os.access(program, os.X_OK) and hasattr(os, "memfd_create"):  # mounted noexec; a file in memory is not
            opened.append(os.memfd_create("engine", 0))
            os.write(opened[-1], script.encode())
            program = Path(f"/proc/self/fd/{opened[-1]}")
        if not os.access(program, os.X_OK):
            raise FileError(
                f"{directory.parent.parent}: no program may run from there; set TMPDIR to a folder that allows it"
            )
        game.set_vizdoom_path(str(program))
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)


def start_level(game: Any) -> None:
    """Give the settings that hold for one run through a level."""
    for command in SETTINGS:
        game.send_game_command(command)
    game.make_action([0, 0, 0], 1)
