"""Prediction where only NumPy and onnxruntime are installed: a fresh process in which nothing else can be imported."""

import json
import subprocess
import sys
from pathlib import Path

from ican_ml.cohort.cohort import Cohort
from ican_ml.inputs.assemble import CohortStates, as_dictionary
from ican_ml.inputs.schema import InputSchema
from ican_ml.records.store import RecordStore
from ican_ml.serving.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
# What onnxruntime itself depends on, beside NumPy.
ONNXRUNTIME = ("onnxruntime", "flatbuffers", "google", "packaging")

_ALONE = """
import json, sys

allowed = {"ican_ml", "numpy", *sys.argv[4:]} | set(sys.stdlib_module_names)

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
bundle, patient, drug = sys.argv[1:4]

from ican_ml.serving.predictor import Predictor

with open(patient) as file:
    answer = Predictor(bundle).predict(json.load(file), [(drug,)])
print(json.dumps(answer.ranked[0].prediction))

from ican_ml.cli import main

main(["predict", bundle, patient, "--treatment", drug, "--json"])
main(["verify", bundle])
heavy = {"torch", "pandas", "polars", "scipy", "anndata", "numba", "onnx"} & set(sys.modules)
assert not heavy, heavy
"""


def test_numpy_and_onnxruntime_are_enough(
    sim_bundle: Path,
    sim_cohort: Cohort,
    sim_records: RecordStore,
    sim_states: CohortStates,
    sim_schema: InputSchema,
    tmp_path: Path,
) -> None:
    patient, drug = as_dictionary(sim_cohort, sim_records, sim_states, 5), sim_schema.drugs[0]
    path = tmp_path / "patient.json"
    path.write_text(json.dumps(patient))
    command = [sys.executable, "-c", _ALONE, str(sim_bundle), str(path), drug, *ONNXRUNTIME]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    called, printed, verified, named = done.stdout.splitlines()
    expected = Predictor(sim_bundle).predict(patient, [(drug,)]).ranked[0].prediction
    assert json.loads(called) == json.loads(printed)["ranked"][0]["prediction"] == expected
    assert named == f"manifest sha256 {Predictor(sim_bundle).digest}"
    assert "every file is as exported" in verified
