"""Who may import what: the order of the rooms, and the three rules that keep serving small, the GPU suite lean and
``import ican_ml`` quick.

Each rule is shown twice. A fresh process imports the modules and says what that loaded: it sees what libraries do. The
sources are parsed: that sees imports inside functions, which run later or never. Modules are found on disk, so a new
one is covered from its first day.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ican_ml"

# A room may import rooms on lines above its own. Two rooms on one line do not know each other.
ROOMS = (
    ("resources", "logs"),
    ("cohort",),
    ("encoding",),
    ("records",),
    ("inputs",),
    ("model",),
    ("evaluation",),
    ("training",),
    ("targets",),
    ("bundle",),
    ("serving",),
    ("sweep",),
    ("config", "results", "run_folder"),
    ("entry", "fold", "transfer"),
    ("audit", "prepare", "release"),
    ("fitting", "stopping"),
    ("discovery",),
    ("pipeline",),
    ("reproduce",),
    ("invariants",),
    ("commands",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# The one way up: a cohort's matrices are CSR batches.
ALLOWED_UPWARDS = {("cohort", "ican_ml.encoding.csr")}

# Serving, and what it needs of other rooms, runs where only these are installed.
SERVING_LIBRARIES = {"numpy", "onnxruntime"}
SERVING_MODULES = (
    "ican_ml.cohort.fhir",
    "ican_ml.encoding.csr",
    "ican_ml.encoding.reference",
    "ican_ml.inputs.encode",
    "ican_ml.inputs.schema",
    "ican_ml.invariants.bundle",
    "ican_ml.records.aggregates",
    "ican_ml.records.vocabulary",
)
# In front of it, HTTP.
SERVICE_LIBRARIES = {"fastapi", "prometheus_client", "pydantic", "starlette"}
SERVICE_MODULES = ("ican_ml.serving.guard", "ican_ml.serving.service")
# Whole cohorts are predicted and evaluated with the cohort's readers, without torch.
COHORT_LIBRARIES = {"anndata", "h5py", "meds", "onnxruntime", "pandas", "polars", "pyarrow", "scipy", "tqdm"}
COHORT_MODULES = ("ican_ml.serving.align", "ican_ml.serving.cohort", "ican_ml.transfer")
# What training may use and serving, encoding and the model may not, or only in the file made for it.
TRAINING_LIBRARIES = {
    *("anndata", "hydra", "lightning", "omegaconf", "pandas", "polars", "pyarrow", "pytorch_lightning", "wandb"),
    *("matplotlib", "meds", "optuna", "sqlalchemy", "sklearn", "torchsurv", "xgboost"),
}
HEAVY_LIBRARIES = TRAINING_LIBRARIES | {"cupy", "numba", "onnx", "onnxscript", "torch"}
BACKENDS = {"ican_ml.encoding.cpu": "numba", "ican_ml.encoding.cuda_device": "cupy"}

_REPORT = """
import importlib, json, sys
loaded = {}
for name in json.loads(sys.argv[1]):
    before = set(sys.modules)
    importlib.import_module(name)
    loaded[name] = sorted(set(sys.modules) - before)
print(json.dumps(loaded))
"""


def _modules(*rooms: str) -> list[str]:
    """Name every module of the package, or of some of its rooms."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in names if not rooms or _room(name) in rooms]


def _room(module: str) -> str:
    """Name the room of a module: the part after ``ican_ml``."""
    return module.partition(".")[2].partition(".")[0]


def _source(module: str) -> Path:
    folder = ROOT.joinpath(*module.split("."))
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def _imports(module: str) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything that a module imports anywhere in its text."""
    path = _source(module)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                parent = package[: len(package) - node.level + 1]
                origin = ".".join([*parent, origin] if origin else parent)
            # `from ican_ml import x` and `from ican_ml.room import y` may name a module: keep the longest that is one.
            for alias in node.names:
                longer = f"{origin}.{alias.name}"
                yield node.lineno, longer if origin.startswith("ican_ml") and _source(longer).exists() else origin


def _load(modules: Iterable[str]) -> dict[str, list[str]]:
    """Import modules one after the other in a fresh process; give for each what it added to ``sys.modules``."""
    command = [sys.executable, "-c", _REPORT, json.dumps(list(modules))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, f"something prints when it is imported: {done.stdout[:500]}"
    loaded: dict[str, list[str]] = json.loads(done.stdout)
    return loaded


def _libraries(loaded: Iterable[str]) -> set[str]:
    """Keep the top names of third-party libraries (compiled modules leave ``cython_runtime`` and names with ``_``)."""
    tops = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"ican_ml", "cython_runtime"}
    return {top for top in tops if not top.startswith("_")}


def _unexpected(loaded: dict[str, list[str]], allowed: set[str]) -> dict[str, list[str]]:
    """Give, of each module that loaded a library which is not allowed, those libraries."""
    found = {module: sorted(_libraries(names) - allowed) for module, names in loaded.items()}
    return {module: libraries for module, libraries in found.items() if libraries}


def _written(modules: Iterable[str], forbidden: set[str]) -> list[str]:
    """List the import statements, wherever they stand, of forbidden libraries. A backend's file may import its own."""
    return [
        f"{module}:{line} imports {name}"
        for module in modules
        for line, name in _imports(module)
        if name.partition(".")[0] in forbidden - {BACKENDS.get(module.partition("_kernels")[0])}
    ]


