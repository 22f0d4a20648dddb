import subprocess
import sys
from dataclasses import MISSING, fields

from harness.declared import Parameter, declared
from methods import METHODS


def test_what_the_files_declare_is_what_they_define():
    assert declared() == {
        name: tuple(Parameter(field.name, field.default is MISSING) for field in fields(kind))
        for name, kind in METHODS.items()
    }
    assert list(declared()) == list(METHODS)


def test_names_need_no_torch():
    code = "import sys; from harness.declared import declared; declared(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
