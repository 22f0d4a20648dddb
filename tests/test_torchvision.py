"""`harness._torchvision` lets torchvision's transforms be imported beside a CPU build of torch."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_torchvision_imports_and_its_transforms_work():
    code = "import torch; from torchvision.transforms import v2; print(v2.functional.resize(torch.ones(3, 4, 4), [2, 2]).shape)"
    assert run(f"import harness; {code}") == "torch.Size([3, 2, 2])\n"


def test_importing_harness_imports_neither_torch_nor_torchvision():
    assert run("import harness, sys; print({'torch', 'torchvision'} & set(sys.modules))") == "set()\n"
