"""`harness._torchvision` lets torchvision's transforms be imported beside a CPU build of torch."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_torchvision_imports_and_its_transforms_work():
    code = "import harness, torch; from torchvision.transforms.v2.functional import resize"
    assert run(f"{code}; print(resize(torch.ones(3, 4, 4), [2, 2]).shape)") == "torch.Size([3, 2, 2])\n"


def test_importing_harness_imports_neither_torch_nor_torchvision():
    assert run("import harness, sys; print({'torch', 'torchvision'} & set(sys.modules))") == "set()\n"
