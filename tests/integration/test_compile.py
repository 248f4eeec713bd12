"""Compiled runs: the same losses, no compilation after the first steps, and no compiler is no error."""

import dataclasses
import logging
import os
import re
import shutil
import signal
from functools import partial

import pytest
import torch

from tests.helpers.training import ONE_BLOCK, rows, tiny_config, train_quietly
from tubelet.config import TrainConfig, vit_pico
from tubelet.grid import Grid
from tubelet.io.files import remove_incomplete_libraries
from tubelet.model.encoder import Encoder
from tubelet.model.layers import Attention
from tubelet.model.rope import rotary_table
from tubelet.train.compilation import compile_blocks, prepare_model
from tubelet.train.signals import InterruptedRunError, StopSignals
from tubelet.train.trainer import train
from tubelet.vjepa import VJEPA

CPU = torch.device("cpu")


@pytest.mark.slow
def test_a_compiled_run_gives_the_losses_of_an_eager_one_and_compiles_nothing_after_its_first_steps(
    media, tmp_path, monkeypatch, caplog
):
    # What is traced, and when, is the same for every backend; the real one takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    counted = []

    class Counting(logging.Handler):
        def emit(self, record):
            counted.append((record.getMessage(), torch._dynamo.utils.counters["stats"]["unique_graphs"]))

    torch._dynamo.reset()
    # At 32 px, masks of an image may leave a single token, for which PyTorch compiles another graph.
    config = dataclasses.replace(tiny_config(media, steps=16, data={"image_size": 48}), model=ONE_BLOCK)
    caplog.set_level(logging.INFO, "tubelet")
    logging.getLogger("tubelet").addHandler(handler := Counting())
    train(dataclasses.replace(config, compile=True), tmp_path / "compiled")
    logging.getLogger("tubelet").removeHandler(handler)
    train_quietly(config, tmp_path / "eager")
    assert any("compiling the transformer blocks" in words for words, _ in counted)
    graphs = [number for words, number in counted if re.search(r"step \d+/", words)]
    assert graphs[0] > 0
    assert graphs[len(graphs) // 2] == graphs[-1]
    for ours, theirs in zip(rows(tmp_path / "compiled"), rows(tmp_path / "eager"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="there is no C++ compiler here")
def test_compiled_attention_computes_what_eager_attention_does(monkeypatch, tmp_path):
    # Of a block, the part that is not made of PyTorch's own layers; what is between two products is a library each.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # Scalar code that is neither optimized nor described for debuggers takes the compiler half the time.
    monkeypatch.setattr("torch._inductor.cpu_vec_isa.valid_vec_isa_list", list)
    monkeypatch.setattr("torch._inductor.config.aot_inductor.debug_compile", True)
    debug_flags = "torch._inductor.cpp_builder._get_inductor_debug_symbol_cflags"  # not in every version
    monkeypatch.setattr(debug_flags, lambda: ([], []), raising=False)
    torch._dynamo.reset()
    grid = Grid(2, 3, 3)
    table = rotary_table(torch.arange(grid.tokens).unsqueeze(0), grid, 8, 16)
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        attention, x = Attention(24, 3), torch.randn(2, grid.tokens, 24)
        if compiled:
            attention.compile(dynamic=True)
        attention(x, table).square().sum().backward()
        gradients.append([p.grad for p in attention.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_without_a_compiler_a_run_reports_it_and_continues(media, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "tubelet")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.delenv("CXX", raising=False)
    torch._dynamo.reset()
    train(tiny_config(media, steps=2, compile=True), tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 2
    assert caplog.text.count("not compiling, steps will be slower") == 1


@pytest.mark.parametrize("sharded", [False, True])
def test_the_blocks_of_a_frozen_teacher_are_compiled_with_those_of_the_run(monkeypatch, sharded):
    monkeypatch.setattr("tubelet.train.compilation._problem", lambda device: None)
    model = VJEPA(vit_pico())
    model.frozen_teacher = (Encoder(vit_pico()),)
    assert "compiling the transformer blocks" in compile_blocks(model, CPU, sharded)
    assert all(block._compiled_call_impl for block in model.frozen_teacher[0].blocks)
    assert all(bool(block._compiled_call_impl) != sharded for block in model.student.blocks)


def test_an_error_in_a_step_that_was_asked_to_stop_is_reported_as_that():
    message = r"SIGUSR1: stopped in .*ImportError\); the step is lost"
    with pytest.raises(InterruptedRunError, match=message) as raised, StopSignals():
        signal.raise_signal(signal.SIGUSR1)
        raise ImportError
    assert raised.value.exit_code == 128 + signal.SIGUSR1


def test_a_compiler_that_ctrl_c_interrupts_is_an_interruption():
    from torch._inductor.exc import CppCompileError

    interrupted = CppCompileError(["g++"], "signal 2")
    message = "SIGINT: stopped while the model was compiled; the step is lost; start again"
    with pytest.raises(InterruptedRunError) as raised, StopSignals(lambda: "; start again"):
        signal.raise_signal(signal.SIGINT)
        raise interrupted
    assert str(raised.value) == message


def test_the_limit_of_graphs_is_one_sentence(monkeypatch, caplog):
    monkeypatch.setattr("tubelet.train.compilation._problem", lambda device: None)
    compile_blocks(VJEPA(ONE_BLOCK), CPU)
    logger = logging.getLogger("torch._dynamo.convert_frame")
    with caplog.at_level(logging.INFO):
        logger.warning("torch._dynamo hit config.%s (%s)", "recompile_limit", 8)
    assert [record.name for record in caplog.records] == ["tubelet.train.compilation"]


def test_all_blocks_of_an_encoder_share_one_graph():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    encoder = Encoder(dataclasses.replace(ONE_BLOCK, depth=3, levels=(2,)))
    for block in encoder.blocks:
        block.compile(backend="eager", dynamic=True)
    for size in (16, 24):
        encoder([torch.rand(2, 3, 4, size, size)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_an_empty_library_that_a_killed_compiler_left_is_removed(tmp_path, monkeypatch):
    left, fresh, whole = (tmp_path / f"{name}.so" for name in ("left", "fresh", "whole"))
    whole.write_bytes(b"ELF")
    for path in (left, fresh):
        path.touch()
    os.utime(left, (0, 0))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    remove_incomplete_libraries()
    assert sorted(path.stem for path in tmp_path.glob("*.so")) == ["fresh", "whole"]


def test_training_on_cuda_does_not_use_attention_that_builds_a_plan_for_each_length(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", set_to.append)
    config = TrainConfig(model=vit_pico(), precision="bf16")
    prepare_model(VJEPA(config.model), config, CPU, compiled=False)
    assert not set_to
    prepare_model(VJEPA(config.model), config, torch.device("cuda"), compiled=False)
    assert set_to == [False]
