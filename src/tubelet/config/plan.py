"""Settings of a dry run."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tubelet.config.fields import Settings
from tubelet.value_checks import Bounds


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Settings):
    """A dry run: the plan of a training run on devices that need not exist."""

    dry_run: bool = False
    """Print memory and time of a step on the devices below instead of training."""
    devices: Annotated[int, Bounds(1, 10**7)] = 1
    """Devices of the planned run."""
    device_kind: Literal["auto", "b200", "h200", "h100", "a100", "cpu"] = "auto"
    """Kind of the planned devices, by its data sheet; auto is this machine's own device."""
    devices_per_node: Annotated[int, Bounds(1, 10**7)] = 8
    """Devices of the planned run per node."""
    mfu: Annotated[float, Bounds(0, 1, exclusive=True)] = 0.4
    """Model FLOPs utilization: expected fraction of a device's data-sheet rate."""
    link_efficiency: Annotated[float, Bounds(0, 1, exclusive=True)] = 0.7
    """Expected fraction of a link's data-sheet bandwidth."""
