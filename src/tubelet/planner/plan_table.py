"""A plan as tables that show their arithmetic."""

from rich.console import Console
from rich.table import Table

from tubelet.console import print_wrapped
from tubelet.planner.memory_tracker import Transfer
from tubelet.planner.run_plan import USABLE, RunPlan, StepTrace

GIB = 2**30


def print_plan(plan: RunPlan, console: Console) -> None:
    """Print all of it: sizes, memory, every mask's pass, communication, time, and whether it fits."""
    for table in (_memory(plan), _passes(plan), _transfers(plan)):
        if table.row_count:
            console.print(table)
    for line in sentences(plan):
        print_wrapped(console, line)


def sentences(plan: RunPlan) -> list[str]:
    """Sizes, mesh, time and verdict as sentences below the tables."""
    return [_sizes(plan), _mesh(plan), _time(plan), *_verdict(plan)]


def _sizes(plan: RunPlan) -> str:
    millions = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in plan.parameters.items())
    samples = " and ".join(f"{count} {modality}s" for modality, count in plan.counts.items())
    parts = f" in {plan.config.grad_accum_steps} parts" if plan.config.grad_accum_steps > 1 else ""
    masks = "all masks in one pass" if plan.config.pack_masks else "one mask after the other"
    return f"parameters: {millions}; a step takes {samples}{parts}, in {plan.config.precision}, {masks}"


def _mesh(plan: RunPlan) -> str:
    planned = plan.planned
    devices, local = planned.devices, min(planned.devices, planned.devices_per_node)
    shape = {"ddp": f"{devices} x whole", "fsdp": f"shards over {devices}"}.get(
        plan.parallel, f"{devices // local} x shards over {local}"
    )
    return f"mesh: {plan.parallel}, {shape}; {devices} {plan.device.name}, {local} on a machine"


def _time(plan: RunPlan) -> str:
    planned, step = plan.planned, plan.step
    joined = "+" if plan.parallel == "ddp" else "under"
    clips = plan.config.batch_size / plan.step_seconds
    return (
        f"time: {step.flops / 1e12:,.3g} TFLOP a device / ({plan.device.flops / 1e12:,.4g} TFLOP/s x "
        f"{planned.mfu:g}) = {plan.compute_seconds:.3g} s {joined} {plan.transfer_seconds:.3g} s of "
        f"communication = {plan.step_seconds:.3g} s a step; {plan.config.batch_size} samples a step / "
        f"{plan.step_seconds:.3g} s = {clips:,.4g} clips/s"
    )


def _verdict(plan: RunPlan) -> list[str]:
    step, other = plan.step, plan.other
    usable = USABLE * plan.device.memory
    room = f"{100 * USABLE:.0f} % of {plan.device.memory / GIB:.0f} GiB, {usable / GIB:.1f} GiB"
    flag, message = (
        ("--no-activation-checkpointing", "keeping all activations")
        if plan.config.activation_checkpointing
        else ("--activation-checkpointing", "recomputing activations")
    )
    change = (
        f"{message} ({flag}) takes {other.total / GIB:,.2f} GiB and {other.flops / step.flops:.2f} x the operations"
    )
    if plan.fits:
        return [f"fits: {step.total / GIB:,.2f} GiB of {room}; {change}"]
    lines = [f"does not fit: {step.total / GIB:,.2f} GiB, and there is {room}"]
    if not plan.config.activation_checkpointing:
        lines.append(f"{change}{', which fits' if other.total <= usable else ''}")
    if plan.config.pack_masks:
        lines.append("all masks go in one pass: --no-pack-masks takes less")
    state = state_bytes(step)
    if state > usable / 2:
        others = "more --devices" if plan.parallel == "fsdp" else "--parallel fsdp, over more --devices"
        lines.append(f"weights, gradients and moments take {state / GIB:,.2f} GiB: {others}")
    if (samples := max(each.samples for each in step.passes)) > 1:
        lines.append(
            f"a device holds up to {samples} samples at once: a higher --grad-accum-steps, or a lower --batch-size"
        )
    elif plan.config.activation_checkpointing:
        lines.append("a device holds one sample at once: a smaller --image-size, or fewer --frames")
    return lines


def state_bytes(step: StepTrace) -> int:
    """Of parameters, teacher, gradients and moments, on one device."""
    return sum(step.memory[kind] for kind in ("parameters", "teacher", "gradients", "optimizer moments"))


def _memory(plan: RunPlan) -> Table:
    table = Table(title=f"memory of a device at its fullest ({plan.step.moment})")
    table.add_column("what")
    for column in ("GiB", "share"):
        table.add_column(column, justify="right")
    for kind, size in plan.step.memory.most_common():
        if size:
            table.add_row(kind, f"{size / GIB:,.3f}", f"{100 * size / plan.step.total:.1f} %")
    table.add_section()
    table.add_row(
        "all", f"{plan.step.total / GIB:,.3f}", f"{100 * plan.step.total / plan.device.memory:.1f} % of device"
    )
    return table


def _passes(plan: RunPlan) -> Table:
    table = Table(
        title="activations of a pass in GiB, kept | recomputed",
        caption="live: activations after the forward pass; peak: all memory",
    )
    table.add_column("pass")
    for column in ("samples", "tokens", "context", "target", "live", "peak"):
        table.add_column(column, justify="right")
    pairs = zip(plan.step.passes, plan.other.passes, strict=True)
    for one, other in pairs:
        counts = (one.samples, one.tokens, one.context, one.target)
        stored, recomputed = (other, one) if plan.config.activation_checkpointing else (one, other)
        sizes = ((stored.live_bytes, recomputed.live_bytes), (stored.peak, recomputed.peak))
        cells = (f"{a / GIB:,.2f} | {b / GIB:,.2f}" for a, b in sizes)
        table.add_row(one.name, *(f"{count:,}" for count in counts), *cells)
    return table


def _transfers(plan: RunPlan) -> Table:
    table = Table(title="communication of a device in a step")
    table.add_column("what")
    for column in ("operations", "among", "GB", "GB/s", "seconds"):
        table.add_column(column, justify="right")
    grouped: dict[tuple[str, int], list[Transfer]] = {}
    for transfer in plan.step.transfers:
        grouped.setdefault((transfer.kind, transfer.members), []).append(transfer)
    for (kind, members), transfers in grouped.items():
        size, seconds = sum(each.size for each in transfers), sum(plan.seconds(each) for each in transfers)
        rate = plan.rate(transfers[0])
        cells = (f"{len(transfers)}", f"{members}", f"{size / 1e9:,.3f}", f"{rate / 1e9:,.0f}", f"{seconds:,.3g}")
        table.add_row(kind, *cells)
    return table