def test_every_room_has_its_place_in_the_order() -> None:
    unknown = {_room(module) for module in _modules()} - set(LEVEL) - {"", "__main__"}
    assert not unknown, f"say in ROOMS, and in the design, where these belong: {sorted(unknown)}"


def test_every_folder_of_modules_is_a_package() -> None:
    missing = sorted({path.parent for path in PACKAGE.rglob("*.py") if not (path.parent / "__init__.py").exists()})
    assert not missing, f"no __init__.py in {[str(folder.relative_to(ROOT)) for folder in missing]}"


@pytest.mark.parametrize("module", _modules())
def test_rooms_import_only_rooms_before_them(module: str) -> None:
    room = {"__main__": "cli"}.get(_room(module), _room(module))
    wrong = []
    for line, name in _imports(module):
        other = _room(name)
        if name.partition(".")[0] != "ican_ml" or other in ("", room) or (room, name) in ALLOWED_UPWARDS:
            continue
        if not room or LEVEL[other] >= LEVEL[room]:
            wrong.append(f"{module}:{line} imports {name}")
    assert not wrong, f"a room imports only rooms before it: {wrong}"


def test_serving_loads_only_numpy_and_onnxruntime() -> None:
    others = (*COHORT_MODULES, *SERVICE_MODULES)
    modules = [*SERVING_MODULES, *(name for name in _modules("serving") if name not in others)]
    loaded = _load(modules)
    assert _unexpected(loaded, SERVING_LIBRARIES) == {}

    reached = {name for names in loaded.values() for name in names if name.partition(".")[0] == "ican_ml"}
    assert reached.issuperset(modules)
    assert _written(sorted(reached), HEAVY_LIBRARIES) == [], "an import inside a function counts too"


def test_the_service_is_written_without_training_libraries() -> None:
    loaded = _load(SERVICE_MODULES)
    reached = {name for names in loaded.values() for name in names if name.partition(".")[0] == "ican_ml"}
    assert reached.issuperset(SERVICE_MODULES)
    assert _written(sorted(reached), HEAVY_LIBRARIES) == []
    imported = {name.partition(".")[0] for module in SERVICE_MODULES for _, name in _imports(module)}
    allowed = SERVING_LIBRARIES | SERVICE_LIBRARIES | set(sys.stdlib_module_names) | {"ican_ml"}
    assert imported - allowed == set()
    assert {library for names in loaded.values() for library in _libraries(names)} & HEAVY_LIBRARIES == set()


def test_whole_cohorts_are_served_without_training_libraries() -> None:
    loaded = _load(COHORT_MODULES)
    reached = {name for names in loaded.values() for name in names if name.partition(".")[0] == "ican_ml"}
    assert reached.issuperset(COHORT_MODULES)
    assert _written(sorted(reached), (HEAVY_LIBRARIES | {"sklearn"}) - COHORT_LIBRARIES - {"cupy", "numba"}) == []
    forbidden = {"torch", "lightning", "hydra", "omegaconf", "wandb", "sklearn", "xgboost", "onnx"}
    assert {library for names in loaded.values() for library in _libraries(names)} & forbidden == set()


def test_inputs_need_no_torch() -> None:
    assert _written(_modules("inputs"), {"torch", "lightning"}) == []


def test_encoding_and_model_load_none_of_the_training_libraries() -> None:
    modules = _modules("encoding", "model")
    loaded = _load(modules)
    assert {library for names in loaded.values() for library in _libraries(names)} & TRAINING_LIBRARIES == set()
    assert _written(modules, TRAINING_LIBRARIES | {"cupy", "numba"}) == [], "an import inside a function counts too"


def test_importing_the_package_alone_is_quick() -> None:
    loaded = _load(["ican_ml"])["ican_ml"]
    assert _libraries(loaded) == set()
    assert [name for name in loaded if name.startswith("ican_ml.")] == [], "the package imports none of its rooms"
    assert len(loaded) < 20, f"{len(loaded)} modules loaded: {loaded}"


def test_packages_import_nothing_heavy() -> None:
    packages = [module for module in _modules() if _source(module).name == "__init__.py"]
    assert _unexpected(_load(packages), {"numpy"}) == {}
