"""Policies: imports go one way, config fields are documented, files are parsed by the strict readers."""

import ast
import re
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "tubelet"
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
# From the lowest layer to the highest. A module imports from its own layer and from those below.
LAYERS = (
    "errors grid schedules user_warnings value_checks io launch",
    "config",
    "device console",
    "data model",
    "sample_data objective",
    "vjepa",
    "checkpoint",
    "pretrained encoder",
    "datasets labels",
    "train planner embed heads tasks",
    "prediction",
    "hf fitting",
    "view",
    "cli",
    "__main__",
)
INDEPENDENT = {
    ("data", "model"),
    ("sample_data", "objective"),
    ("train", "tasks"),
    ("train", "embed"),
    ("embed", "tasks"),
}
LAYER = {name: number for number, layer in enumerate(LAYERS) for name in layer.split()}


IMPORT = re.compile(r"^ *(?:from|import) tubelet(?:\.(\w+)| import (\w+(?:, \w+)*)$)", re.MULTILINE)


def imported_packages(file):
    """Subpackages and top-level modules of tubelet that a file imports, at its top or inside a function."""
    for package, names in IMPORT.findall(text(file)):
        yield from names.split(", ") if names else [package]


@cache
def text(file):
    return (SOURCE / file).read_text()


@cache
def tree(file):
    return ast.parse(text(file))


def test_imports_go_to_lower_layers_only():
    wrong = []
    for file in FILES:
        package = file.split("/")[0].removesuffix(".py")
        for other in set(imported_packages(file)) - {package}:
            upward = LAYER.get(other, 0) > LAYER.get(package, len(LAYERS))
            if upward or (package, other) in INDEPENDENT or (other, package) in INDEPENDENT:
                wrong.append(f"{file} imports {other}")
    assert not wrong


def test_every_package_and_top_level_module_has_a_layer_and_a_line_in_the_design():
    page = (SOURCE.parents[1] / "docs" / "design.md").read_text()
    for name in {file.split("/")[0] for file in FILES} - {"__init__.py", "__main__.py"}:
        shown = name if name.endswith(".py") else f"{name}/"
        assert name.removesuffix(".py") in LAYER and f"`{shown}`" in page, (
            f"{shown}: add it to LAYERS and docs/design.md"
        )


def test_no_two_classes_have_one_name():
    modules = {}
    for file in FILES:
        for name in re.findall(r"^ *class (\w+)[:(]", text(file), re.MULTILINE):
            modules.setdefault(name, set()).add(file)
    assert len(modules) > 400 and {name: files for name, files in modules.items() if len(files) > 1} == {}


def test_every_config_field_is_documented():
    for file in [file for file in FILES if file.startswith("config/")]:
        for node in tree(file).body:
            if not isinstance(node, ast.ClassDef):
                continue
            for field, doc in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign):
                    assert isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant), (
                        f"{node.name}: {ast.unparse(field)}"
                    )


# Modules whose tensors of float64 are on the host: Apple's MPS has no float64 and raises an error. What computes on the
# device of a model takes `tubelet.device.accumulation_dtype`.
FLOAT64_MODULES = {
    "device.py",
    "fitting/suggest.py",
    "fitting/tasks/depth.py",
    "fitting/tasks/segmentation.py",
    "heads/linear.py",
    "heads/novelty.py",
    "heads/regression.py",
    "pretrained/dense_features.py",
    "pretrained/inputs.py",
    "pretrained/pixels.py",
    "tasks/common/correspondence.py",
    "tasks/metrics/dense.py",
    "tasks/metrics/ranking.py",
    "tasks/suite.py",
    "tasks/tracking.py",
    "train/collapse.py",
    "view/feature_maps.py",
    "view/pca.py",
    "view/quantization.py",
    "view/token_maps.py",
}


def test_no_float64_on_a_device():
    pattern = re.compile(r"\.double\(|torch\.(float64|double)\b")
    found = {file for file in FILES if pattern.search(text(file))}
    assert found == FLOAT64_MODULES, "compute in accumulation_dtype(device), or on the host and list the module"


# Modules that may parse a file; all others call tubelet.io, which bounds size and reports damage. What processes of
# this package send each other, and what the kernel reports about them, is not a file from outside.
PARSING_MODULES = {
    "arrays.py",
    "config_file.py",
    "engine.py",
    "lists.py",
    "process_map.py",
    "render.py",
    "tables.py",
    "text.py",
    "worker_count.py",
    "worker_status.py",
    "xml_files.py",
}
PARSERS = re.compile(
    r"json\.loads?\(|\.read_text\(|\.read_bytes\(|np\.load\(|torch\.load\(|safe_open|\bload_file|\bpq\.(?!write_table)"
    r"|parquet\.Parquet|csv\.(reader|DictReader)|pickle\.loads?\(|\byaml\.|tomllib|literal_eval|\bexpat\b|ElementTree\."
)


def test_files_that_are_not_media_are_parsed_by_the_readers():
    found = []
    for file in FILES:
        if Path(file).name not in PARSING_MODULES:
            found += [f"{file}: {line.strip()}" for line in text(file).splitlines() if PARSERS.search(line)]
    assert not found, "use tubelet.io"


def test_warnings_show_the_users_own_line():
    assert [file for file in FILES if "warnings.warn(" in text(file)] == []


def test_text_files_are_utf8_on_every_system():
    found = []
    for file in FILES:
        if not re.search(r"\.open\(|write_text\(", text(file)):
            continue
        for call in ast.walk(tree(file)):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            mode = call.args[0] if call.func.attr == "open" and call.args else None
            is_text = isinstance(mode, ast.Constant) and mode.value in ("r", "w", "a", "x")
            named = any(keyword.arg == "encoding" for keyword in call.keywords)
            if (is_text or call.func.attr == "write_text") and not named:
                found.append(f"{file}:{call.lineno}")
    assert not found, "Windows has another default: pass encoding"
