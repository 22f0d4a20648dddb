"""`vtbench` as a module, so that it is the one of this folder."""

from harness.cli import main

main()
