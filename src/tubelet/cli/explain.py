"""`tubelet explain`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tubelet.cli.command import Command
from tubelet.config.fields import Frames, PathText, Rate, Seed, Side
from tubelet.console import open_console


@dataclass(frozen=True, kw_only=True)
class Explain(Command):
    """Follow one video or image through the method: eight steps, printed and drawn on a page."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A video or an image."""
    model: PathText = "vit-ti"
    """A preset (random weights), a run directory, a checkpoint, or a released .pt file."""
    out: Path = Path("explain.html")
    """The page."""
    image_size: Side | None = None
    """Side of the center crop in pixels; by default the model's own."""
    frames: Frames | None = None
    """Frames of the clip; by default the model's own."""
    fps: Rate | None = None
    """Frames per second of the clip; by default the model's own."""
    seed: Seed = 0
    """Seed of the masks, and of random weights."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        return (self.file,)

    def run(self) -> None:
        """Print the steps and write the page."""
        from tubelet.view.explain import explain

        explain(
            self.file,
            self.model,
            self.out,
            image_size=self.image_size,
            frames=self.frames,
            fps=self.fps,
            seed=self.seed,
            console=open_console(),
        )
